//! What the micro benchmarks call of the layers below the public API: one small type or function for each thing that they time, and
//! nothing else. Compiled only with the feature `bench-internals`; no part of the API, may change with any commit.
//!
//! Everything here forwards: what is timed is the layer's own code. Called by `benches/` only.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::backend::{self, Address, Backend, BackendOptions, Choice, Lease, Outcome, SocketOptions, Token};
use crate::log::{self, Appender, Cursor, LogOptions, Reader};
use crate::protocol::{self, Circle, Deframer, MsgIds};
use crate::queue::{Commands, Doorbell, ReceiveQueue};

/// Most bytes of one send, as in the engine.
const SEND_BYTES: usize = 256 << 10;
/// Most slices of one send, as in the engine.
const SEND_SLICES: usize = 64;

/// The bytes before a payload of `payload_bytes`, at most once.
#[inline]
pub fn data_head(payload_bytes: usize) -> [u8; 5] {
    protocol::data_head(payload_bytes)
}

/// Heads of messages that want to be acknowledged.
pub struct ReqHeads(MsgIds);

impl ReqHeads {
    /// Message ids that begin with `seed`.
    pub fn new(seed: u64) -> Self {
        Self(MsgIds::new(seed))
    }

    /// The bytes before the next payload, with a fresh message id.
    #[inline]
    pub fn next(&mut self, payload_bytes: usize) -> [u8; 21] {
        protocol::data_req_head(self.0.next(), payload_bytes)
    }
}

/// Counts the messages of a run of whole frames, and the bytes of their payloads.
#[inline]
pub fn walk(run: &[u8]) -> (usize, usize) {
    let (mut at, mut messages, mut bytes) = (0, 0, 0);
    while let Some(message) = protocol::next_message(run, &mut at) {
        messages += 1;
        bytes += message.payload.len();
    }
    (messages, bytes)
}

/// One link's deframer.
pub struct Deframing(Deframer);

impl Deframing {
    /// For frames of at most 16 MiB.
    pub fn new() -> Self {
        Self(Deframer::new(16 << 20))
    }

    /// The messages that end in these bytes of the stream; `None` after a frame that is too long.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<u32> {
        self.0.feed(bytes, |_| ()).ok().map(|scan| scan.messages)
    }
}

impl Default for Deframing {
    fn default() -> Self {
        Self::new()
    }
}

/// A log with one reader and some cursors, each of which stands for a link.
pub struct Log {
    appender: Appender,
    reader: Reader,
    cursors: Vec<Cursor>,
    slices: Vec<Bytes>,
}

impl Log {
    /// A log with the default sizes; `None` if it has no reader, which does not happen.
    pub fn new(links: usize) -> Option<Self> {
        let (appender, mut readers) = log::open(LogOptions::default(), 1);
        let mut reader = readers.pop()?;
        let cursors = (0..links).map(|_| reader.join()).collect();
        Some(Self { appender, reader, cursors, slices: Vec::with_capacity(SEND_SLICES) })
    }

    /// Appends a message by copying it; false if there was no room.
    #[inline]
    pub fn append(&mut self, payload: &[u8]) -> bool {
        self.appender.append(&protocol::data_head(payload.len()), payload).is_ok()
    }

    /// Appends a small message that `fill` writes in its place; false if there is no room.
    #[inline]
    pub fn append_with(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        match self.appender.append_with(|| protocol::data_head(bytes), bytes, fill) {
            Ok(()) => true,
            Err(fill) => {
                let mut payload = vec![0; bytes];
                fill(&mut payload);
                self.append(&payload)
            }
        }
    }

    /// Appends a message, by reference if it is large; false if there was no room.
    #[inline]
    pub fn append_bytes(&mut self, payload: Bytes) -> bool {
        self.appender.append_bytes(&protocol::data_head(payload.len()), payload).is_ok()
    }

    /// One send of every link: gathers what lies before its cursor and advances it. Answers with the bytes gathered.
    pub fn send_all(&mut self) -> usize {
        let mut bytes = 0;
        for cursor in &mut self.cursors {
            let to = self.reader.gather_until(*cursor, Cursor::END, SEND_BYTES, SEND_SLICES, &mut self.slices);
            bytes += self.slices.iter().map(Bytes::len).sum::<usize>();
            self.slices.clear();
            self.reader.advance(*cursor, to);
            *cursor = to;
        }
        bytes
    }
}

/// The round-robin order of some peers.
pub struct Route {
    circle: Circle<u32>,
    full: Option<u32>,
}

impl Route {
    /// So many peers, of which `full`, if any, takes nothing.
    pub fn new(peers: u32, full: Option<u32>) -> Self {
        let mut circle = Circle::new();
        for peer in 0..peers {
            circle.insert(peer);
        }
        Self { circle, full }
    }

    /// Who gets the next message.
    #[inline]
    pub fn turn(&mut self) -> Option<u32> {
        let full = self.full;
        self.circle.next(|peer| Some(peer) != full)
    }
}

/// A shard's doorbell whose waker does nothing.
pub struct Bell(Doorbell);

impl Bell {
    /// Nobody sleeps.
    pub fn new() -> Self {
        let bell = Doorbell::new();
        bell.set_waker(Waker::noop().clone());
        Self(bell)
    }

    /// What every publication of work costs.
    #[inline]
    pub fn ring(&self) -> bool {
        self.0.ring()
    }

    /// What a shard does before and after each of its sleeps.
    #[inline]
    pub fn sleep(&self) {
        self.0.prepare_sleep();
        self.0.awake();
    }
}

impl Default for Bell {
    fn default() -> Self {
        Self::new()
    }
}

/// The queues between an application thread and a shard, both ends held by one thread.
pub struct Queues {
    commands: Commands<u64>,
    received: ReceiveQueue<u64>,
}

impl Queues {
    /// Empty queues.
    pub fn new() -> Self {
        let bell = Arc::new(Bell::new().0);
        Self { commands: Commands::new(1024, bell), received: ReceiveQueue::new(1024, 1 << 20) }
    }

    /// Application to shard and out at the other end.
    #[inline]
    pub fn command(&self, value: u64) -> Option<u64> {
        self.commands.push(value).ok()?;
        self.commands.pop()
    }

    /// Shard to application, with the account of bytes, and out at the other end.
    #[inline]
    pub fn receive(&self, value: u64) -> Option<u64> {
        self.received.push(value, 64).ok()?;
        let value = self.received.pop();
        let _ = self.received.release(64);
        value
    }
}

impl Default for Queues {
    fn default() -> Self {
        Self::new()
    }
}

/// A thread that sleeps in its backend as a reactor does and hands back whatever it is given.
pub struct Reactor {
    shared: Arc<(Commands<u64>, ReceiveQueue<u64>, AtomicBool)>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Reactor {
    /// Starts it on a backend.
    pub fn start(choice: Choice) -> Self {
        let commands = Commands::new(1024, Arc::new(Doorbell::new()));
        let shared = Arc::new((commands, ReceiveQueue::new(1024, 1 << 20), AtomicBool::new(false)));
        let on_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let (commands, received, stop) = &*on_thread;
            let mut backend = open(choice)?;
            commands.doorbell().set_waker(backend.waker());
            let mut completions = Vec::new();
            while !stop.load(Ordering::Acquire) {
                while let Some(value) = commands.pop() {
                    // The asker waits for one answer at a time: there is room.
                    let _ = received.push(value, 0);
                }
                commands.doorbell().prepare_sleep();
                let deadline_ns = if commands.is_empty() && !stop.load(Ordering::Acquire) { u64::MAX } else { 0 };
                backend.turn(deadline_ns, &mut completions)?;
                commands.doorbell().awake();
            }
            Ok(())
        });
        Self { shared, thread: Some(thread) }
    }

    /// To the thread and back; `None` once it has ended. Both sides sleep while they wait.
    pub fn round_trip(&self, value: u64) -> Option<u64> {
        let (commands, received, _) = &*self.shared;
        commands.push(value).ok()?;
        loop {
            if let Some(value) = received.pop() {
                let _ = received.release(0);
                return Some(value);
            }
            let arrival = received.listen();
            if received.is_empty() {
                if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                    return None;
                }
                arrival.wait();
            }
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.shared.2.store(true, Ordering::Release);
        self.shared.0.doorbell().ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection whose received bytes lie in slabs.
pub struct Slabs {
    backend: Box<dyn Backend>,
    peer: TcpStream,
    leases: Vec<Lease>,
}

impl Slabs {
    /// A connection over loopback.
    pub fn new(choice: Choice) -> std::io::Result<Self> {
        let mut backend = open(choice)?;
        let any = Address::Ip(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        let (listener, address) = backend.listen(&any, &SocketOptions::default())?;
        backend.accept(listener, Token(0));
        let address = address.socket_addr().ok_or(std::io::ErrorKind::Unsupported)?;
        let peer = TcpStream::connect(address)?;
        let mut completions = Vec::new();
        loop {
            backend.turn(u64::MAX, &mut completions)?;
            for completion in completions.drain(..) {
                if let Outcome::Accepted { conn, .. } = completion.outcome {
                    backend.recv(conn, Token(1));
                    return Ok(Self { backend, peer, leases: Vec::new() });
                }
            }
        }
    }

    /// Has `bytes` (no more than socket buffers hold) received into slabs.
    pub fn fill(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.peer.write_all(bytes)?;
        let mut left = bytes.len();
        let mut completions = Vec::new();
        while left > 0 {
            self.backend.turn(u64::MAX, &mut completions)?;
            for completion in completions.drain(..) {
                if let Outcome::Received(lease) = completion.outcome {
                    left = left.saturating_sub(lease.len());
                    self.leases.push(lease);
                }
            }
        }
        Ok(())
    }

    /// What was received as shared bytes, one for each completion.
    pub fn take(&mut self) -> impl Iterator<Item = Bytes> + '_ {
        self.leases.drain(..).map(Lease::into_bytes)
    }
}

fn open(choice: Choice) -> std::io::Result<Box<dyn Backend>> {
    let options = BackendOptions { choice, ..BackendOptions::default() };
    backend::open(&options).map(|selected| selected.backend)
}
