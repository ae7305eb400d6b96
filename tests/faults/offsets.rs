//! An end of the connection at every byte of HELLO + DATA_REQ one way and of HELLO + ACK the other way, in each of three
//! manners, whichever end dials: the message arrives, once, and is acknowledged.

use aiomsg_uring::{Backend, Engine};

use crate::chaos::{Chaos, End, Toxic};
use crate::common::{PATIENCE, eventually_within, number, say_loudly};
use crate::{at_once, engine, hasty, value_of};

on_both!([a_fault_at_every_byte]);

const HELLO_BYTES: usize = 4 + 1 + 1 + 16;
const REQUEST_BYTES: usize = 4 + 1 + 16 + 8;
const ACK_BYTES: usize = 4 + 1 + 16;
/// Cases at a time: most of each is waiting.
const AT_ONCE: usize = 12;

#[derive(Clone, Copy, Debug)]
struct Case {
    sender_dials: bool,
    /// Of what the sender says, or of what the receiver answers.
    of_sender: bool,
    at: usize,
    how: End,
}

fn a_fault_at_every_byte(backend: Backend) {
    let mut cases = Vec::new();
    for how in [End::Fin, End::Reset, End::Silence] {
        for sender_dials in [true, false] {
            for (of_sender, bytes) in [(true, HELLO_BYTES + REQUEST_BYTES), (false, HELLO_BYTES + ACK_BYTES)] {
                cases.extend((0..=bytes).map(|at| Case { sender_dials, of_sender, at, how }));
            }
        }
    }
    let engine = engine(backend);
    at_once(AT_ONCE, &cases, |case| survive(&engine, *case));
    say_loudly(&format!("{} faults at every byte on {backend:?}: lost 0", cases.len()));
}

fn survive(engine: &Engine, case: Case) {
    let (sender, receiver) = (hasty(engine, |builder| builder), hasty(engine, |builder| builder));
    let (listener, dialer) = if case.sender_dials { (&receiver, &sender) } else { (&sender, &receiver) };
    let address = listener.bind("127.0.0.1:0").expect("bound");
    let way = usize::from(case.of_sender != case.sender_dials);
    let chaos = Chaos::before(&address, move |connection| {
        let mut toxics = [None, None];
        if connection == 0 {
            toxics[way] = Some(Toxic::EndAt { bytes: case.at, how: case.how });
        }
        toxics
    });
    dialer.connect(chaos.address()).expect("connecting");
    for value in 0..2 {
        sender.send(&number(value)).expect("sent");
        let message = receiver.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{case:?}: {value}: {error}"));
        assert_eq!(value_of(&message), value, "{case:?}");
        assert!(receiver.try_recv().is_err(), "{case:?}: one too many");
        let acknowledged = || sender.stats().messages_acknowledged == value + 1;
        eventually_within(PATIENCE, &format!("{case:?}: {value} is acknowledged"), acknowledged);
    }
    assert_eq!(chaos.ends(), 1, "{case:?}: it never came to that");
    assert_eq!(sender.stats().messages_expired, 0, "{case:?}");
}
