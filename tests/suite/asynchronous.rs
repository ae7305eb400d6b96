//! Calls that only sharded sockets have: futures and what becomes of them when they are dropped,
//! streams, clones on many threads, engines with several sockets and shards, blocking extras.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::SendMode::{self, Publish, RoundRobin};
use aiomsg_uring::{Backend, BackendKind, DeliveryGuarantee, Engine, Event, RecvError, Socket, TryRecvError, blocking};
use bytes::Bytes;
use futures_lite::{FutureExt, StreamExt, future};
use pollster::block_on;

use crate::common::{PATIENCE, number};

backend_tests!([
    engine_tells_what_it_is,
    sockets_share_an_engine,
    several_shards,
    messages_as_streams,
    events_as_a_stream,
    an_abandoned_recv_loses_nothing,
    an_abandoned_send_sends_once_or_not_at_all,
    clones_send_and_receive_on_threads,
    dropping_one_clone_changes_nothing,
    closing_ends_what_waits,
    blocking_calls_with_timeouts,
    blocking_iterators,
    blocking_and_async_are_one_socket,
    what_is_not_there_is_refused,
]);

fn engine(backend: Backend) -> Engine {
    Engine::builder().backend(backend).shards(1).build().expect("an engine")
}

fn socket(engine: &Engine, mode: SendMode) -> Socket {
    Socket::builder().engine(engine).send_mode(mode).build().expect("a socket")
}

/// A binding and a connecting socket on one engine that have found each other.
fn pair(backend: Backend, mode: SendMode) -> (Socket, Socket) {
    let engine = engine(backend);
    let (binding, connecting) = (socket(&engine, mode), socket(&engine, mode));
    block_on(async {
        let address = binding.bind("127.0.0.1:0").await.expect("bound");
        connecting.connect(address).await.expect("connecting");
        binding.wait_for_peers(1, PATIENCE).await.expect("a peer");
        connecting.wait_for_peers(1, PATIENCE).await.expect("a peer");
    });
    (binding, connecting)
}

fn value_of(message: &Bytes) -> u64 {
    u64::from_be_bytes(message[..].try_into().expect("a number"))
}

fn engine_tells_what_it_is(backend: Backend) {
    let engine = engine(backend);
    let info = engine.info();
    let (kind, name) = match backend {
        Backend::Uring => (BackendKind::Uring, "uring"),
        _ => (BackendKind::Poll, "poll"),
    };
    assert_eq!(info.backend, kind);
    assert_eq!(info.backend.to_string(), name);
    assert_eq!(info.shards, 1);
    assert!(!info.inline);
    assert!(!info.reason.is_empty());
}

fn sockets_share_an_engine(backend: Backend) {
    let engine = engine(backend);
    let publisher = socket(&engine, Publish);
    let subscribers: Vec<_> = (0..20).map(|_| socket(&engine, Publish)).collect();
    block_on(async {
        let address = publisher.bind("127.0.0.1:0").await.expect("bound");
        for subscriber in &subscribers {
            subscriber.connect(address.clone()).await.expect("connecting");
        }
        publisher.wait_for_peers(20, PATIENCE).await.expect("peers");
        for value in 0..500 {
            publisher.send(&number(value)).await.expect("sent");
        }
        for subscriber in &subscribers {
            for value in 0..500 {
                assert_eq!(value_of(&subscriber.recv().await.expect("received")), value);
            }
        }
    });
}

fn several_shards(backend: Backend) {
    // However many shards there are, one socket's peers are found and served.
    let engine = Engine::builder().backend(backend).shards(2).build().expect("an engine");
    let publisher = socket(&engine, Publish);
    let subscribers: Vec<_> = (0..8).map(|_| socket(&engine, Publish)).collect();
    block_on(async {
        let address = publisher.bind("127.0.0.1:0").await.expect("bound");
        for subscriber in &subscribers {
            subscriber.connect(address.clone()).await.expect("connecting");
        }
        publisher.wait_for_peers(8, PATIENCE).await.expect("peers");
        for value in 0..500 {
            publisher.send(&number(value)).await.expect("sent");
        }
        for subscriber in &subscribers {
            for value in 0..500 {
                assert_eq!(value_of(&subscriber.recv().await.expect("received")), value);
            }
        }
    });
}

fn messages_as_streams(backend: Backend) {
    let (sender, receiver) = pair(backend, Publish);
    block_on(async {
        for value in 0..300 {
            sender.send(&number(value)).await.expect("sent");
        }
        let first: Vec<_> = receiver.messages().take(100).map(|message| value_of(&message)).collect().await;
        assert!(first.into_iter().eq(0..100));
        let with_identity: Vec<_> = receiver.identity_messages().take(100).collect().await;
        assert!(with_identity.iter().all(|(identity, _)| *identity == sender.identity()));
        assert!(with_identity.iter().map(|(_, message)| value_of(message)).eq(100..200));
        // A stream takes nothing ahead: the rest is there for whoever asks.
        for value in 200..300 {
            assert_eq!(value_of(&receiver.recv().await.expect("received")), value);
        }
        // A socket that is closed ends the stream.
        receiver.close().await;
        assert_eq!(receiver.messages().next().await, None);
    });
}

fn events_as_a_stream(backend: Backend) {
    let (binding, connecting) = pair(backend, Publish);
    let peer = connecting.identity();
    block_on(async {
        let event = binding.next_event().await.expect("an event");
        assert!(matches!(event, Event::Connected { identity, .. } if identity == peer), "{event}");
        connecting.close().await;
        let mut events = Box::pin(binding.events());
        let event = events.next().await.expect("an event");
        assert!(matches!(event, Event::Disconnected { identity, .. } if identity == peer), "{event}");
    });
}

fn an_abandoned_recv_loses_nothing(backend: Backend) {
    const COUNT: u64 = 5_000;
    let (sender, receiver) = pair(backend, Publish);
    let sending = thread::spawn(move || {
        block_on(async {
            for value in 0..COUNT {
                sender.send(&number(value)).await.expect("sent");
                if value % 64 == 0 {
                    thread::sleep(Duration::from_micros(200));
                }
            }
            sender.close().await;
        });
    });
    block_on(async {
        let mut next = 0;
        let mut abandoned = 0;
        while next < COUNT {
            // Each future is polled once or twice, then dropped.
            let received = async { Some(receiver.recv().await.expect("received")) };
            let given_up = async {
                if next % 2 == 0 {
                    future::yield_now().await;
                }
                None
            };
            match received.or(given_up).await {
                Some(message) => {
                    assert_eq!(value_of(&message), next);
                    next += 1;
                }
                None => abandoned += 1,
            }
        }
        assert!(abandoned > 0, "nothing was abandoned, so nothing was tested");
    });
    sending.join().expect("sent");
}

fn an_abandoned_send_sends_once_or_not_at_all(backend: Backend) {
    let engine = engine(backend);
    let sender =
        Socket::builder().engine(&engine).send_mode(RoundRobin).log_bytes_max(1 << 20).message_bytes_max(1 << 19);
    let sender = sender.build().expect("a socket");
    let receiver = socket(&engine, RoundRobin);
    block_on(async {
        let address = sender.bind("127.0.0.1:0").await.expect("bound");
        // Nobody is there: the log fills up, and futures of send wait.
        let mut value = 0_u64;
        let message_of = |value: u64| [&number(value)[..], &[0; 1_000]].concat();
        while sender.try_send(message_of(value)).is_ok() {
            value += 1;
        }
        let accepted = value;
        let in_place = async { sender.send_with(1_008, |to| to[..8].fill(0xFF)).await.is_ok() };
        assert!(!in_place.or(async { false }).await, "a full log took a message");
        for _ in 0..10 {
            let message = message_of(u64::MAX);
            let sent = async { sender.send(&message).await.is_ok() };
            assert!(!sent.or(async { false }).await, "a full log took a message");
        }
        receiver.connect(address).await.expect("connecting");
        let last = message_of(accepted);
        sender.send_with(last.len(), |to| to.copy_from_slice(&last)).await.expect("sent");
        for value in 0..=accepted {
            let message = receiver.recv().await.expect("received");
            assert_eq!(message[..8], number(value), "an abandoned message went out");
        }
    });
}

fn clones_send_and_receive_on_threads(backend: Backend) {
    const SENDERS: u64 = 4;
    const SHARE: u64 = 10_000;
    let (sender, receiver) = pair(backend, RoundRobin);
    let received = Arc::new(AtomicU64::new(0));
    let mut all = BTreeSet::new();
    thread::scope(|scope| {
        for thread in 0..SENDERS {
            let sender = blocking::Socket::from(sender.clone());
            scope.spawn(move || {
                for value in 0..SHARE {
                    sender.send(&number(thread << 32 | value)).expect("sent");
                }
            });
        }
        let receivers: Vec<_> = (0..3)
            .map(|_| {
                let receiver = blocking::Socket::from(receiver.clone());
                let received = received.clone();
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    while received.load(Ordering::SeqCst) < SENDERS * SHARE {
                        if let Ok(message) = receiver.recv_timeout(Duration::from_millis(20)) {
                            mine.push(value_of(&message));
                            received.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    mine
                })
            })
            .collect();
        for receiver in receivers {
            let mine = receiver.join().expect("received");
            // What one thread sent is seen in its order, by whoever sees it.
            for thread in 0..SENDERS {
                assert!(mine.iter().filter(|value| **value >> 32 == thread).is_sorted());
            }
            all.extend(mine);
        }
    });
    assert_eq!(all.len() as u64, SENDERS * SHARE, "lost or doubled");
}

fn dropping_one_clone_changes_nothing(backend: Backend) {
    let (sender, receiver) = pair(backend, Publish);
    block_on(async {
        for value in 0..100 {
            sender.send(&number(value)).await.expect("sent");
        }
        for value in 0..100 {
            let clone = receiver.clone();
            assert_eq!(value_of(&clone.recv().await.expect("received")), value);
        }
        drop(sender.clone());
        sender.send("still there").await.expect("sent");
        assert_eq!(receiver.recv().await.expect("received"), "still there");
    });
}

fn closing_ends_what_waits(backend: Backend) {
    let (one, _other) = pair(backend, Publish);
    let waiting = one.clone();
    let receiver = thread::spawn(move || block_on(waiting.recv()).is_err());
    let waiting = one.clone();
    let for_peers = thread::spawn(move || block_on(waiting.wait_for_peers(5, PATIENCE)).is_err());
    thread::sleep(Duration::from_millis(50));
    let began = Instant::now();
    block_on(one.close());
    assert!(receiver.join().expect("no panic"), "recv on a closed socket");
    assert!(for_peers.join().expect("no panic"), "wait_for_peers on a closed socket");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(matches!(one.try_recv(), Err(TryRecvError::Never(RecvError::Closed))));
}

fn blocking_calls_with_timeouts(backend: Backend) {
    let engine = engine(backend);
    let builder =
        Socket::builder().engine(&engine).log_bytes_max(1 << 20).message_bytes_max(1 << 19).linger(Duration::ZERO);
    let socket = builder.build_blocking().expect("a socket");
    let timeout = Duration::from_millis(100);
    let waited = |call: &dyn Fn() -> bool| {
        let began = Instant::now();
        assert!(call(), "not a timeout");
        began.elapsed()
    };
    assert!(waited(&|| socket.recv_timeout(timeout).is_err()) >= timeout);
    assert!(waited(&|| socket.wait_for_peers(1, timeout).is_err()) >= timeout);
    assert!(socket.send_timeout("there is room", timeout).is_ok());
    while socket.try_send(&[0; 1_000]).is_ok() {}
    assert!(waited(&|| socket.send_timeout(&[0; 1_000], timeout).is_err()) >= timeout);
}

fn blocking_iterators(backend: Backend) {
    let (sender, receiver) = pair(backend, Publish);
    let (sender, receiver) = (blocking::Socket::from(sender), blocking::Socket::from(receiver));
    for value in 0..200 {
        sender.send(&number(value)).expect("sent");
    }
    assert!(receiver.messages().take(100).map(|message| value_of(&message)).eq(0..100));
    for (value, (identity, message)) in (100..200).zip(receiver.identity_messages()) {
        assert_eq!((identity, value_of(&message)), (sender.identity(), value));
    }
    receiver.close();
    assert_eq!(receiver.messages().next(), None);
}

fn blocking_and_async_are_one_socket(backend: Backend) {
    let (sender, receiver) = pair(backend, Publish);
    let blocking = blocking::Socket::from(receiver.clone());
    assert_eq!(blocking.identity(), receiver.identity());
    block_on(async {
        sender.send("one").await.expect("sent");
        sender.send(String::from("two")).await.expect("sent");
        sender.send(vec![b'3']).await.expect("sent");
        assert_eq!(blocking.recv().expect("received"), "one");
        assert_eq!(receiver.recv().await.expect("received"), "two");
        assert_eq!(Socket::from(blocking).recv().await.expect("received"), "3");
    });
}

fn what_is_not_there_is_refused(backend: Backend) {
    let engine = engine(backend);
    let builder = Socket::builder().engine(&engine).delivery_guarantee(DeliveryGuarantee::AtLeastOnce);
    let text = builder.send_mode(Publish).build().expect_err("never for PUBLISH").to_string();
    assert!(!text.is_empty());
}
