//! What only inline engines have: one thread that drives and waits for many sockets.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::DeliveryGuarantee::AtLeastOnce;
use aiomsg_uring::SendMode::{self, Publish, RoundRobin};
use aiomsg_uring::inline::{Engine, Socket};
use aiomsg_uring::{Backend, BindError, ControlError, EngineError, LagLimit, SlowPolicy, TryRecvError, Unkeyed};

use crate::common::{Log, PATIENCE, RawPeer, data, number, pattern};

backend_tests!([
    engine_tells_what_it_is,
    ids_are_dense,
    waiting_on_many_sockets,
    round_trips_on_one_thread,
    round_trips_of_who_spins,
    sending_only_appends,
    much_unsent_goes_out_by_itself,
    a_full_log_drives_the_engine,
    who_is_ahead_of_a_peer_that_takes_nothing_goes_on,
    a_send_behind_mail_that_is_not_due_sleeps,
    a_send_that_conflation_cannot_help_sleeps,
    poll_waits_as_long_as_asked,
    deadlines_are_told,
    recv_gives_up_in_time,
    calls_from_within_the_engine,
    an_engine_outlives_its_sockets,
    closing_on_one_thread,
    what_came_before_a_close_is_read,
]);

fn engine(backend: Backend) -> Engine {
    Engine::builder().backend(backend).build().expect("an engine")
}

fn socket(engine: &Engine, mode: SendMode) -> Socket {
    aiomsg_uring::Socket::builder().send_mode(mode).build_inline(engine).expect("a socket")
}

/// A binding and a connecting socket on one engine that have found each other.
fn pair(engine: &Engine, mode: SendMode) -> (Socket, Socket) {
    let (binding, connecting) = (socket(engine, mode), socket(engine, mode));
    connecting.connect(binding.bind("127.0.0.1:0").expect("bound")).expect("connecting");
    binding.wait_for_peers(1, PATIENCE).expect("a peer");
    connecting.wait_for_peers(1, PATIENCE).expect("a peer");
    (binding, connecting)
}

fn engine_tells_what_it_is(backend: Backend) {
    let engine = engine(backend);
    let info = engine.info();
    assert!(info.inline);
    assert_eq!(info.backend.to_string(), if backend == Backend::Uring { "uring" } else { "poll" });
}

fn ids_are_dense(backend: Backend) {
    let engine = engine(backend);
    let sockets: Vec<_> = (0..10).map(|_| socket(&engine, Publish)).collect();
    assert!(sockets.iter().map(|socket| socket.id().index()).eq(0..10));
}

fn waiting_on_many_sockets(backend: Backend) {
    const SUBSCRIBERS: usize = 50;
    const COUNT: u64 = 200;
    let engine = engine(backend);
    let publisher = socket(&engine, Publish);
    let address = publisher.bind("127.0.0.1:0").expect("bound");
    let subscribers: Vec<_> = (0..SUBSCRIBERS).map(|_| socket(&engine, Publish)).collect();
    for subscriber in &subscribers {
        subscriber.connect(address.clone()).expect("connecting");
    }
    publisher.wait_for_peers(SUBSCRIBERS, PATIENCE).expect("peers");
    for value in 0..COUNT {
        publisher.send(&number(value)).expect("sent");
    }
    publisher.flush().expect("flushed");

    let mut next = [0; SUBSCRIBERS];
    let mut ready = Vec::new();
    let until = Instant::now() + PATIENCE;
    while next.iter().any(|&next| next < COUNT) {
        assert!(Instant::now() < until, "not all came: {next:?}");
        engine.poll(Some(Duration::from_secs(1)), &mut ready).expect("driven");
        for id in &ready {
            // The publisher is number 0 and receives nothing.
            let index = id.index() - 1;
            let mut messages = 0;
            loop {
                match subscribers[index].try_recv() {
                    Ok(message) => assert_eq!(message, &number(next[index])[..]),
                    Err(TryRecvError::Empty) => break,
                    Err(error) => panic!("{error}"),
                }
                next[index] += 1;
                messages += 1;
            }
            assert!(messages > 0, "ready, but nothing to receive");
        }
    }
}

fn round_trips_on_one_thread(backend: Backend) {
    let engine = engine(backend);
    let (server, client) = pair(&engine, RoundRobin);
    for value in 0..1_000 {
        client.send(&number(value)).expect("sent");
        server.send(server.recv(Some(PATIENCE)).expect("received")).expect("sent");
        assert_eq!(client.recv(Some(PATIENCE)).expect("received"), &number(value)[..]);
    }
}

fn round_trips_of_who_spins(backend: Backend) {
    const ROUNDS: usize = 3_000;
    const SPIN: Duration = Duration::from_millis(1);
    let size_of = |round: usize| if round.is_multiple_of(50) { round * 97 } else { round % 100 };
    // One end spins inline, the other on a reactor of its own; a bystander on the same engine hears everything as well.
    let engine = Engine::builder().backend(backend).spin(SPIN).build().expect("an engine");
    let (client, bystander) = (socket(&engine, RoundRobin), socket(&engine, Publish));
    let address = client.bind("127.0.0.1:0").expect("bound");
    let heard = bystander.bind("127.0.0.1:0").expect("bound");
    let server = thread::spawn(move || {
        let engine = aiomsg_uring::Engine::builder().backend(backend).shards(1).spin(SPIN).build().expect("an engine");
        let build = |mode| aiomsg_uring::Socket::builder().send_mode(mode).engine(&engine).build_blocking();
        let (server, speaker) = (build(RoundRobin).expect("a socket"), build(Publish).expect("a socket"));
        server.connect(address).expect("connecting");
        speaker.connect(heard).expect("connecting");
        speaker.wait_for_peers(1, PATIENCE).expect("a peer");
        for round in 0..ROUNDS {
            let request = server.recv_timeout(PATIENCE).expect("a request");
            speaker.send(&number(round as u64)).expect("sent");
            server.send(request).expect("sent");
        }
        speaker.close();
        server.close();
    });
    for round in 0..ROUNDS {
        client.send(pattern(size_of(round))).expect("sent");
        let answer = client.recv(Some(PATIENCE)).expect("an answer");
        assert!(answer == pattern(size_of(round)), "round {round} came altered");
    }
    for round in 0..ROUNDS {
        assert_eq!(bystander.recv(Some(PATIENCE)).expect("a message"), &number(round as u64)[..]);
    }
    server.join().expect("the server is done");
}

fn sending_only_appends(backend: Backend) {
    let engine = engine(backend);
    let socket = socket(&engine, Publish);
    let address = socket.bind("127.0.0.1:0").expect("bound");
    let mut peer = RawPeer::dial(&address);
    peer.send(&crate::common::hello(1));
    socket.wait_for_peers(1, PATIENCE).expect("a peer");
    assert!(peer.read_frame().is_some(), "a HELLO");
    socket.send("waits for company").expect("sent");
    assert!(peer.is_silent_for(Duration::from_millis(50)), "a single small message went out at once");
    socket.send("company").expect("sent");
    socket.flush().expect("flushed");
    assert_eq!(peer.read_data(), b"waits for company");
    assert_eq!(peer.read_data(), b"company");
}

fn much_unsent_goes_out_by_itself(backend: Backend) {
    let engine = engine(backend);
    let socket = socket(&engine, Publish);
    let address = socket.bind("127.0.0.1:0").expect("bound");
    let mut peer = RawPeer::dial(&address);
    peer.send(&crate::common::hello(1));
    socket.wait_for_peers(1, PATIENCE).expect("a peer");
    for index in 0..600 {
        socket.send(pattern(1_000 + index % 3)).expect("sent");
    }
    assert!(peer.read_frame().is_some(), "a HELLO");
    for index in 0..200 {
        assert!(peer.read_data() == pattern(1_000 + index % 3), "message {index} came altered");
    }
}

fn a_full_log_drives_the_engine(backend: Backend) {
    const COUNT: usize = 8_000;
    let engine = engine(backend);
    let builder = aiomsg_uring::Socket::builder().send_mode(Publish).log_bytes_max(1 << 20).message_bytes_max(1 << 19);
    let socket = builder.build_inline(&engine).expect("a socket");
    let address = socket.bind("127.0.0.1:0").expect("bound");
    let reader = std::thread::spawn(move || {
        let mut peer = RawPeer::connected(&address, 1);
        for index in 0..COUNT {
            assert!(peer.read_data() == pattern(1_000 + index % 7), "message {index} came altered");
        }
    });
    socket.wait_for_peers(1, PATIENCE).expect("a peer");
    for index in 0..COUNT {
        socket.send(pattern(1_000 + index % 7)).expect("sent");
    }
    socket.flush().expect("flushed");
    let mut ready = Vec::new();
    while !reader.is_finished() {
        engine.poll(Some(Duration::from_millis(5)), &mut ready).expect("driven");
    }
    reader.join().expect("read");
}

/// While nobody is there, what was sent by identity behind a full log is not due, and no reason for a `send` that waits for room to
/// look again and again.
/// A sender waits a little for peers that fall behind, not for one that has stopped.
fn who_is_ahead_of_a_peer_that_takes_nothing_goes_on(backend: Backend) {
    const COUNT: u64 = 1_000;
    let padding = pattern(16 * 1024);
    let message = |value| [&number(value)[..], &padding].concat();
    let (ours, theirs) = (engine(backend), engine(backend));
    for mode in [Publish, RoundRobin] {
        let (sender, receiver) = (socket(&ours, mode), socket(&theirs, mode));
        receiver.connect(sender.bind("127.0.0.1:0").expect("bound")).expect("connecting");
        let mut ready = Vec::new();
        while sender.peers().is_empty() || receiver.peers().is_empty() {
            for engine in [&ours, &theirs] {
                engine.poll(Some(Duration::from_millis(1)), &mut ready).expect("driven");
            }
        }
        // From here on the other end does nothing, and most of this is still in the log at the end.
        (0..COUNT).for_each(|value| sender.send(&message(value)[..]).expect("sent"));
        assert!(sender.stats().messages_delivered < COUNT, "the kernel has taken it all");
        for value in 0..COUNT {
            let until = Instant::now() + PATIENCE;
            let received = loop {
                match receiver.recv(Some(Duration::from_millis(1))) {
                    Ok(received) => break received,
                    Err(_) => ours.poll(Some(Duration::ZERO), &mut ready).expect("driven"),
                }
                assert!(Instant::now() < until, "message {value} did not come");
            };
            assert!(received == message(value), "not message {value}");
        }
    }
}

fn a_send_behind_mail_that_is_not_due_sleeps(backend: Backend) {
    let engine = engine(backend);
    let builder = aiomsg_uring::Socket::builder().send_mode(RoundRobin).delivery_guarantee(AtLeastOnce);
    let builder = builder.log_bytes_max(1 << 20).message_bytes_max(1 << 16);
    let socket = builder.build_inline(&engine).expect("a socket");
    let address = socket.bind("127.0.0.1:0").expect("bound");
    let mut peer = RawPeer::dial(&address);
    peer.send(&crate::common::hello(1));
    socket.wait_for_peers(1, PATIENCE).expect("a peer");
    let name = socket.peers()[0];
    peer.close();
    let (until, mut ready) = (Instant::now() + PATIENCE, Vec::new());
    while !socket.peers().is_empty() {
        assert!(Instant::now() < until, "the peer stays");
        engine.poll(Some(Duration::from_millis(5)), &mut ready).expect("driven");
    }

    let payload = pattern(10_000);
    let sent = std::iter::repeat_with(|| socket.try_send(&payload)).take_while(Result::is_ok).count();
    socket.try_send_to(name, "mail").expect("room for mail");
    let reader = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        let mut peer = RawPeer::connected(&address, 1);
        let mut read = || {
            let (msg_id, payload) = peer.read_data_req();
            peer.acknowledge(&msg_id);
            payload
        };
        (0..sent).for_each(|_| assert_eq!(read().len(), 10_000));
        assert_eq!(read(), b"mail");
        assert_eq!(read().len(), 10_000);
    });
    let before = engine.stats();
    socket.send(&payload).expect("sent");
    let spins = engine.stats().spins - before.spins;
    assert!(engine.stats().waits > before.waits, "it waited");
    assert!(spins < 1_000, "{spins} turns that did not wait and found nothing");
    while !reader.is_finished() {
        engine.poll(Some(Duration::from_millis(5)), &mut ready).expect("driven");
    }
    reader.join().expect("all in order");
}

/// A full log of messages without keys, which conflation may not drop: what is under way to the peer is left alone, and why the
/// publisher waits is logged once.
fn a_send_that_conflation_cannot_help_sleeps(backend: Backend) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let engine = engine(backend);
    let unkeyed = Unkeyed::Block { max_wait: PATIENCE };
    let builder = aiomsg_uring::Socket::builder().slow_policy(SlowPolicy::Conflate { unkeyed });
    let builder = builder.lag_limit(LagLimit { bytes: Some(1 << 16), ..LagLimit::default() });
    let socket = builder.log_bytes_max(1 << 20).message_bytes_max(1 << 19).build_inline(&engine).expect("a socket");
    let mut peer = RawPeer::dial(&socket.bind("127.0.0.1:0").expect("bound"));
    peer.send(&crate::common::hello(1));
    socket.wait_for_peers(1, PATIENCE).expect("a peer");

    let (payload, mut ready, mut sent) = (pattern(10_000), Vec::new(), 0);
    let mut full = 0;
    while full < 3 {
        engine.poll(Some(Duration::from_millis(20)), &mut ready).expect("driven");
        let room = std::iter::repeat_with(|| socket.try_send(&payload)).take_while(Result::is_ok).count();
        (sent, full) = (sent + room, if room == 0 { full + 1 } else { 0 });
    }
    let reader = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        peer.expect_hello();
        (0..=sent).for_each(|_| assert_eq!(peer.read_data().len(), 10_000));
    });
    let before = engine.stats().turns;
    socket.send(&payload).expect("sent");
    let turns = engine.stats().turns - before;
    assert!(turns < 2_000, "{turns} turns to wait for a peer");
    while !reader.is_finished() {
        engine.poll(Some(Duration::from_millis(5)), &mut ready).expect("driven");
    }
    reader.join().expect("all of it");
    assert_eq!(log.text().matches("send with keys, or choose another policy").count(), 1, "{}", log.text());
}

fn poll_waits_as_long_as_asked(backend: Backend) {
    let engine = engine(backend);
    let _socket = socket(&engine, Publish);
    let mut ready = Vec::new();
    let began = Instant::now();
    engine.poll(Some(Duration::ZERO), &mut ready).expect("driven");
    assert!(began.elapsed() < Duration::from_secs(1));
    engine.poll(Some(Duration::from_millis(50)), &mut ready).expect("driven");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(ready.is_empty());
}

fn deadlines_are_told(backend: Backend) {
    let engine = engine(backend);
    let builder = aiomsg_uring::Socket::builder().heartbeat_interval(Duration::from_millis(100));
    let socket = builder.receive_timeout(Duration::from_secs(10)).build_inline(&engine).expect("a socket");
    let mut peer = RawPeer::dial(&socket.bind("127.0.0.1:0").expect("bound"));
    peer.send(&crate::common::hello(1));
    socket.wait_for_peers(1, PATIENCE).expect("a peer");
    let deadline = engine.next_deadline().expect("a heartbeat is due some time");
    assert!(deadline <= Instant::now() + Duration::from_secs(1));
    // An application that keeps to the deadlines keeps its connections alive.
    assert!(peer.read_frame().is_some(), "a HELLO");
    let mut ready = Vec::new();
    let until = Instant::now() + PATIENCE;
    while peer.is_silent_for(Duration::from_millis(1)) {
        assert!(Instant::now() < until, "no heartbeat");
        let deadline = engine.next_deadline().expect("a heartbeat is due some time");
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        engine.poll(Some(Duration::ZERO), &mut ready).expect("driven");
    }
    assert_eq!(peer.read_frame(), Some((crate::common::HEARTBEAT, vec![])));
}

fn recv_gives_up_in_time(backend: Backend) {
    let engine = engine(backend);
    let (one, _other) = pair(&engine, Publish);
    let began = Instant::now();
    assert!(one.recv(Some(Duration::from_millis(50))).is_err());
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert!(matches!(one.try_recv(), Err(TryRecvError::Empty)));
}

thread_local! {
    /// Called with the next line of the log.
    static WITHIN: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
}

/// As a subscriber of the log may make them. None panics or hangs, what must wait for the engine says why it cannot, and the rest is done.
fn calls_from_within_the_engine(backend: Backend) {
    let call = || {
        WITHIN.take().into_iter().for_each(|call| call());
        std::io::sink()
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(call).finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let engine = engine(backend);
    let (one, gone) = pair(&engine, Publish);
    let (feed, from, opened) = (Rc::new(socket(&engine, Publish)), gone.identity(), Rc::new(Cell::new(None)));
    let address = feed.bind("127.0.0.1:0").expect("bound");
    let one = Rc::new(one);
    let calls = {
        let (one, feed, engine, opened) = (one.clone(), feed.clone(), engine.clone(), opened.clone());
        move || {
            let mut ready = Vec::new();
            assert!(matches!(engine.poll(None, &mut ready), Err(EngineError::Reentered)));
            assert!(matches!(one.flush(), Err(EngineError::Reentered)));
            assert!(matches!(one.bind("127.0.0.1:0"), Err(BindError::Reentered)));
            assert_eq!(one.disconnect(from), Err(ControlError::Reentered));
            assert_eq!(one.recv(None), Err(TryRecvError::Empty));
            assert_eq!(one.recv(Some(PATIENCE)), Err(TryRecvError::Empty));
            assert!(one.wait_for_peers(9, PATIENCE).is_err());
            assert!(engine.next_deadline().is_some_and(|at| at <= Instant::now()));
            drop(gone);
            // More than goes out by itself.
            (0..40).for_each(|_| feed.send(pattern(10_000)).expect("appended"));
            let late = socket(&engine, Publish);
            late.connect(address).expect("connecting");
            opened.set(Some(late));
        }
    };
    WITHIN.set(Some(Box::new(calls)));
    one.bind("127.0.0.1:0").expect("bound, and logged");

    let late = opened.take().expect("called");
    feed.send(&number(1)).expect("sent");
    (0..40).for_each(|_| assert_eq!(late.recv(Some(PATIENCE)).expect("a message").len(), 10_000));
    assert_eq!(late.recv(Some(PATIENCE)).expect("a message")[..], number(1));
    while !one.peers().is_empty() {
        engine.poll(Some(Duration::from_millis(5)), &mut Vec::new()).expect("driven");
    }
}

fn an_engine_outlives_its_sockets(backend: Backend) {
    let engine = engine(backend);
    for round in 0..3 {
        let (one, other) = pair(&engine, Publish);
        one.send(&number(round)).expect("sent");
        assert_eq!(other.recv(Some(PATIENCE)).expect("received"), &number(round)[..]);
    }
    // And sockets may outlive the handle of their engine.
    let (one, other) = pair(&engine, Publish);
    drop(engine);
    one.send("still driven").expect("sent");
    assert_eq!(other.recv(Some(PATIENCE)).expect("received"), "still driven");
}

fn closing_on_one_thread(backend: Backend) {
    let engine = engine(backend);
    let (one, other) = pair(&engine, RoundRobin);
    for value in 0..1_000 {
        one.send(&number(value)).expect("sent");
    }
    assert_eq!(one.close().undelivered, 0);
    for value in 0..1_000 {
        assert_eq!(other.recv(Some(PATIENCE)).expect("received"), &number(value)[..]);
    }
}

/// A send finds out that the peer has gone before the engine has read what the peer had sent.
fn what_came_before_a_close_is_read(backend: Backend) {
    const COUNT: u64 = 1_000;
    for reset in [false, true] {
        let engine = engine(backend);
        let socket = socket(&engine, Publish);
        let address = socket.bind("127.0.0.1:0").expect("bound");
        let peer = thread::spawn(move || RawPeer::connected(&address, 1));
        socket.wait_for_peers(1, PATIENCE).expect("a peer");
        let mut peer = peer.join().expect("a peer");
        (0..COUNT).for_each(|value| peer.send(&data(&number(value))));
        // All of it has arrived in the kernel before the end does.
        thread::sleep(Duration::from_millis(50));
        if reset {
            peer.reset()
        } else {
            peer.close()
        }
        // The first is answered by a reset, if there was none before; the second fails.
        for _ in 0..2 {
            socket.send(b"too late").expect("sent");
            socket.flush().ok();
            thread::sleep(Duration::from_millis(10));
        }
        for value in 0..COUNT {
            let received = socket.recv(Some(PATIENCE));
            assert_eq!(received.as_deref().ok(), Some(&number(value)[..]), "{value}, reset: {reset}");
        }
    }
}
