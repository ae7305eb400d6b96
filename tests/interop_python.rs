//! Interoperability with the stock Python library, `aiomsg` from PyPI: every legal combination of who
//! binds, who sends, send mode and guarantee, on each kind of socket, 1,000 messages each, exact and in order.
//!
//! Where the library comes from, and what happens without it, is in `common/python.rs`.

mod common;

use aiomsg_uring::{DeliveryGuarantee, SendMode};
use common::{Kind, PATIENCE, PythonPeer, Sock, free_port, is_available, python, socket_addr, watched};
use serde_json::json;

const COUNT: u64 = 1_000;
/// How messages can be sent; publishing at least once is not legal.
const WAYS: [(SendMode, DeliveryGuarantee); 3] = [
    (SendMode::Publish, DeliveryGuarantee::AtMostOnce),
    (SendMode::RoundRobin, DeliveryGuarantee::AtMostOnce),
    (SendMode::RoundRobin, DeliveryGuarantee::AtLeastOnce),
];

/// Connects the two, either way round.
fn join(ours: &Sock, python: &mut PythonPeer, ours_binds: bool) {
    if ours_binds {
        let port = socket_addr(&ours.bind_loopback()).port();
        python.ask(json!({"do": "connect", "port": port}));
    } else {
        let port = free_port();
        python.ask(json!({"do": "bind", "port": port}));
        ours.connect(format!("127.0.0.1:{port}"));
    }
    ours.wait_for_peers(1);
}

fn texts(prefix: &str) -> Vec<String> {
    (0..COUNT).map(|index| format!("{prefix}{index}")).collect()
}

/// Receives exactly these, from this peer.
fn expect(ours: &Sock, texts: Vec<String>, identity: String) {
    ours.run(move |socket| {
        for text in &texts {
            let (from, message) = socket.recv_identity();
            assert_eq!((message, from.to_string()), (text.clone().into(), identity.clone()));
        }
    });
}

fn send(ours: &Sock, texts: Vec<String>) {
    ours.run(move |socket| {
        texts.iter().for_each(|text| socket.send(text.as_bytes()));
        socket.flush();
    });
}

/// Every legal combination of who binds, who sends, send mode and guarantee.
fn every_combination(kind: Kind) {
    let Some(python) = python() else { return };
    for ours_binds in [true, false] {
        for ours_sends in [true, false] {
            for (mode, guarantee) in WAYS {
                let case = format!("{kind:?} {mode} {guarantee:?}, ours binds: {ours_binds}, ours sends: {ours_sends}");
                let ours = kind.socket_with(move |builder| builder.send_mode(mode).delivery_guarantee(guarantee));
                let mut peer = PythonPeer::start(python, mode, guarantee);
                join(&ours, &mut peer, ours_binds);
                if ours_sends {
                    peer.order(&json!({"do": "receive", "count": COUNT}));
                    send(&ours, texts("from ours "));
                    let received = peer.answer();
                    assert_eq!(received["messages"], json!(texts("from ours ")), "{case}");
                    assert_eq!(received["identities"], json!([ours.identity().to_string()]), "{case}");
                } else {
                    let identity = peer.ask(json!({"do": "identity"}))["identity"].as_str().map(str::to_owned);
                    peer.ask(json!({"do": "send", "count": COUNT, "prefix": "from python "}));
                    expect(&ours, texts("from python "), identity.expect("an identity"));
                    // Asking for more says that the last one is done with.
                    assert!(ours.run(|socket| socket.try_recv()).is_err(), "{case}: a duplicate");
                }
                // Whoever asked for acknowledgements has one for each message.
                assert_eq!(ours.close(), 0, "{case}");
                common::eventually("all is acknowledged", || peer.ask(json!({"do": "pending"}))["pending"] == 0);
                assert_eq!(peer.ask(json!({"do": "close"})), json!({"done": "close"}), "{case}");
            }
        }
    }
}

/// What the stock peer sends back by identity comes back to us.
fn echo(kind: Kind) {
    let Some(python) = python() else { return };
    for mode in [SendMode::Publish, SendMode::RoundRobin] {
        let ours = kind.socket(mode);
        let mut peer = PythonPeer::start(python, mode, DeliveryGuarantee::AtMostOnce);
        join(&ours, &mut peer, true);
        peer.order(&json!({"do": "echo", "count": COUNT}));
        send(&ours, texts("echo "));
        ours.run(|socket| {
            for text in texts("echo ") {
                assert_eq!(socket.recv_within(PATIENCE).as_deref(), Some(text.as_bytes()));
            }
        });
        assert_eq!(peer.answer(), json!({"done": "echo"}));
    }
}

/// One of ours publishes to two stock subscribers, one of which comes later and one of which goes.
fn several_subscribers(kind: Kind) {
    let Some(python) = python() else { return };
    let ours = kind.socket(SendMode::Publish);
    let port = socket_addr(&ours.bind_loopback()).port();
    let mut peers = [(); 2].map(|()| PythonPeer::start(python, SendMode::Publish, DeliveryGuarantee::AtMostOnce));
    for peer in &mut peers {
        peer.ask(json!({"do": "connect", "port": port}));
    }
    ours.wait_for_peers(2);
    send(&ours, texts("both "));
    for peer in &mut peers {
        assert_eq!(peer.ask(json!({"do": "receive", "count": COUNT}))["messages"], json!(texts("both ")));
    }
    let [mut staying, leaving] = peers;
    drop(leaving);
    common::eventually("one is left", || ours.peers().len() == 1);
    send(&ours, texts("one "));
    assert_eq!(staying.ask(json!({"do": "receive", "count": COUNT}))["messages"], json!(texts("one ")));
}

macro_rules! on_every_kind {
    ($($row:ident: $kind:ident),*) => { $(
        mod $row {
            use super::*;
            on_every_kind!(@tests $kind, every_combination, echo, several_subscribers);
        }
    )* };
    (@tests $kind:ident, $($test:ident),*) => { $(
        #[test]
        fn $test() {
            if is_available(Kind::$kind.backend) {
                watched(concat!(module_path!(), "::", stringify!($test)), || super::$test(Kind::$kind));
            }
        }
    )* };
}

on_every_kind!(
    sharded_uring: SHARDED_URING,
    sharded_poll: SHARDED_POLL,
    inline_uring: INLINE_URING,
    inline_poll: INLINE_POLL
);
