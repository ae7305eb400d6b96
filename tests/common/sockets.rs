//! Sockets of every kind behind one face.
//!
//! A sharded socket is called where the test runs. An inline socket lives on a thread of its own,
//! which drives its engine and runs what the test hands to it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::{self, TryRecvError as Empty};
use std::thread;
use std::time::Duration;

use aiomsg_uring::{
    Address, Backend, Batch, ControlError, Engine, Event, Identity, SendError, SendMode, Socket, SocketBuilder, Stats,
    TryRecvError, TrySendError, WaitError, blocking, inline,
};
use bytes::Bytes;

use super::PATIENCE;

/// Who drives the reactor, and over what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) inline: bool,
    pub(crate) backend: Backend,
}

impl Kind {
    pub(crate) const SHARDED_URING: Kind = Kind { inline: false, backend: Backend::Uring };
    pub(crate) const SHARDED_POLL: Kind = Kind { inline: false, backend: Backend::Poll };
    pub(crate) const INLINE_URING: Kind = Kind { inline: true, backend: Backend::Uring };
    pub(crate) const INLINE_POLL: Kind = Kind { inline: true, backend: Backend::Poll };

    /// A socket with the defaults of the library, on an engine of its own.
    pub(crate) fn socket(self, send_mode: SendMode) -> Sock {
        self.socket_with(move |builder| builder.send_mode(send_mode))
    }

    /// A socket as `set` makes it, on an engine of its own.
    pub(crate) fn socket_with(self, set: impl FnOnce(SocketBuilder) -> SocketBuilder + Send + 'static) -> Sock {
        self.socket_on(None, set)
    }

    /// Tries to bind a new socket; the error as its text.
    pub(crate) fn try_bind(self, endpoint: &str) -> Result<Address, String> {
        let endpoint = endpoint.to_owned();
        self.socket(SendMode::Publish).run(move |socket| socket.try_bind(&endpoint))
    }

    /// The same, with a choice of how many slabs of how many bytes the engine has.
    pub(crate) fn socket_on(
        self,
        slabs: Option<(usize, usize)>,
        set: impl FnOnce(SocketBuilder) -> SocketBuilder + Send + 'static,
    ) -> Sock {
        if self.inline {
            return Sock::Inline(Actor::start(self.backend, slabs, set));
        }
        let mut engine = Engine::builder().backend(self.backend).shards(1);
        if let Some((count, bytes)) = slabs {
            engine = engine.slabs(count).slab_bytes(bytes);
        }
        let engine = engine.build().expect("an engine");
        Sock::Sharded(Shared(set(Socket::builder()).engine(&engine).build_blocking().expect("a socket")))
    }
}

/// The calls that all sockets have. What fails in them fails the test, unless it is their result.
pub(crate) trait Calls {
    fn bind(&self, endpoint: &str) -> Address {
        self.try_bind(endpoint).expect("bound")
    }
    /// The error as its text.
    fn try_bind(&self, endpoint: &str) -> Result<Address, String>;
    fn connect(&self, endpoint: &str);
    fn unbind(&self, endpoint: &str) -> Result<(), ControlError>;
    fn disconnect_from(&self, endpoint: &str) -> Result<(), ControlError>;
    fn disconnect(&self, identity: Identity) -> Result<(), ControlError>;
    fn send(&self, payload: &[u8]) {
        self.try_to_send(payload).expect("sent");
    }
    fn try_to_send(&self, payload: &[u8]) -> Result<(), SendError>;
    fn send_bytes(&self, payload: Bytes);
    fn try_send<'a>(&self, payload: &'a [u8]) -> Result<(), TrySendError<'a>>;
    fn send_with(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<(), SendError>;
    fn try_send_with(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<(), TrySendError<'static>>;
    fn flush(&self);
    /// `None` when nothing came in time.
    fn recv_within(&self, patience: Duration) -> Option<Bytes>;
    fn recv_identity(&self) -> (Identity, Bytes);
    fn recv_batch(&self) -> Batch;
    fn try_recv(&self) -> Result<Bytes, TryRecvError>;
    fn peers(&self) -> Vec<Identity>;
    fn wait_for_peers(&self, count: usize, patience: Duration) -> Result<(), WaitError>;
    fn identity(&self) -> Identity;
    fn stats(&self) -> Stats;
    fn try_event(&self) -> Option<Event>;
    /// How many messages were not delivered. An inline socket knows no other call afterwards.
    fn close(&self) -> u64;
}

macro_rules! common_calls {
    () => {
        fn try_bind(&self, endpoint: &str) -> Result<Address, String> {
            self.get().bind(endpoint).map_err(|error| error.to_string())
        }
        fn connect(&self, endpoint: &str) {
            self.get().connect(endpoint).expect("connecting");
        }
        fn unbind(&self, endpoint: &str) -> Result<(), ControlError> {
            self.get().unbind(endpoint)
        }
        fn disconnect_from(&self, endpoint: &str) -> Result<(), ControlError> {
            self.get().disconnect_from(endpoint)
        }
        fn disconnect(&self, identity: Identity) -> Result<(), ControlError> {
            self.get().disconnect(identity)
        }
        fn try_to_send(&self, payload: &[u8]) -> Result<(), SendError> {
            self.get().send(payload)
        }
        fn send_bytes(&self, payload: Bytes) {
            self.get().send(payload).expect("sent");
        }
        fn try_send<'a>(&self, payload: &'a [u8]) -> Result<(), TrySendError<'a>> {
            self.get().try_send(payload)
        }
        fn send_with(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<(), SendError> {
            self.get().send_with(bytes, fill)
        }
        fn try_send_with(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<(), TrySendError<'static>> {
            self.get().try_send_with(bytes, fill)
        }
        fn try_recv(&self) -> Result<Bytes, TryRecvError> {
            self.get().try_recv()
        }
        fn peers(&self) -> Vec<Identity> {
            self.get().peers()
        }
        fn wait_for_peers(&self, count: usize, patience: Duration) -> Result<(), WaitError> {
            self.get().wait_for_peers(count, patience)
        }
        fn identity(&self) -> Identity {
            self.get().identity()
        }
        fn stats(&self) -> Stats {
            self.get().stats()
        }
        fn try_event(&self) -> Option<Event> {
            self.get().try_event()
        }
    };
}

/// A sharded socket.
pub(crate) struct Shared(blocking::Socket);

impl Shared {
    fn get(&self) -> &blocking::Socket {
        &self.0
    }
}

impl Calls for Shared {
    common_calls!();
    fn flush(&self) {}
    fn recv_within(&self, patience: Duration) -> Option<Bytes> {
        self.get().recv_timeout(patience).ok()
    }
    fn recv_identity(&self) -> (Identity, Bytes) {
        self.get().recv_identity_timeout(PATIENCE).expect("received")
    }
    fn recv_batch(&self) -> Batch {
        self.get().recv_batch_timeout(PATIENCE).expect("received")
    }
    fn close(&self) -> u64 {
        self.get().close().undelivered
    }
}

/// An inline socket, until it is closed.
struct Closable(RefCell<Option<Rc<inline::Socket>>>);

impl Closable {
    fn get(&self) -> Rc<inline::Socket> {
        self.0.borrow().clone().expect("not closed: closing consumes an inline socket")
    }
}

impl Calls for Closable {
    common_calls!();
    fn flush(&self) {
        self.get().flush().expect("flushed");
    }
    fn recv_within(&self, patience: Duration) -> Option<Bytes> {
        self.get().recv(Some(patience)).ok()
    }
    fn recv_identity(&self) -> (Identity, Bytes) {
        self.get().recv_identity(Some(PATIENCE)).expect("received")
    }
    fn recv_batch(&self) -> Batch {
        self.get().recv_batch(Some(PATIENCE)).expect("received")
    }
    fn close(&self) -> u64 {
        let socket = self.0.take().and_then(Rc::into_inner).expect("not closed, and no call in progress");
        socket.close().undelivered
    }
}

/// A socket of any kind.
pub(crate) enum Sock {
    Sharded(Shared),
    Inline(Actor),
}

impl Sock {
    /// Runs `job` with the socket, where the socket lives, and waits for its result.
    #[track_caller]
    pub(crate) fn run<R: Send + 'static>(&self, job: impl FnOnce(&dyn Calls) -> R + Send + 'static) -> R {
        match self {
            Sock::Sharded(socket) => job(socket),
            Sock::Inline(actor) => actor.run(job),
        }
    }

    /// Binds to an endpoint; where others can connect to.
    pub(crate) fn bind(&self, endpoint: &str) -> Address {
        let endpoint = endpoint.to_owned();
        self.run(move |socket| socket.bind(&endpoint))
    }

    /// Binds to a free port of loopback.
    pub(crate) fn bind_loopback(&self) -> Address {
        self.bind("127.0.0.1:0")
    }

    pub(crate) fn connect(&self, endpoint: impl ToString) {
        let endpoint = endpoint.to_string();
        self.run(move |socket| socket.connect(&endpoint));
    }

    pub(crate) fn send(&self, payload: &[u8]) {
        let payload = payload.to_owned();
        self.run(move |socket| {
            socket.send(&payload);
            socket.flush();
        });
    }

    /// The next message, which must come in time.
    #[track_caller]
    pub(crate) fn recv(&self) -> Bytes {
        self.run(|socket| socket.recv_within(PATIENCE)).expect("a message in time")
    }

    #[track_caller]
    pub(crate) fn wait_for_peers(&self, count: usize) {
        self.run(move |socket| socket.wait_for_peers(count, PATIENCE)).expect("peers in time");
    }

    pub(crate) fn peers(&self) -> Vec<Identity> {
        self.run(|socket| socket.peers())
    }

    pub(crate) fn identity(&self) -> Identity {
        self.run(|socket| socket.identity())
    }

    pub(crate) fn stats(&self) -> Stats {
        self.run(|socket| socket.stats())
    }

    /// How many messages were not delivered.
    pub(crate) fn close(&self) -> u64 {
        self.run(|socket| socket.close())
    }

    /// The next event that `wanted` picks; others are skipped.
    #[track_caller]
    pub(crate) fn event(&self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        let mut found = None;
        super::eventually(what, || {
            while let Some(event) = self.run(|socket| socket.try_event()) {
                if wanted(&event) {
                    found = Some(event);
                    return true;
                }
            }
            false
        });
        found.expect("found, or the wait above had failed")
    }
}

type Job = Box<dyn FnOnce(&dyn Calls) + Send>;

/// An inline socket on a thread of its own; ends when the handle is dropped.
pub(crate) struct Actor {
    jobs: mpsc::Sender<Job>,
}

impl Actor {
    fn start(
        backend: Backend,
        slabs: Option<(usize, usize)>,
        set: impl FnOnce(SocketBuilder) -> SocketBuilder + Send + 'static,
    ) -> Actor {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::spawn(move || {
            let mut engine = inline::Engine::builder().backend(backend);
            if let Some((count, bytes)) = slabs {
                engine = engine.slabs(count).slab_bytes(bytes);
            }
            let engine = engine.build().expect("an engine");
            let socket = set(Socket::builder()).build_inline(&engine).expect("a socket");
            let socket = Closable(RefCell::new(Some(Rc::new(socket))));
            let mut ready = Vec::new();
            loop {
                match inbox.try_recv() {
                    Ok(job) => job(&socket),
                    Err(Empty::Empty) => {
                        engine.poll(Some(Duration::from_millis(1)), &mut ready).expect("driven");
                    }
                    Err(Empty::Disconnected) => break,
                }
            }
        });
        Actor { jobs }
    }

    #[track_caller]
    fn run<R: Send + 'static>(&self, job: impl FnOnce(&dyn Calls) -> R + Send + 'static) -> R {
        let (answer, wait) = mpsc::channel();
        let job: Job = Box::new(move |socket| {
            answer.send(job(socket)).ok();
        });
        self.jobs.send(job).expect("the socket's thread lives");
        wait.recv().expect("the socket's thread lives")
    }
}
