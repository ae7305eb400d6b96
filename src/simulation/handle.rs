//! A socket as the applications of the world use it, on an engine with threads or on one that they drive themselves.
//!
//! The calls of an inline engine that would wait in the kernel give up after one turn here (see `InlineEngine::over`), and are made
//! again when there is something to do for their engine, or their time is up: [`Driver`]. In between the world reads what the turn has
//! told. Several applications of a node wait at a time, which is as if one made their calls in turn.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::node::Common;
use crate::backend::Address;
use crate::backend::sim::{BackendId, Network};
use crate::engine::inline::InlineEngine;
use crate::protocol::Identity;
use crate::shard::{CloseReport, Event, LagLimit, PeerStats, SlowPolicy, Stats};
use crate::socket::{
    Batch, BindError, BindOptions, ConnectError, ControlError, Endpoint, Key, Payload, Received, RecvError, SendError,
    Socket, TryRecvError, TrySendError, bound, inline,
};

/// What drives an inline engine: those of its applications that wait.
#[derive(Clone)]
pub(super) struct Driver {
    pub(super) engine: InlineEngine,
    pub(super) sockets: inline::Engine,
    pub(super) seat: BackendId,
    /// Until when, and who.
    waiting: Rc<RefCell<Vec<(u64, Waker)>>>,
}

impl Driver {
    pub(super) fn new(engine: InlineEngine, seat: BackendId) -> Driver {
        Driver { sockets: engine.clone().into(), engine, seat, waiting: Rc::default() }
    }

    /// When those who wait are to look again though nothing happens.
    pub(super) fn until_ns(&self) -> u64 {
        let until_ns = self.waiting.borrow().iter().map(|(until_ns, _)| *until_ns).min();
        until_ns.map_or(u64::MAX, |until_ns| until_ns.min(self.engine.next_deadline_ns()))
    }

    /// Ends the waits if there is a reason to. A thread that was stopped for longer finds out by itself how late it is.
    pub(super) fn look(&self, network: &Network, late_ns: u64) {
        let (now_ns, until_ns) = (network.now_ns(), self.until_ns());
        // What a turn that did not wait has begun goes on in the next one.
        let goes_on = network.waiting_until_ns(self.seat) <= now_ns;
        if !self.waiting.borrow().is_empty() && (goes_on || network.has_work(self.seat) || until_ns <= now_ns) {
            if now_ns <= until_ns.saturating_add(late_ns) {
                self.engine.shard().waited();
            }
            self.waiting.borrow_mut().drain(..).for_each(|(_, waker)| waker.wake());
        }
    }

    /// Makes a call, with the time that is left for it, until it has an answer.
    async fn until<T>(&self, common: &Common, until_ns: u64, mut call: impl FnMut(Duration) -> Option<T>) -> T {
        std::future::poll_fn(|cx| {
            let left = Duration::from_nanos(until_ns.saturating_sub(common.now_ns()));
            let answer = call(left);
            if answer.is_none() {
                self.waiting.borrow_mut().push((until_ns, cx.waker().clone()));
            }
            answer.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// See the file's header.
#[derive(Clone)]
pub(super) enum Handle {
    Threads(Socket),
    Inline(Rc<inline::Socket>, Driver, Common),
}

/// What is the same for both.
macro_rules! both {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)+) => {
        $(pub(super) fn $name(&self, $($argument: $kind),*) -> $result {
            match self {
                Handle::Threads(socket) => socket.$name($($argument),*),
                Handle::Inline(socket, ..) => socket.$name($($argument),*),
            }
        })+
    };
}

impl Handle {
    both! {
        identity() -> Identity;
        peers() -> Vec<Identity>;
        stats() -> Stats;
        peer_stats() -> Vec<PeerStats>;
        try_event() -> Option<Event>;
        set_slow_policy(peer: Identity, policy: SlowPolicy, limit: LagLimit) -> Result<(), ControlError>;
    }

    pub(super) fn try_send<'a>(&self, message: impl Into<Payload<'a>>) -> Result<(), TrySendError<'a>> {
        match self {
            Handle::Threads(socket) => socket.try_send(message),
            Handle::Inline(socket, ..) => socket.try_send(message),
        }
    }

    pub(super) fn try_send_with(
        &self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), TrySendError<'static>> {
        match self {
            Handle::Threads(socket) => socket.try_send_with(bytes, fill),
            Handle::Inline(socket, ..) => socket.try_send_with(bytes, fill),
        }
    }

    pub(super) fn try_send_to<'a>(
        &self,
        to: Identity,
        message: impl Into<Payload<'a>>,
    ) -> Result<(), TrySendError<'a>> {
        match self {
            Handle::Threads(socket) => socket.try_send_to(to, message),
            Handle::Inline(socket, ..) => socket.try_send_to(to, message),
        }
    }

    pub(super) fn try_send_keyed<'a>(
        &self,
        key: impl Into<Key<'a>>,
        message: impl Into<Payload<'a>>,
    ) -> Result<(), TrySendError<'a>> {
        match self {
            Handle::Threads(socket) => socket.try_send_keyed(key, message),
            Handle::Inline(socket, ..) => socket.try_send_keyed(key, message),
        }
    }

    pub(super) async fn bind(&self, endpoint: &str) -> Result<Address, BindError> {
        match self {
            Handle::Threads(socket) => socket.bind(endpoint).await,
            Handle::Inline(socket, driver, _) => {
                let place = Endpoint::try_from(endpoint).map_err(BindError::Endpoint)?;
                let reply = socket.start_bind(&place, &BindOptions::new())?;
                self.call(|socket| match reply.take() {
                    Some(answer) => Some(bound(answer, place.clone())),
                    None if !socket.is_open() => Some(Err(BindError::Closed)),
                    None => {
                        // The address is in use.
                        let _ = driver.sockets.drive(u64::MAX);
                        None
                    }
                })
                .await
            }
        }
    }

    pub(super) async fn connect(&self, endpoint: &str) -> Result<(), ConnectError> {
        match self {
            Handle::Threads(socket) => socket.connect(endpoint).await,
            Handle::Inline(socket, ..) => socket.connect(endpoint),
        }
    }

    pub(super) async fn unbind(&self, endpoint: &str) -> Result<(), ControlError> {
        match self {
            Handle::Threads(socket) => socket.unbind(endpoint).await,
            Handle::Inline(..) => self.ask(|socket| socket.unbind(endpoint)).await,
        }
    }

    pub(super) async fn disconnect_from(&self, endpoint: &str) -> Result<(), ControlError> {
        match self {
            Handle::Threads(socket) => socket.disconnect_from(endpoint).await,
            Handle::Inline(..) => self.ask(|socket| socket.disconnect_from(endpoint)).await,
        }
    }

    pub(super) async fn disconnect(&self, peer: Identity) -> Result<(), ControlError> {
        match self {
            Handle::Threads(socket) => socket.disconnect(peer).await,
            Handle::Inline(..) => self.ask(|socket| socket.disconnect(peer)).await,
        }
    }

    /// A request that was made again after it had to wait finds that there is nothing left to do.
    async fn ask(&self, request: impl Fn(&inline::Socket) -> Result<(), ControlError>) -> Result<(), ControlError> {
        let mut asked = false;
        self.call(|socket| match request(socket) {
            Err(ControlError::Closed) if socket.is_open() => {
                asked = true;
                None
            }
            Err(ControlError::Closed) => Some(Err(ControlError::Closed)),
            Err(_) if asked => Some(Ok(())),
            answer => Some(answer),
        })
        .await
    }

    /// Makes a call of an inline socket until it has an answer.
    async fn call<T>(&self, mut call: impl FnMut(&inline::Socket) -> Option<T>) -> T {
        match self {
            Handle::Threads(_) => std::future::pending().await,
            Handle::Inline(socket, driver, common) => driver.until(common, u64::MAX, |_| call(socket)).await,
        }
    }

    pub(super) async fn send(&self, message: Payload<'_>) -> Result<(), SendError> {
        match self {
            Handle::Threads(socket) => socket.send(message).await,
            Handle::Inline(..) => self.put(|socket| socket.send(again(&message))).await,
        }
    }

    pub(super) async fn send_to(&self, to: Identity, message: Payload<'_>) -> Result<(), SendError> {
        match self {
            Handle::Threads(socket) => socket.send_to(to, message).await,
            Handle::Inline(..) => self.put(|socket| socket.send_to(to, again(&message))).await,
        }
    }

    pub(super) async fn send_keyed(&self, key: u64, message: Payload<'_>) -> Result<(), SendError> {
        match self {
            Handle::Threads(socket) => socket.send_keyed(key, message).await,
            Handle::Inline(..) => self.put(|socket| socket.send_keyed(key, again(&message))).await,
        }
    }

    async fn put(&self, send: impl Fn(&inline::Socket) -> Result<(), SendError>) -> Result<(), SendError> {
        let waits = |result: &Result<(), SendError>| *result == Err(SendError::EngineStopped);
        self.call(|socket| Some(send(socket)).filter(|result| !waits(result))).await
    }

    pub(super) async fn recv_batch(&self) -> Result<Batch, RecvError> {
        match self {
            Handle::Threads(socket) => socket.recv_batch().await,
            Handle::Inline(..) => self.call(|socket| taken(socket.recv_batch(None))).await,
        }
    }

    pub(super) async fn recv_message(&self) -> Result<Received, RecvError> {
        match self {
            Handle::Threads(socket) => socket.recv_message().await,
            Handle::Inline(..) => self.call(|socket| taken(socket.recv_message(None))).await,
        }
    }

    /// Lets time pass. An application that drives its engine goes on doing so.
    pub(super) async fn sleep(&self, common: &Common, ns: u64) {
        let Handle::Inline(socket, driver, _) = self else { return common.sleep(ns).await };
        let mut ready = Vec::new();
        let until_ns = common.now_ns() + ns;
        let pass = |left: Duration| {
            // Where messages are there to take, `poll` does not wait.
            if !left.is_zero() && driver.sockets.poll(Some(left), &mut ready).is_ok() {
                let _ = socket.wait_for_peers(usize::MAX, left);
            }
            left.is_zero().then_some(())
        };
        driver.until(common, until_ns, pass).await;
    }

    /// An application that makes no call any more drives its engine, which sends what was appended.
    pub(super) async fn drive(&self) {
        let Handle::Inline(_, driver, _) = self else { return };
        let _ = driver.sockets.poll(Some(Duration::ZERO), &mut Vec::new());
        self.told().await;
    }

    /// The world reads what a call has told that may have driven the engine.
    pub(super) async fn told(&self) {
        let mut told = matches!(self, Handle::Threads(_));
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut told, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    pub(super) async fn close(&self) -> CloseReport {
        match self {
            Handle::Threads(socket) => socket.close().await,
            Handle::Inline(socket, driver, _) => {
                // As `inline::Socket::close`, which takes the socket away from the other applications.
                let reply = socket.start_close();
                self.call(|_| {
                    let report = reply.take();
                    if report.is_none() {
                        let _ = driver.sockets.drive(u64::MAX);
                    }
                    report
                })
                .await
            }
        }
    }
}

fn again<'a>(message: &'a Payload<'_>) -> Payload<'a> {
    match message {
        Payload::Borrowed(bytes) => Payload::Borrowed(bytes),
        Payload::Owned(bytes) => Payload::Owned(bytes.clone()),
    }
}

/// Nothing where the call gave up because it would have had to wait.
fn taken<T>(result: Result<T, TryRecvError>) -> Option<Result<T, RecvError>> {
    match result {
        Ok(taken) => Some(Ok(taken)),
        Err(TryRecvError::Never(RecvError::Closed)) => Some(Err(RecvError::Closed)),
        Err(_) => None,
    }
}
