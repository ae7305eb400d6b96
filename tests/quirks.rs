//! Living with the rest of the family: what stock peers do, played by plain streams.
//!
//! | # | what stock peers do | test |
//! |---|---|---|
//! | 1 | come back without a delay after any clean close | `row_01_a_refused_peer_that_comes_back_at_once` |
//! | 2 | reject without closing; the connection swallows everything | `row_02_a_binding_end_that_swallows_everything` |
//! | 3 | drop the connection at LENGTH = 0 | `row_03_length_zero_is_never_sent_and_skipped` |
//! | 4 | a bare 0x01 makes a connection a zombie | `row_04_hello_is_sent_once_and_skipped_afterwards` |
//! | 5 | accept short identities and truncated DATA_REQ | `row_05_short_identities_and_truncated_requests` |
//! | 6 | look at the first byte before they send HELLO | `row_06_who_speaks_first` |
//! | 7 | pipeline HELLO and DATA in one segment | `row_07_hello_and_data_in_one_segment` |
//! | 8 | write and read on one thread | `row_08_two_ends_that_both_write_first` |
//! | 9 | drop what they cannot queue, ACKs included | `row_09_an_acknowledgement_that_was_dropped` |
//! | 10 | resend with a new msg_id | `row_10_a_resend_under_a_new_id` |
//! | 11 | two sockets that dial each other flap | `row_11_two_that_dial_each_other` |
//! | 12 | a message that found no peer goes to the end of the queue | `row_12_any_order_across_a_reconnection` |
//! | 13 | time out whole frames, not bytes | `row_13_a_frame_that_takes_longer_than_the_timeout` |
//! | 14 | a name with several addresses of one socket | `row_14_closed_right_after_hello` |
//! | 15 | bound nothing | `row_15_everything_is_bounded_here` |
//! | 16 | resend after 5 s without an ACK | `row_16_acknowledged_on_receipt_if_that_is_set` |

mod common;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::SendMode::RoundRobin;
use aiomsg_uring::{AckMode, Address, Backend, DeliveryGuarantee, Engine, Event, Identity, Socket, SocketBuilder};
use aiomsg_uring::{DisconnectReason, RejectReason, blocking};
use common::{
    DATA, DATA_REQ, HEARTBEAT, HELLO, PATIENCE, RawPeer, data, data_req, eventually, frame, hello, is_available,
    number, pattern, watched,
};

macro_rules! on_both_backends {
    ($($test:ident,)*) => {
        on_both_backends!(@ uring, Uring, $($test,)*);
        on_both_backends!(@ poll, Poll, $($test,)*);
    };
    (@ $row:ident, $backend:ident, $($test:ident,)*) => {
        mod $row {
            $(
                #[test]
                fn $test() {
                    if crate::is_available(aiomsg_uring::Backend::$backend) {
                        let name = concat!(module_path!(), "::", stringify!($test));
                        crate::watched(name, || super::$test(aiomsg_uring::Backend::$backend));
                    }
                }
            )*
        }
    };
}

on_both_backends!(
    row_01_a_refused_peer_that_comes_back_at_once,
    row_02_a_binding_end_that_swallows_everything,
    row_03_length_zero_is_never_sent_and_skipped,
    row_04_hello_is_sent_once_and_skipped_afterwards,
    row_05_short_identities_and_truncated_requests,
    row_06_who_speaks_first,
    row_07_hello_and_data_in_one_segment,
    row_08_two_ends_that_both_write_first,
    row_09_an_acknowledgement_that_was_dropped,
    row_10_a_resend_under_a_new_id,
    row_11_two_that_dial_each_other,
    row_12_any_order_across_a_reconnection,
    row_13_a_frame_that_takes_longer_than_the_timeout,
    row_14_closed_right_after_hello,
    row_15_everything_is_bounded_here,
    row_16_acknowledged_on_receipt_if_that_is_set,
);

fn socket(backend: Backend, set: impl FnOnce(SocketBuilder) -> SocketBuilder) -> blocking::Socket {
    let engine = Engine::builder().backend(backend).shards(2).build().expect("an engine");
    set(Socket::builder()).engine(&engine).build_blocking().expect("a socket")
}

fn at_least_once(builder: SocketBuilder) -> SocketBuilder {
    builder.send_mode(RoundRobin).delivery_guarantee(DeliveryGuarantee::AtLeastOnce)
}

fn bound(socket: &blocking::Socket) -> Address {
    socket.bind("127.0.0.1:0").expect("bound")
}

#[track_caller]
fn recv(socket: &blocking::Socket) -> Vec<u8> {
    socket.recv_timeout(PATIENCE).expect("a message in time").to_vec()
}

#[track_caller]
fn event(socket: &blocking::Socket, wanted: impl Fn(&Event) -> bool) -> Event {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(event) = socket.event_timeout(PATIENCE).filter(&wanted) {
            return event;
        }
    }
    panic!("no such event in {PATIENCE:?}");
}

fn row_01_a_refused_peer_that_comes_back_at_once(backend: Backend) {
    let server = socket(backend, |builder| builder);
    let address = bound(&server);
    let mut elder = RawPeer::connected(&address, 1);
    let (mut connections, began) = (0, Instant::now());
    // As the Python connecting end: a duplicate that dials again the moment it is closed.
    while began.elapsed() < Duration::from_secs(2) {
        let mut again = RawPeer::dial(&address);
        again.send(&hello(1));
        again.wait_until_closed();
        connections += 1;
        elder.send(&frame(HEARTBEAT, b""));
    }
    assert!(connections <= 20, "{connections} connections in 2 s");
    eventually("all are counted", || server.stats().rejects == connections);
    assert_eq!(server.peers(), [Identity::from([1; 16])]);
    elder.send(&data(b"undisturbed"));
    assert_eq!(recv(&server), b"undisturbed");
}

fn row_02_a_binding_end_that_swallows_everything(backend: Backend) {
    let swallowing = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let sender = socket(backend, |builder| {
        builder.send_mode(RoundRobin).heartbeat_interval(Duration::from_millis(150)).receive_timeout(PATIENCE)
    });
    let good_address = bound(&sender);
    sender.connect(swallowing.local_addr().expect("an address")).expect("connecting");
    // It says HELLO and then nothing, as one that has rejected without closing.
    let mut zombie = RawPeer::accept(&swallowing);
    zombie.shake_hands(1);
    let mut good = RawPeer::connected(&good_address, 2);
    sender.wait_for_peers(2, PATIENCE).expect("peers in time");
    let suspect = Event::Suspect { identity: Identity::from([1; 16]) };
    let mut seen = false;
    eventually("it is suspect", || {
        good.send(&frame(HEARTBEAT, b""));
        seen |= std::iter::from_fn(|| sender.try_event()).any(|event| event == suspect);
        seen
    });
    (0..20).for_each(|value| sender.send(&number(value)).expect("sent"));
    (0..20).for_each(|value| assert_eq!(good.read_data(), number(value), "swallowed"));
}

fn row_03_length_zero_is_never_sent_and_skipped(backend: Backend) {
    let server = socket(backend, |builder| builder.heartbeat_interval(Duration::from_millis(50)));
    let mut peer = RawPeer::connected(&bound(&server), 1);
    // An empty payload is a frame of length 1. The reader fails at a length of 0.
    server.send("").expect("sent");
    assert_eq!(peer.read_data(), b"");
    assert_eq!(peer.read_frame(), Some((HEARTBEAT, vec![])));
    peer.send(&[vec![0; 4], data(b"after"), vec![0; 12], data(b"nothing")].concat());
    assert_eq!((recv(&server), recv(&server)), (b"after".to_vec(), b"nothing".to_vec()));
    assert_eq!(server.stats().disconnects, 0);
}

fn row_04_hello_is_sent_once_and_skipped_afterwards(backend: Backend) {
    let server = socket(backend, |builder| builder.heartbeat_interval(Duration::from_millis(50)));
    let mut peer = RawPeer::connected(&bound(&server), 1);
    peer.send(&[frame(HELLO, b""), hello(1), hello(2), data(b"still here")].concat());
    assert_eq!(recv(&server), b"still here");
    assert_eq!(server.peers(), [Identity::from([1; 16])]);
    for value in 0..10 {
        server.send(&number(value)).expect("sent");
        loop {
            let (kind, _) = peer.read_frame().expect("a frame");
            assert_ne!(kind, HELLO, "a second HELLO");
            if kind == DATA {
                break;
            }
        }
    }
}

fn row_05_short_identities_and_truncated_requests(backend: Backend) {
    let server = socket(backend, |builder| builder);
    let address = bound(&server);
    for length in 0..16 {
        let mut peer = RawPeer::dial(&address);
        peer.send(&frame(HELLO, &[&[1][..], &vec![5; length]].concat()));
        // Ours may be on its way already; a message never is.
        while let Some((kind, _)) = peer.read_frame() {
            assert_eq!(kind, HELLO);
        }
    }
    assert!(server.peers().is_empty());
    let mut peer = RawPeer::connected(&address, 1);
    for length in 0..16 {
        peer.send(&frame(DATA_REQ, &vec![7; length]));
    }
    peer.send(&data_req([7; 16], b""));
    assert_eq!(recv(&server), b"", "an empty payload is a message");
    assert!(server.try_recv().is_err());
    assert_eq!(peer.read_ack(), [7; 16]);
    // What we send has its sixteen bytes.
    let sender = socket(backend, at_least_once);
    let mut peer = RawPeer::connected(&bound(&sender), 1);
    sender.send("").expect("sent");
    assert_eq!(peer.read_data_req().1, b"");
}

fn row_06_who_speaks_first(backend: Backend) {
    let server = socket(backend, |builder| builder);
    let mut peer = RawPeer::dial(&bound(&server));
    assert!(peer.is_silent_for(Duration::from_millis(150)), "the binding end spoke first");
    peer.send(&hello(1)[..1]);
    assert_eq!(&peer.expect_hello(), server.identity().as_bytes());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let client = socket(backend, |builder| builder);
    client.connect(listener.local_addr().expect("an address")).expect("connecting");
    let mut peer = RawPeer::accept(&listener);
    assert_eq!(&peer.expect_hello(), client.identity().as_bytes());
    assert!(client.peers().is_empty(), "a peer before its HELLO");
}

fn row_07_hello_and_data_in_one_segment(backend: Backend) {
    let server = socket(backend, |builder| builder);
    let mut peer = RawPeer::dial(&bound(&server));
    peer.send(&[hello(1), data(b"one"), data_req([3; 16], b"two")].concat());
    assert_eq!((recv(&server), recv(&server)), (b"one".to_vec(), b"two".to_vec()));
    // The other way round: a binding end that answers with both.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let client = socket(backend, |builder| builder);
    client.connect(listener.local_addr().expect("an address")).expect("connecting");
    let mut peer = RawPeer::accept(&listener);
    peer.expect_hello();
    peer.send(&[hello(1), data(b"three")].concat());
    assert_eq!(recv(&client), b"three");
}

fn row_08_two_ends_that_both_write_first(backend: Backend) {
    const COUNT: usize = 300;
    // Our application does not receive until all is sent; the peer writes all of its own before it reads.
    let server = socket(backend, |builder| {
        let builder = builder.receive_bytes_max(256 << 10).send_buffer_bytes(64 << 10).recv_buffer_bytes(64 << 10);
        builder.heartbeat_interval(Duration::from_millis(100)).receive_timeout(Duration::from_millis(1_200))
    });
    let address = bound(&server);
    let mut peer = RawPeer::dial_narrow(&address, 16 << 10);
    peer.shake_hands(1);
    server.wait_for_peers(1, PATIENCE).expect("a peer in time");
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            (0..COUNT).for_each(|index| peer.send(&data(&pattern(20_000 + index))));
            peer
        });
        (0..COUNT).for_each(|index| server.send(pattern(20_000 + index)).expect("sent"));
        // Far longer than the timeout, in which this end does not read: that is no silence.
        thread::sleep(Duration::from_millis(3_000));
        assert_eq!(server.stats().disconnects, 0, "the peer was taken for dead");
        for index in 0..COUNT {
            assert!(recv(&server) == pattern(20_000 + index), "message {index} came altered");
        }
        let mut peer = writing.join().expect("all written");
        for index in 0..COUNT {
            assert!(peer.read_data() == pattern(20_000 + index), "message {index} came altered");
        }
    });
}

fn row_09_an_acknowledgement_that_was_dropped(backend: Backend) {
    let sender = socket(backend, |builder| at_least_once(builder).resend(Duration::from_millis(200), 10));
    let mut peer = RawPeer::connected(&bound(&sender), 1);
    (0..256).for_each(|value| sender.send(&number(value)).expect("sent"));
    // All are received, and every second ACK is lost in the peer's full queue.
    let first: Vec<_> = (0..256).map(|_| peer.read_data_req()).collect();
    let (kept, lost): (Vec<_>, Vec<_>) = first.into_iter().partition(|(_, payload)| payload[7] % 2 == 0);
    kept.iter().for_each(|(msg_id, _)| peer.acknowledge(msg_id));
    let again: BTreeSet<_> = (0..128).map(|_| peer.read_data_req()).collect();
    assert_eq!(again, lost.iter().cloned().collect());
    lost.iter().for_each(|(msg_id, _)| peer.acknowledge(msg_id));
    eventually("all are acknowledged", || sender.stats().messages_acknowledged == 256);
}

fn row_10_a_resend_under_a_new_id(backend: Backend) {
    let server = socket(backend, |builder| builder);
    let mut peer = RawPeer::connected(&bound(&server), 1);
    for attempt in 0..5 {
        peer.send(&data_req([attempt; 16], b"the same again"));
        // Not to be recognised: it is delivered, and acknowledged under its new id.
        assert_eq!(recv(&server), b"the same again");
        assert!(server.try_recv().is_err());
        assert_eq!(peer.read_ack(), [attempt; 16]);
    }
    assert_eq!(server.stats().duplicates_removed, 0);
}

fn row_11_two_that_dial_each_other(backend: Backend) {
    let [one, other] = [(); 2].map(|()| socket(backend, |builder| builder));
    one.connect(bound(&other)).expect("connecting");
    other.connect(bound(&one)).expect("connecting");
    for socket in [&one, &other] {
        socket.wait_for_peers(1, PATIENCE).expect("a peer in time");
    }
    // They may have kept different connections; that has to settle, and to stay so.
    let settled = |connects: u64| one.stats().connects + other.stats().connects == connects;
    let mut connects = 0;
    eventually("no flapping for 2 s", || {
        connects = one.stats().connects + other.stats().connects;
        thread::sleep(Duration::from_secs(2));
        settled(connects) && one.peers().len() == 1 && other.peers().len() == 1
    });
    for value in 0..10 {
        one.send(&number(value)).expect("sent");
        assert_eq!(recv(&other), number(value));
        other.send(&number(value)).expect("sent");
        assert_eq!(recv(&one), number(value));
    }
    assert!(one.stats().rejects + other.stats().rejects < 20, "at a gallop");
}

fn row_12_any_order_across_a_reconnection(backend: Backend) {
    let server = socket(backend, |builder| builder);
    let address = bound(&server);
    let mut peer = RawPeer::connected(&address, 1);
    peer.send(&data(&number(1)));
    peer.close();
    eventually("it is gone", || server.peers().is_empty());
    // What found no peer (2) comes behind what was sent later (3, 4).
    let mut peer = RawPeer::connected(&address, 1);
    [3, 4, 2].iter().for_each(|value| peer.send(&data(&number(*value))));
    let got: Vec<_> = (0..4).map(|_| recv(&server)[7]).collect();
    assert_eq!(got, [1, 3, 4, 2], "as it comes, each once");
}

fn row_13_a_frame_that_takes_longer_than_the_timeout(backend: Backend) {
    let server = socket(backend, |builder| {
        builder.heartbeat_interval(Duration::from_millis(100)).receive_timeout(Duration::from_millis(1_200))
    });
    let address = bound(&server);
    for length in [1_000, 300_000] {
        let mut peer = RawPeer::connected(&address, 1);
        let message = data(&pattern(length));
        // 3 s for one frame, never silent for as long as the timeout: here bytes count as life.
        for piece in message.chunks(message.len().div_ceil(30)) {
            peer.send(piece);
            thread::sleep(Duration::from_millis(100));
        }
        assert!(recv(&server) == pattern(length));
        peer.close();
        eventually("it is gone", || server.peers().is_empty());
    }
    let reasons: Vec<_> = std::iter::from_fn(|| server.try_event())
        .filter_map(|event| if let Event::Disconnected { reason, .. } = event { Some(reason) } else { None })
        .collect();
    assert_eq!(reasons, [DisconnectReason::ClosedByPeer, DisconnectReason::ClosedByPeer]);
}

fn row_14_closed_right_after_hello(backend: Backend) {
    // One listener whose connections live, and one that closes right after HELLO, as a socket does that
    // is connected by another of its addresses already.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let client = socket(backend, |builder| {
        builder.reconnect_delay(Duration::from_millis(50), Duration::from_millis(100)).heartbeat_interval(PATIENCE / 5)
    });
    client.connect(listener.local_addr().expect("an address")).expect("connecting");
    listener.set_nonblocking(true).expect("a plain setting");
    let (mut connections, began) = (0, Instant::now());
    while began.elapsed() < Duration::from_secs(4) {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a plain setting");
                let mut peer = RawPeer::from_stream(stream);
                peer.expect_hello();
                peer.send(&hello(1));
                peer.close();
                connections += 1;
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    assert!((1..=8).contains(&connections), "{connections} connections in 4 s: no back-off to seconds");
    let delays: Vec<_> = std::iter::from_fn(|| client.try_event())
        .filter_map(|event| if let Event::Reconnecting { delay, .. } = event { Some(delay) } else { None })
        .collect();
    assert!(delays.iter().any(|delay| *delay >= Duration::from_secs(1)), "{delays:?}");
}

fn row_15_everything_is_bounded_here(backend: Backend) {
    let server = socket(backend, |builder| {
        let builder = builder.message_bytes_max(10_000).handshake_timeout(Duration::from_millis(300)).peers_max(3);
        builder.receive_bytes_max(64 << 10).recv_buffer_bytes(16 << 10)
    });
    let address = bound(&server);
    // Frame length, on the word of a prefix.
    let mut peer = RawPeer::connected(&address, 1);
    peer.send(&u32::MAX.to_be_bytes());
    peer.send(&[DATA]);
    peer.wait_until_closed();
    event(&server, |event| matches!(event, Event::Disconnected { reason: DisconnectReason::FrameTooLong { .. }, .. }));
    // Handshake time.
    RawPeer::dial(&address).wait_until_closed();
    event(&server, |event| matches!(event, Event::Rejected { reason: RejectReason::TooSlow, .. }));
    // The receive queue: the peer is made to wait, nothing is lost.
    let mut peer = RawPeer::connected(&address, 1);
    let writing = thread::spawn(move || (0..2_000).for_each(|index| peer.send(&data(&pattern(9_000 + index % 10)))));
    eventually("it is made to wait", || server.stats().receive_pauses > 0);
    thread::sleep(Duration::from_millis(100));
    assert!(server.stats().receive_bytes <= (64 << 10) + (512 << 10), "{:?}", server.stats());
    (0..2_000).for_each(|index| assert!(recv(&server) == pattern(9_000 + index % 10)));
    writing.join().expect("all written");
}

fn row_16_acknowledged_on_receipt_if_that_is_set(backend: Backend) {
    // A stock sender's patience, shortened: without an ACK in this time it sends again under a new id.
    let patience = Duration::from_millis(300);
    for (ack_mode, duplicates) in [(AckMode::OnReceipt, false), (AckMode::Automatic, true)] {
        let server = socket(backend, |builder| builder.ack_mode(ack_mode));
        let mut peer = RawPeer::connected(&bound(&server), 1);
        peer.send(&data_req([1; 16], b"work"));
        let sent_again = peer.is_silent_for(patience);
        if sent_again {
            peer.send(&data_req([2; 16], b"work"));
        }
        assert_eq!(sent_again, duplicates, "{ack_mode:?}");
        // The application lets messages wait for longer than that.
        assert_eq!(recv(&server), b"work");
        let second = server.recv_timeout(Duration::from_millis(200)).ok();
        assert_eq!(second.is_some(), duplicates, "{ack_mode:?}");
    }
}
