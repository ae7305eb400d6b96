//! A process: an engine over simulated drivers, the sockets on it, and the applications that use them. The world steps the
//! shards and polls the applications; nothing here runs by itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;

use super::handle::{Driver, Handle};
use super::journal::{self, Journal, Life};
use super::plan::{self, SocketPlan};
use super::report::Violation;
use crate::backend::sim::{BackendId, Dice, Fault, SharedNetwork};
use crate::engine::Engine;
use crate::protocol::Identity;
use crate::shard::{AckMode, Port, Shard};
use crate::socket::{SendError, TrySendError};

/// A shard and how it goes.
pub(super) struct SimShard {
    pub(super) shard: Shard,
    pub(super) port: Arc<Port>,
    pub(super) seat: BackendId,
    /// It waits, with its doorbell armed.
    pub(super) asleep: bool,
    /// It has ended in good order.
    pub(super) stopped: bool,
}

/// A socket of a node, in its present life.
pub(super) struct SimSocket {
    pub(super) socket: Handle,
    pub(super) life: Life,
}

/// See the file's header.
#[derive(Default)]
pub(super) struct Node {
    pub(super) shards: Vec<SimShard>,
    pub(super) engine: Option<Engine>,
    /// Instead of both, an engine that its applications drive.
    pub(super) inline: Option<Driver>,
    pub(super) sockets: Vec<Option<SimSocket>>,
    /// Sockets that drain, with their places.
    pub(super) closing: Vec<(usize, SimSocket)>,
    /// The identities that its sockets have.
    pub(super) identities: Vec<Identity>,
    /// When a process that is gone comes back.
    pub(super) returns_ns: Option<u64>,
    /// It does not run before that.
    pub(super) paused_until_ns: u64,
}

impl Node {
    /// Where its drivers sit at the network.
    pub(super) fn seats(&self) -> Vec<BackendId> {
        let inline = self.inline.iter().map(|driver| driver.seat);
        self.shards.iter().map(|shard| shard.seat).chain(inline).collect()
    }
}

/// What applications share with the world.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) network: SharedNetwork,
    pub(super) journal: Rc<RefCell<Journal>>,
    /// Sleepers by deadline.
    pub(super) alarms: Rc<RefCell<BTreeMap<(u64, u64), Waker>>>,
    pub(super) violation: Rc<RefCell<Option<Violation>>>,
    pub(super) healed: Rc<Cell<bool>>,
    pub(super) verbose: bool,
}

impl Common {
    pub(super) fn fail(&self, violation: Violation) {
        self.violation.borrow_mut().get_or_insert(violation);
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.network.borrow().now_ns()
    }

    pub(super) async fn sleep(&self, ns: u64) {
        let until_ns = self.now_ns() + ns;
        std::future::poll_fn(|cx| {
            if self.now_ns() >= until_ns {
                return Poll::Ready(());
            }
            let mut alarms = self.alarms.borrow_mut();
            let number = alarms.len() as u64;
            let free = (number..).find(|&number| !alarms.contains_key(&(until_ns, number))).unwrap_or(number);
            alarms.insert((until_ns, free), cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A future that the world polls.
pub(super) struct Task {
    pub(super) node: usize,
    pub(super) kind: Kind,
    pub(super) future: Pin<Box<dyn Future<Output = ()>>>,
    pub(super) woken: Arc<Flag>,
}

/// What a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    SetUp,
    Send,
    Receive,
    Close,
}

/// Set when a task is to be polled.
pub(super) struct Flag(pub(super) AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Task {
    pub(super) fn new(node: usize, kind: Kind, future: impl Future<Output = ()> + 'static) -> Task {
        Task { node, kind, future: Box::pin(future), woken: Arc::new(Flag(AtomicBool::new(true))) }
    }

    /// True when it has ended.
    pub(super) fn poll(&mut self) -> bool {
        self.woken.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
    }
}

/// What became of a send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Refused,
    Closed,
}

impl Verdict {
    fn of(error: &SendError) -> Verdict {
        match error {
            SendError::Closed | SendError::EngineStopped => Verdict::Closed,
            _ => Verdict::Refused,
        }
    }
}

/// An application's view of its socket.
pub(super) struct Actor {
    pub(super) common: Common,
    pub(super) socket: Handle,
    pub(super) life: Life,
    pub(super) plan: SocketPlan,
    pub(super) dice: Dice,
}

impl Actor {
    /// Binds and dials; while things go wrong, takes it back now and then and does it again.
    pub(super) async fn set_up(mut self, endpoints: Vec<String>) {
        if !self.bind().await {
            return;
        }
        for endpoint in &endpoints {
            if self.socket.connect(endpoint.as_str()).await.is_err() {
                return;
            }
        }
        self.socket.drive().await;
        let strikes = |this: &Actor, fault| this.common.network.borrow_mut().strikes(fault, 4);
        while !self.common.healed.get() {
            let pause_ns = self.dice.pick(100_000_000, 5_000_000_000);
            self.socket.sleep(&self.common, pause_ns).await;
            if let Some(place) = self.plan.bound().filter(|_| strikes(&self, Fault::Unbound)) {
                let unbound = self.socket.unbind(&place).await;
                if unbound.is_err() || !self.bind().await {
                    return;
                }
            }
            if !endpoints.is_empty() && strikes(&self, Fault::Undialled) {
                let endpoint = &endpoints[self.dice.index(endpoints.len())][..];
                let stopped = self.socket.disconnect_from(endpoint).await;
                if stopped.is_err() || self.socket.connect(endpoint).await.is_err() {
                    return;
                }
                self.socket.drive().await;
            }
            let mut peers = self.socket.peers();
            peers.sort();
            if !peers.is_empty() && strikes(&self, Fault::SentAway) {
                let peer = peers[self.dice.index(peers.len())];
                // It may have gone meanwhile.
                let _ = self.socket.disconnect(peer).await;
            }
        }
    }

    /// False when the socket is closed.
    async fn bind(&self) -> bool {
        let Some(place) = self.plan.bound() else { return true };
        // An old connection may keep the port for a moment.
        let mut tries = 0;
        while let Err(error) = self.socket.bind(&place).await {
            tries += 1;
            if tries > 100 || matches!(error, crate::BindError::Closed) {
                return false;
            }
            self.socket.sleep(&self.common, 100_000_000).await;
        }
        true
    }

    /// Sends what the plan says, in bursts.
    pub(super) async fn send_all(mut self) {
        let mut left = self.plan.messages;
        while left > 0 {
            let burst = (self.dice.magnitude(1, 40) as u32).min(left);
            for _ in 0..burst {
                let len = self.length();
                let to = self.addressee();
                if !self.send_one(len, to).await {
                    return;
                }
            }
            left -= burst;
            if self.dice.once_in(16) {
                self.send_too_long();
            }
            let pause_ns = if self.common.healed.get() { 1_000_000 } else { self.dice.pick(0, self.plan.pause_ns) };
            self.socket.sleep(&self.common, pause_ns).await;
        }
        self.socket.drive().await;
    }

    fn length(&mut self) -> usize {
        if !self.common.healed.get() && self.dice.once_in(self.plan.large_one_in) {
            self.common.network.borrow_mut().faults.note(Fault::LargeMessages);
            return self.dice.pick(plan::LARGE_BYTES_MIN as u64, plan::LARGE_BYTES_MAX as u64) as usize;
        }
        let len = self.dice.magnitude(0, self.plan.size_max as u64) as usize;
        // Which were skipped can be told only of those that have a number.
        if self.plan.lag.is_some() { len.max(journal::HEAD_BYTES) } else { len }
    }

    /// A message that is a byte longer than allowed is refused.
    fn send_too_long(&self) {
        let bytes = self.plan.message_bytes_max() + 1;
        match self.socket.try_send(Bytes::from(vec![0; bytes])) {
            Err(TrySendError::Never(_)) => {}
            other => {
                let text = format!("{:?} sends {bytes} bytes, one too many: {:?}", self.life, other.is_ok());
                self.common.fail(Violation { invariant: "I9", text });
            }
        }
    }

    /// Sends some messages and closes the socket at once: its peers get them all the same.
    pub(super) async fn farewell(mut self, messages: u32) {
        {
            let mut journal = self.common.journal.borrow_mut();
            let identities = self.socket.peers();
            let peers = identities.iter().filter_map(|identity| journal.living(*identity)).collect();
            let record = journal.record(self.life);
            record.farewell = Some((record.sent.len() as u32, peers));
        }
        for _ in 0..messages {
            // More in all than the kernels take at once.
            let len = self.dice.pick(12, 40_000) as usize;
            let message = self.common.journal.borrow().compose(self.life, len);
            if self.socket.try_send(&message[..]).is_ok() {
                self.common.journal.borrow_mut().accepted(self.life, len, None, None);
            }
        }
        self.close().await;
    }

    /// The messages each of which has to arrive.
    pub(super) async fn send_last_round(mut self, messages: u32) {
        {
            let mut journal = self.common.journal.borrow_mut();
            let record = journal.record(self.life);
            record.last_round = Some(record.sent.len() as u32);
            record.disconnects_before = record.disconnects;
        }
        for _ in 0..messages {
            let len = self.dice.pick(12, 200) as usize;
            let to = self.addressee();
            if !self.send_one(len, to).await {
                return;
            }
            if self.dice.once_in(4) {
                self.socket.sleep(&self.common, 1_000_000).await;
            }
        }
        self.socket.drive().await;
    }

    /// Now and then, one peer for whom alone the next message is.
    fn addressee(&mut self) -> Option<Identity> {
        if !self.dice.once_in(self.plan.directed_one_in) {
            return None;
        }
        let mut peers = self.socket.peers();
        peers.sort();
        let gone = {
            let journal = self.common.journal.borrow();
            let record = &journal.lives[self.life.0 as usize];
            let gone = |session: &&super::journal::Session| !peers.contains(&session.peer);
            let last = record.sessions.iter().rev().find(gone).map(|session| session.peer);
            last.filter(|_| record.is_at_least_once())
        };
        // Only at least once keeps what is for somebody who is gone.
        if gone.is_some() && self.common.network.borrow_mut().strikes(Fault::SentToTheGone, 3) {
            return gone;
        }
        (!peers.is_empty()).then(|| peers[self.dice.index(peers.len())])
    }

    /// False when the socket is closed.
    async fn send_one(&mut self, len: usize, to: Option<Identity>) -> bool {
        // Those too short to be told apart are for whoever it is.
        let len = if to.is_some() { len.max(super::journal::HEAD_BYTES) } else { len };
        let message = self.common.journal.borrow().compose(self.life, len);
        let key = if to.is_none() { self.common.journal.borrow().key(self.life, len, self.plan.keys) } else { None };
        let owned = || Bytes::from(message.clone());
        let tried = |result: Result<(), TrySendError<'_>>| match result {
            Ok(()) => Verdict::Accepted,
            Err(TrySendError::Full(_)) => Verdict::Refused,
            Err(TrySendError::Never(error)) => Verdict::of(&error),
        };
        // Who is gone may never come back: nobody waits for room for him.
        let gone = to.is_some_and(|to| !self.socket.peers().contains(&to));
        let how = if gone { 0 } else { self.dice.pick(0, 2) };
        let verdict = match (how, to) {
            (_, None) if key.is_some() => {
                let key = u64::from(key.unwrap_or_default());
                match how {
                    0 => tried(self.socket.try_send_keyed(key, &message[..])),
                    1 => self.send_or_drop(None, || self.socket.send_keyed(key, owned().into())).await,
                    _ => self.send_or_drop(None, || self.socket.send_keyed(key, message[..].into())).await,
                }
            }
            (0, None) if len % 2 == 0 => tried(self.socket.try_send_with(len, |to| to.copy_from_slice(&message))),
            (0, None) => tried(self.socket.try_send(&message[..])),
            (0, Some(to)) => tried(self.socket.try_send_to(to, &message[..])),
            (1, None) => self.send_or_drop(None, || self.socket.send(owned().into())).await,
            (1, Some(to)) => self.send_or_drop(Some(to), || self.socket.send_to(to, owned().into())).await,
            (_, None) => self.send_or_drop(None, || self.socket.send(message[..].into())).await,
            (_, Some(to)) => self.send_or_drop(Some(to), || self.socket.send_to(to, message[..].into())).await,
        };
        if verdict == Verdict::Accepted {
            if self.common.verbose {
                let number = self.common.journal.borrow().lives[self.life.0 as usize].sent.len();
                eprintln!("{:>14} {:?} sent {number}, {len} bytes, to {to:?}", self.common.now_ns(), self.life);
            }
            self.common.journal.borrow_mut().accepted(self.life, len, to, key);
        }
        self.socket.told().await;
        verdict != Verdict::Closed
    }

    /// Waits for a send, or gives it up at the first occasion; in the end also when it waits for somebody who is gone for good.
    async fn send_or_drop<F>(&self, to: Option<Identity>, send: impl FnOnce() -> F) -> Verdict
    where
        F: Future<Output = Result<(), SendError>>,
    {
        let mut send = pin!(send());
        std::future::poll_fn(|cx| match send.as_mut().poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Verdict::Accepted),
            Poll::Ready(Err(error)) => Poll::Ready(Verdict::of(&error)),
            Poll::Pending if self.common.network.borrow_mut().strikes(Fault::FutureDropped, 3) => {
                Poll::Ready(Verdict::Refused)
            }
            Poll::Pending if self.common.healed.get() && to.is_some_and(|to| !self.socket.peers().contains(&to)) => {
                Poll::Ready(Verdict::Refused)
            }
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Takes what comes, until the socket is closed.
    pub(super) async fn receive_all(mut self) {
        loop {
            if self.plan.slow_consumer && !self.common.healed.get() && self.dice.once_in(8) {
                self.common.network.borrow_mut().faults.note(Fault::SlowConsumer);
                let ns = self.dice.pick(1_000_000, 3_000_000_000);
                self.socket.sleep(&self.common, ns).await;
            }
            if self.plan.ack_mode != AckMode::Manual && self.dice.once_in(3) {
                let Ok(batch) = self.socket.recv_batch().await else { return };
                for message in &batch {
                    self.took(batch.identity(), message);
                }
            } else {
                let Some(received) = self.receive_or_drop().await else { return };
                let Ok(message) = received else { continue };
                self.took(message.identity(), message.payload());
                message.ack();
            }
        }
    }

    /// Waits for a message, or gives up waiting; nothing when the socket is closed.
    async fn receive_or_drop(&self) -> Option<Result<crate::Received, ()>> {
        let mut receive = pin!(self.socket.recv_message());
        std::future::poll_fn(|cx| match receive.as_mut().poll(cx) {
            Poll::Ready(Ok(message)) => Poll::Ready(Some(Ok(message))),
            Poll::Ready(Err(_)) => Poll::Ready(None),
            Poll::Pending if self.common.network.borrow_mut().strikes(Fault::FutureDropped, 8) => {
                Poll::Ready(Some(Err(())))
            }
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn took(&self, from: Identity, message: &[u8]) {
        if self.common.verbose {
            let head: Vec<u32> =
                message.chunks_exact(4).take(2).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect();
            let (now_ns, len) = (self.common.now_ns(), message.len());
            eprintln!("{now_ns:>14} {:?} took {len} bytes from {from}: {head:?}", self.life);
        }
        self.common.network.borrow_mut().note("took", u64::from(self.life.0), message.len() as u64);
        let result = self.common.journal.borrow_mut().received(self.life, from, message);
        if let Err(violation) = result {
            self.common.fail(violation);
        }
    }

    /// Closes the socket.
    pub(super) async fn close(self) {
        let report = self.socket.close().await;
        self.common.journal.borrow_mut().record(self.life).undelivered = Some(report.undelivered);
    }
}
