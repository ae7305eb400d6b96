//! The rows of libzmq: PUSH/PULL, XPUB/SUB (which must not drop) and REQ/REP.
//!
//! Subscribers are connections of one SUB socket, the cheapest way that libzmq has to hold them; each comes from a source
//! address of its own, because a second connection to the same endpoint text is ignored.

use std::time::Duration;

use super::libzmq::{PULL, PUSH, REP, REQ, SUB, XPUB, XPUB_NODROP, XPUB_VERBOSER, Zmq};
use super::rig::{Checked, Numbered, Orders, Rig};

/// One sender, one receiver.
pub(crate) fn pair(payload_bytes: usize) -> Box<dyn Rig> {
    let (mut sender, mut receiver) = (Zmq::new(PUSH), Zmq::new(PULL));
    let port = sender.bind();
    let orders = Orders::start(move |work| {
        receiver.connect(port, 0);
        let (mut checked, mut buffer) = (Checked::new(payload_bytes), vec![0; payload_bytes + 1]);
        while let Some(messages) = work.next() {
            (0..messages).for_each(|_| checked.check(receiver.recv(&mut buffer)));
            work.finish();
        }
    });
    Box::new(Sender { sender, orders, numbered: Numbered::new(payload_bytes) })
}

/// One publisher, so many subscriptions.
pub(crate) fn fan_out(payload_bytes: usize, subscribers: usize) -> Box<dyn Rig> {
    let mut sender = Zmq::new(XPUB);
    sender.set(XPUB_NODROP, 1);
    sender.set(XPUB_VERBOSER, 1);
    let port = sender.bind();
    let orders = Orders::start(move |work| {
        let mut receiver = Zmq::new(SUB);
        receiver.subscribe_to_all();
        (0..subscribers).for_each(|number| receiver.connect(port, number));
        let mut buffer = vec![0; payload_bytes + 1];
        while let Some(messages) = work.next() {
            // Which connection a message came by is not told: it is the sum that counts.
            for _ in 0..messages * subscribers as u64 {
                assert_eq!(receiver.recv(&mut buffer).len(), payload_bytes);
            }
            work.finish();
        }
    });
    // Every subscription is told of.
    let mut told = [0; 8];
    (0..subscribers).for_each(|_| assert_eq!(sender.recv(&mut told), [1]));
    std::thread::sleep(Duration::from_millis(50));
    Box::new(Sender { sender, orders, numbered: Numbered::new(payload_bytes) })
}

/// One message there and back at a time.
pub(crate) fn round_trip(payload_bytes: usize) -> Box<dyn Rig> {
    let (mut near, mut far) = (Zmq::new(REQ), Zmq::new(REP));
    near.connect(far.bind(), 0);
    let echo = Orders::start(move |work| {
        let mut buffer = vec![0; payload_bytes];
        while let Some(rounds) = work.next() {
            for _ in 0..rounds {
                far.recv(&mut buffer);
                far.send(&buffer);
            }
            work.finish();
        }
    });
    Box::new(Ping { near, echo, payload: vec![1; payload_bytes], answer: vec![0; payload_bytes] })
}

struct Sender {
    sender: Zmq,
    orders: Orders,
    numbered: Numbered,
}

impl Rig for Sender {
    fn burst(&mut self, messages: u64) {
        self.orders.order(messages);
        (0..messages).for_each(|_| self.sender.send(self.numbered.next()));
        self.orders.finished();
    }
}

struct Ping {
    near: Zmq,
    echo: Orders,
    payload: Vec<u8>,
    answer: Vec<u8>,
}

impl Rig for Ping {
    fn burst(&mut self, messages: u64) {
        self.echo.order(messages);
        for _ in 0..messages {
            self.near.send(&self.payload);
            assert!(self.near.recv(&mut self.answer) == self.payload, "another payload came back");
        }
        self.echo.finished();
    }
}
