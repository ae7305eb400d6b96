//! The full matrix with the stock Python library: who binds, who sends, every legal pair of mode and
//! guarantee, one way and echoed by identity, on both backends, 1,000 messages each; and each once
//! more with the link cut in the middle.
//!
//! What a cut may do: AT_LEAST_ONCE loses nothing, and may double. AT_MOST_ONCE never doubles; what
//! was on its way is lost, what is sent afterwards arrives. Ours keeps the order, the stock sender
//! does not across a reconnection (interop note 12).

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::DeliveryGuarantee::{self, AtLeastOnce, AtMostOnce};
use aiomsg_uring::SendMode::{self, Publish, RoundRobin};
use aiomsg_uring::{Backend, Engine, SendError, Socket, blocking};
use common::{PATIENCE, Proxy, PythonPeer, eventually, free_port, is_available, python, socket_addr, watched_for};
use serde_json::json;

const COUNT: usize = 1_000;
/// How many have gone when the link is cut.
const CUT_AT: usize = 400;
/// Sent after the cut, when both ends are connected again.
const AFTERWARDS: usize = 50;
/// The stock sender sends again after 5 s.
const STOCK_RESEND: Duration = Duration::from_secs(5);
const TIME_MAX: Duration = Duration::from_secs(240);

/// AT_LEAST_ONCE with PUBLISH is not legal.
const WAYS: [(SendMode, DeliveryGuarantee); 3] =
    [(Publish, AtMostOnce), (RoundRobin, AtMostOnce), (RoundRobin, AtLeastOnce)];

/// The two of one case, connected through a proxy.
struct Case {
    ours: blocking::Socket,
    stock: PythonPeer,
    proxy: Proxy,
    delivery: DeliveryGuarantee,
    cut: bool,
    begun: Instant,
    name: String,
}

impl Case {
    /// `None` where there is no stock peer.
    fn start(
        backend: Backend,
        ours_binds: bool,
        (mode, delivery): (SendMode, DeliveryGuarantee),
        cut: bool,
    ) -> Option<Case> {
        let engine = Engine::builder().backend(backend).shards(2).build().expect("an engine");
        let ours = Socket::builder()
            .send_mode(mode)
            .delivery_guarantee(delivery)
            // Without a cut nothing is lost, and a busy machine is no reason to send anything twice.
            .resend(Duration::from_secs(if cut { 1 } else { 30 }), 20)
            .reconnect_delay(Duration::from_millis(20), Duration::from_millis(200))
            .engine(&engine)
            .build_blocking()
            .expect("a socket");
        let mut stock = PythonPeer::start(python()?, mode, delivery);
        let proxy;
        if ours_binds {
            let address = ours.bind("127.0.0.1:0").expect("bound");
            proxy = Proxy::before_addr(socket_addr(&address));
            stock.ask(json!({"do": "connect", "port": proxy.address().port()}));
        } else {
            let port = free_port();
            stock.ask(json!({"do": "bind", "port": port}));
            proxy = Proxy::before_addr(SocketAddr::from(([127, 0, 0, 1], port)));
            ours.connect(proxy.address()).expect("connecting");
        }
        ours.wait_for_peers(1, PATIENCE).expect("a peer in time");
        let name = format!("{backend:?} {mode} {delivery}, ours binds: {ours_binds}, cut: {cut}");
        Some(Case { ours, stock, proxy, delivery, cut, begun: Instant::now(), name })
    }

    fn cut_and_wait(&self) {
        let before = self.ours.stats().connects;
        self.proxy.cut();
        eventually("the link is back", || self.ours.stats().connects > before && !self.ours.peers().is_empty());
        // The stock end is ready a moment after its HELLO.
        thread::sleep(Duration::from_millis(50));
    }

    /// Sends all texts, with the cut in the middle if there is one, and some afterwards.
    fn send_all(&self, texts: &[String]) {
        for (index, text) in texts[..COUNT].iter().enumerate() {
            self.ours.send(text).expect("sent");
            if self.cut && index == CUT_AT {
                self.cut_and_wait();
            }
        }
        if self.cut {
            thread::sleep(Duration::from_millis(200));
        }
        texts[COUNT..].iter().for_each(|text| self.ours.send(text).expect("sent"));
    }

    /// Judges what has arrived of `texts`.
    #[track_caller]
    fn judge(&self, texts: &[String], got: &[String], in_order: bool) {
        let name = &self.name;
        let wanted: BTreeSet<_> = texts.iter().collect();
        let different: BTreeSet<_> = got.iter().collect();
        let (lost, doubled) = (wanted.len() - different.len(), got.len() - different.len());
        println!("{name}: sent {}, came {}, lost {lost}, doubled {doubled}", texts.len(), got.len());
        assert_eq!(self.proxy.cuts() > 0, self.cut, "{name}: the proxy has cut {}", self.proxy.cuts());
        assert!(different.is_subset(&wanted), "{name}: invented or altered");
        if !self.cut {
            let mut seen = BTreeSet::new();
            let first: Vec<_> = got.iter().filter(|text| seen.insert(*text)).collect();
            assert!(first.iter().eq(&texts.iter().collect::<Vec<_>>()), "{name}: lost {lost}, or in another order");
            // On a machine that is too busy the stock peer loses patience, and what it sends again is a message like any other.
            let may_double = self.delivery == AtLeastOnce && self.begun.elapsed() > STOCK_RESEND;
            assert!(doubled == 0 || may_double, "{name}: doubled {doubled}");
        } else if self.delivery == AtLeastOnce {
            assert_eq!(lost, 0, "{name}: lost");
        } else {
            assert_eq!(doubled, 0, "{name}: doubled");
            assert!(got.len() >= CUT_AT / 2, "{name}: only {} came", got.len());
            let afterwards = texts[COUNT..].iter().filter(|text| different.contains(text)).count();
            assert_eq!(afterwards, AFTERWARDS, "{name}: lost after the link was back");
            let mut all = texts.iter();
            assert!(!in_order || got.iter().all(|text| all.any(|sent| sent == text)), "{name}: out of order");
        }
    }

    /// Receives until everything is there, or nothing more comes; cuts in the middle if `cuts`.
    fn receive(&self, wanted: usize, cuts: bool) -> Vec<String> {
        // What was lost comes again once the other end has lost patience.
        let patience = match (self.cut, self.delivery) {
            (true, AtLeastOnce) => STOCK_RESEND + Duration::from_secs(4),
            (true, AtMostOnce) => Duration::from_secs(2),
            _ => PATIENCE,
        };
        let (mut got, mut different) = (Vec::new(), BTreeSet::new());
        let mut cut_left = cuts && self.cut;
        while different.len() < wanted {
            let Ok(message) = self.ours.recv_timeout(patience) else { break };
            let text = String::from_utf8(message.to_vec()).expect("text");
            different.insert(text.clone());
            got.push(text);
            if cut_left && got.len() > CUT_AT {
                cut_left = false;
                self.cut_and_wait();
            }
        }
        got.extend(self.ours.try_recv().iter().map(|message| String::from_utf8_lossy(message).into_owned()));
        got
    }

    /// Sends what comes back to where it came from, until so many different ones have come.
    fn echo(&self, identity: &str, wanted: usize, cuts: bool) {
        let patience = if self.cut { STOCK_RESEND + Duration::from_secs(2) } else { PATIENCE };
        let (mut different, mut cut_left) = (BTreeSet::new(), cuts && self.cut);
        let until = Instant::now() + PATIENCE * 2;
        while different.len() < wanted && Instant::now() < until {
            let Ok((from, request)) = self.ours.recv_identity_timeout(patience) else { break };
            assert_eq!(from.to_string(), identity);
            different.insert(request.clone());
            match self.ours.send_to(from, request) {
                Ok(()) => {}
                // Between the cut and the return: what AT_MOST_ONCE answers.
                Err(SendError::PeerGone(_)) if self.cut && self.delivery == AtMostOnce => {}
                Err(error) => panic!("{}: {error}", self.name),
            }
            if cut_left && different.len() > CUT_AT {
                cut_left = false;
                self.cut_and_wait();
            }
        }
    }

    /// In the end every message of ours that wants it is acknowledged, whatever was cut.
    fn judge_acknowledgements(&self) {
        if self.delivery == AtLeastOnce {
            eventually("all of ours are acknowledged", || {
                let stats = self.ours.stats();
                stats.messages_acknowledged >= stats.messages_sent
            });
            assert_eq!(self.ours.stats().messages_expired, 0, "{}", self.name);
        }
    }

    fn end(mut self) {
        self.judge_acknowledgements();
        self.stock.ask(json!({"do": "close"}));
        let closed = self.ours.close();
        assert!(self.cut || closed.undelivered == 0, "{}: {closed:?}", self.name);
    }
}

/// All texts of a case: those around the cut, and those after it.
fn texts(prefix: &str, cut: bool) -> Vec<String> {
    let first = (0..COUNT).map(|index| format!("{prefix}{index}"));
    let afterwards = if cut { AFTERWARDS } else { 0 };
    first.chain((0..afterwards).map(|index| format!("{prefix}after{index}"))).collect()
}

fn for_every_case(backend: Backend, cut: bool, run: fn(Case)) {
    for ours_binds in [true, false] {
        for way in WAYS {
            let Some(case) = Case::start(backend, ours_binds, way, cut) else { return };
            run(case);
        }
    }
}

fn ours_sends(mut case: Case) {
    let texts = texts("ours ", case.cut);
    let idle = if case.cut { 4.0 } else { 1.5 };
    case.stock.order(&json!({"do": "collect", "idle": idle}));
    case.send_all(&texts);
    let answer = case.stock.answer();
    let got: Vec<String> = serde_json::from_value(answer["messages"].clone()).expect("texts");
    case.judge(&texts, &got, true);
    case.end();
}

fn stock_sends(mut case: Case) {
    let texts = texts("stock ", case.cut);
    case.stock.order(&json!({"do": "send", "count": COUNT, "prefix": "stock "}));
    let mut got = case.receive(COUNT, true);
    assert_eq!(case.stock.answer(), json!({"done": "send"}));
    if case.cut {
        case.stock.ask(json!({"do": "send", "count": AFTERWARDS, "prefix": "stock after"}));
        let left = texts.len() - got.iter().collect::<BTreeSet<_>>().len();
        got.extend(case.receive(left.min(AFTERWARDS), false));
    }
    case.judge(&texts, &got, false);
    case.end();
}

/// Ours asks, the stock peer answers by identity.
fn stock_echoes(mut case: Case) {
    let texts = texts("echo ", case.cut);
    case.stock.order(&json!({"do": "echo", "count": if case.cut { 1_000_000 } else { COUNT }}));
    let got = thread::scope(|scope| {
        scope.spawn(|| case.send_all(&texts));
        case.receive(texts.len(), false)
    });
    case.judge(&texts, &got, false);
    case.judge_acknowledgements();
    if !case.cut {
        assert_eq!(case.stock.answer(), json!({"done": "echo"}));
        case.end();
    }
}

/// The stock peer asks, ours answers by identity.
fn ours_echoes(mut case: Case) {
    let texts: Vec<_> = texts("echo ", case.cut);
    let identity = case.stock.ask(json!({"do": "identity"}))["identity"].as_str().expect("hex").to_owned();
    case.stock.ask(json!({"do": "send", "count": COUNT, "prefix": "echo "}));
    case.echo(&identity, COUNT, true);
    if case.cut {
        case.stock.ask(json!({"do": "send", "count": AFTERWARDS, "prefix": "echo after"}));
        case.echo(&identity, AFTERWARDS, false);
    }
    let idle = if case.cut { 3.0 } else { 1.5 };
    let answer = case.stock.ask(json!({"do": "collect", "idle": idle}));
    let got: Vec<String> = serde_json::from_value(answer["messages"].clone()).expect("texts");
    case.judge(&texts, &got, false);
    case.end();
}

macro_rules! matrix {
    ($($test:ident),* $(,)?) => {
        matrix!(@ uring, Uring, false, $($test),*);
        matrix!(@ poll, Poll, false, $($test),*);
        matrix!(@ uring_cut, Uring, true, $($test),*);
        matrix!(@ poll_cut, Poll, true, $($test),*);
    };
    (@ $row:ident, $backend:ident, $cut:literal, $($test:ident),*) => {
        mod $row {
            $(
                #[test]
                fn $test() {
                    use crate::Backend::$backend;
                    if crate::is_available($backend) {
                        let name = concat!(module_path!(), "::", stringify!($test));
                        crate::watched_for(name, crate::TIME_MAX, || {
                            crate::for_every_case($backend, $cut, crate::$test);
                        });
                    }
                }
            )*
        }
    };
}

matrix!(ours_sends, stock_sends, stock_echoes, ours_echoes);
