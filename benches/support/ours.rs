//! The rows of this library: inline or sharded, on io_uring or on readiness polling.

use std::sync::mpsc;
use std::time::Duration;

use aiomsg_uring::{Address, Backend, Engine, SendMode, Socket, TryRecvError, blocking, inline};

use super::rig::{Checked, Numbered, Orders, Rig, Work};

/// How long setting up may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a spinning thread looks for work before it sleeps.
const SPIN: Duration = Duration::from_millis(100);

/// Who drives the reactors, and over what.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) inline: bool,
    pub(crate) backend: Backend,
    pub(crate) spin: bool,
}

impl Way {
    fn engine_inline(self) -> inline::Engine {
        inline::Engine::builder().backend(self.backend).spin(self.spin_time()).build().expect("an engine")
    }

    fn engine(self) -> Engine {
        Engine::builder().backend(self.backend).spin(self.spin_time()).build().expect("an engine")
    }

    fn spin_time(self) -> Duration {
        if self.spin { SPIN } else { Duration::ZERO }
    }
}

/// One publisher and so many subscribers, each a socket of its own, all on one thread.
pub(crate) fn publish(way: Way, payload_bytes: usize, subscribers: usize) -> Box<dyn Rig> {
    if way.inline {
        let engine = way.engine_inline();
        let socket = Socket::builder().build_inline(&engine).expect("a socket");
        let address = socket.bind("127.0.0.1:0").expect("bound");
        let orders = Orders::start(move |work| receive_inline(way, &address, payload_bytes, subscribers, &work));
        socket.wait_for_peers(subscribers, PATIENCE).expect("subscribers");
        let numbered = Numbered::new(payload_bytes);
        Box::new(InlinePublisher { engine, socket, orders, numbered, subscribers: subscribers as u64 })
    } else {
        let engine = way.engine();
        let socket = Socket::builder().engine(&engine).build_blocking().expect("a socket");
        let address = socket.bind("127.0.0.1:0").expect("bound");
        let orders = Orders::start(move |work| receive(way, &address, payload_bytes, subscribers, &work));
        socket.wait_for_peers(subscribers, PATIENCE).expect("subscribers");
        Box::new(Publisher { socket, orders, numbered: Numbered::new(payload_bytes) })
    }
}

/// One message there and back at a time.
pub(crate) fn round_trip(way: Way, payload_bytes: usize) -> Box<dyn Rig> {
    let (bound, address) = mpsc::channel();
    let builder = || Socket::builder().send_mode(SendMode::RoundRobin);
    if way.inline {
        let echo = Orders::start(move |work| {
            let engine = way.engine_inline();
            let socket = builder().build_inline(&engine).expect("a socket");
            bound.send(socket.bind("127.0.0.1:0").expect("bound")).expect("waited for");
            socket.wait_for_peers(1, PATIENCE).expect("a peer");
            while let Some(rounds) = work.next() {
                for _ in 0..rounds {
                    socket.send(socket.recv(None).expect("received")).expect("sent");
                    socket.flush().expect("flushed");
                }
                work.finish();
            }
        });
        let engine = way.engine_inline();
        let socket = builder().build_inline(&engine).expect("a socket");
        socket.connect(address.recv().expect("bound")).expect("connecting");
        socket.wait_for_peers(1, PATIENCE).expect("a peer");
        Box::new(InlinePing { socket, echo, payload: vec![1; payload_bytes] })
    } else {
        let echo = Orders::start(move |work| {
            let engine = way.engine();
            let socket = builder().engine(&engine).build_blocking().expect("a socket");
            bound.send(socket.bind("127.0.0.1:0").expect("bound")).expect("waited for");
            while let Some(rounds) = work.next() {
                for _ in 0..rounds {
                    socket.send(socket.recv().expect("received")).expect("sent");
                }
                work.finish();
            }
        });
        let engine = way.engine();
        let socket = builder().engine(&engine).build_blocking().expect("a socket");
        socket.connect(address.recv().expect("bound")).expect("connecting");
        socket.wait_for_peers(1, PATIENCE).expect("a peer");
        Box::new(Ping { socket, echo, payload: vec![1; payload_bytes] })
    }
}

// Fields are dropped in order: the connections first, then the receiving thread, which gets no more orders.

struct InlinePublisher {
    socket: inline::Socket,
    engine: inline::Engine,
    orders: Orders,
    numbered: Numbered,
    subscribers: u64,
}

impl Rig for InlinePublisher {
    fn burst(&mut self, messages: u64) {
        let wanted = self.socket.stats().messages_delivered + messages * self.subscribers;
        self.orders.order(messages);
        for _ in 0..messages {
            self.socket.send(self.numbered.next()).expect("sent");
        }
        self.socket.flush().expect("flushed");
        let mut ready = Vec::new();
        while self.socket.stats().messages_delivered < wanted {
            self.engine.poll(Some(Duration::from_millis(10)), &mut ready).expect("driven");
        }
        self.orders.finished();
    }
}

struct Publisher {
    socket: blocking::Socket,
    orders: Orders,
    numbered: Numbered,
}

impl Rig for Publisher {
    fn burst(&mut self, messages: u64) {
        self.orders.order(messages);
        for _ in 0..messages {
            self.socket.send(self.numbered.next()).expect("sent");
        }
        self.orders.finished();
    }
}

struct InlinePing {
    socket: inline::Socket,
    echo: Orders,
    payload: Vec<u8>,
}

impl Rig for InlinePing {
    fn burst(&mut self, messages: u64) {
        self.echo.order(messages);
        for _ in 0..messages {
            self.socket.send(&self.payload).expect("sent");
            let answer = self.socket.recv(Some(PATIENCE)).expect("answered");
            assert!(answer == self.payload, "another payload came back");
        }
        self.echo.finished();
    }
}

struct Ping {
    socket: blocking::Socket,
    echo: Orders,
    payload: Vec<u8>,
}

impl Rig for Ping {
    fn burst(&mut self, messages: u64) {
        self.echo.order(messages);
        for _ in 0..messages {
            self.socket.send(&self.payload).expect("sent");
            let answer = self.socket.recv_timeout(PATIENCE).expect("answered");
            assert!(answer == self.payload, "another payload came back");
        }
        self.echo.finished();
    }
}

fn receive_inline(way: Way, address: &Address, payload_bytes: usize, subscribers: usize, work: &Work) {
    let engine = way.engine_inline();
    let mut sockets: Vec<_> = (0..subscribers)
        .map(|_| {
            let socket = Socket::builder().build_inline(&engine).expect("a socket");
            socket.connect(address.clone()).expect("connecting");
            (socket, Checked::new(payload_bytes))
        })
        .collect();
    for (socket, _) in &sockets {
        socket.wait_for_peers(1, PATIENCE).expect("the publisher");
    }
    let mut ready = Vec::new();
    while let Some(messages) = work.next() {
        let mut left = messages * subscribers as u64;
        while left > 0 {
            engine.poll(Some(PATIENCE), &mut ready).expect("driven");
            for id in &ready {
                // Numbers count from 0 in the order of building.
                let (socket, checked) = &mut sockets[id.index()];
                loop {
                    match socket.try_recv() {
                        Ok(payload) => checked.check(&payload),
                        Err(TryRecvError::Empty) => break,
                        Err(error) => panic!("{error}"),
                    }
                    left -= 1;
                }
            }
        }
        work.finish();
    }
}

fn receive(way: Way, address: &Address, payload_bytes: usize, subscribers: usize, work: &Work) {
    let engine = way.engine();
    let sockets: Vec<Socket> = (0..subscribers)
        .map(|_| {
            let socket = Socket::builder().engine(&engine).build_blocking().expect("a socket");
            socket.connect(address.clone()).expect("connecting");
            socket.into()
        })
        .collect();
    let mut checked: Vec<_> = sockets.iter().map(|_| Checked::new(payload_bytes)).collect();
    // One socket is received from directly, many by one task each.
    if let ([socket], [checked]) = (&sockets[..], &mut checked[..]) {
        let socket = blocking::Socket::from(socket.clone());
        while let Some(messages) = work.next() {
            (0..messages).for_each(|_| checked.check(&socket.recv().expect("received")));
            work.finish();
        }
        return;
    }
    let executor = smol::LocalExecutor::new();
    while let Some(messages) = work.next() {
        let tasks: Vec<_> = sockets
            .iter()
            .zip(checked.drain(..))
            .map(|(socket, mut checked)| {
                executor.spawn(async move {
                    for n in 0..messages {
                        checked.check(&socket.recv().await.expect("received"));
                        if n % 4096 == 4095 {
                            smol::future::yield_now().await;
                        }
                    }
                    checked
                })
            })
            .collect();
        smol::block_on(executor.run(async {
            for task in tasks {
                checked.push(task.await);
            }
        }));
        work.finish();
    }
}
