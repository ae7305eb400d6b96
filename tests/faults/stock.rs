//! A reset of both ends at chosen bytes of a connection with a peer of the stock Python library, whichever end dials: what is
//! sent at least once arrives, both ways, and is acknowledged.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use aiomsg_uring::DeliveryGuarantee::AtLeastOnce;
use aiomsg_uring::SendMode::RoundRobin;
use aiomsg_uring::{Backend, Engine, Socket};
use serde_json::json;

use crate::chaos::{Chaos, End, Toxic};
use crate::common::{PythonPeer, eventually_within, free_port, python, say_loudly};
use crate::{at_once, engine};

on_both!([resets_at_a_byte]);

const COUNT: usize = 200;
/// In HELLO; after it; in the envelope and in the payload of the first message; later.
const PLACES: [usize; 6] = [10, 22, 27, 45, 1_003, 3_001];
/// Cases at a time: most of each is waiting.
const AT_ONCE: usize = 8;
/// A stock end that listens and has not noticed the reset yet takes our next connection for a duplicate, and swallows all that
/// comes over it (interop note 2), until we find it silent after 15 s; and a stock sender sends again after 5 s.
const STOCK_PATIENCE: Duration = Duration::from_secs(45);

#[derive(Clone, Copy, Debug)]
struct Case {
    ours_binds: bool,
    /// Of what ours says, or of what the stock peer says.
    of_ours: bool,
    at: usize,
}

fn resets_at_a_byte(backend: Backend) {
    if python().is_none() {
        return;
    }
    let ways = [(true, true), (true, false), (false, true), (false, false)];
    let cases: Vec<Case> =
        ways.into_iter().flat_map(|(ours_binds, of_ours)| PLACES.map(|at| Case { ours_binds, of_ours, at })).collect();
    let engine = engine(backend);
    at_once(AT_ONCE, &cases, |case| survive(&engine, *case));
    say_loudly(&format!("{} resets of links with the stock peer on {backend:?}: lost 0", cases.len()));
}

fn survive(engine: &Engine, case: Case) {
    let ours = Socket::builder()
        .engine(engine)
        .send_mode(RoundRobin)
        .delivery_guarantee(AtLeastOnce)
        .resend(Duration::from_secs(1), 100)
        .reconnect_delay(Duration::from_millis(20), Duration::from_millis(200))
        .build_blocking()
        .expect("a socket");
    let mut stock = PythonPeer::start(python().expect("looked for before"), RoundRobin, AtLeastOnce);
    let listens = match case.ours_binds {
        true => ours.bind("127.0.0.1:0").expect("bound"),
        false => {
            let port = free_port();
            stock.ask(json!({"do": "bind", "port": port}));
            SocketAddr::from(([127, 0, 0, 1], port)).into()
        }
    };
    let way = usize::from(case.of_ours == case.ours_binds);
    let chaos = Chaos::before(&listens, move |connection| {
        let mut toxics = [None, None];
        if connection == 0 {
            toxics[way] = Some(Toxic::EndAt { bytes: case.at, how: End::Reset });
        }
        toxics
    });
    match case.ours_binds {
        true => _ = stock.ask(json!({"do": "connect", "port": chaos.address().port()})),
        false => ours.connect(chaos.address()).expect("connecting"),
    }
    let texts = |prefix: &str| (0..COUNT).map(|index| format!("{prefix}{index}")).collect::<BTreeSet<_>>();
    stock.order(&json!({"do": "send", "count": COUNT, "prefix": "stock "}));
    texts("ours ").iter().for_each(|text| ours.send(text).expect("accepted"));
    let mut missing = texts("stock ");
    while !missing.is_empty() {
        let message = ours
            .recv_timeout(STOCK_PATIENCE)
            .unwrap_or_else(|error| panic!("{case:?}: {} missing: {error}", missing.len()));
        missing.remove(std::str::from_utf8(&message).expect("text"));
    }
    let acknowledged = || ours.stats().messages_acknowledged == COUNT as u64;
    eventually_within(STOCK_PATIENCE, &format!("{case:?}: all of ours are acknowledged"), acknowledged);
    assert_eq!(stock.answer(), json!({"done": "send"}), "{case:?}");
    let answer = stock.ask(json!({"do": "collect", "idle": 0.5}));
    let got: BTreeSet<String> = serde_json::from_value(answer["messages"].clone()).expect("texts");
    assert!(got == texts("ours "), "{case:?}: only {} came", got.len());
    assert_eq!((chaos.ends(), ours.stats().messages_expired), (1, 0), "{case:?}");
}
