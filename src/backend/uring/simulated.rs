//! A simulated kernel ring below the real bookkeeping of the io_uring driver: requests work on the simulated network, in any order,
//! in part, late, with every errno that the kernel could give.
//!
//! What the kernel owns it may write until the last completion of the request: memory is read and written as late as possible,
//! and buffers that are provided carry a pattern that nobody else may touch. A descriptor that is closed under a request is a
//! bug of the driver, and ends the run.
//!
//! Invariant of the unsafe blocks: the driver's, that the memory of a request stays valid until its last completion. Breaking it
//! is what this ring is there to find.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::Waker;

use socket2::SockAddr;

use super::Uring;
use super::message::Message;
use super::seam::{Cqe, Request, Ring, Sqe};
use crate::backend::options::{PoolOptions, SocketOptions};
use crate::backend::sim::{self, BackendId, Fault, Host, Id, SharedNetwork};
use crate::backend::sockets::Stream;
use crate::backend::{Address, Backend, Completion, Outcome, Token, cancelled};

/// What provided memory holds until the ring writes to it.
const CANARY: u8 = 0xC5;
/// What such memory is compared with, a part at a time: byte by byte was a third of the time of a fuzzer's ring.
static UNTOUCHED: [u8; 4096] = [CANARY; 4096];
/// Visits at the same time after which nothing is late any more: somebody waits for the end.
const PATIENCE: u32 = 200;

/// The driver over a simulated ring.
pub(in crate::backend) fn open_simulated(
    network: SharedNetwork,
    host: Host,
    pool: PoolOptions,
) -> io::Result<(Box<dyn Backend>, BackendId)> {
    let seat = network.borrow_mut().sit(host);
    let ring = SimRing::new(network, seat, pool);
    Ok((Box::new(Uring::new(ring)?), seat))
}

type Descriptors = Rc<RefCell<BTreeMap<i32, Option<Id>>>>;

/// A socket by its descriptor.
struct SimSocket {
    descriptor: i32,
    descriptors: Descriptors,
    network: SharedNetwork,
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        if let Some(Some(id)) = self.descriptors.borrow_mut().remove(&self.descriptor) {
            self.network.borrow_mut().close(id);
        }
    }
}

/// A request that the ring works on.
struct Pending {
    user_data: u64,
    request: Request,
    /// Which request this is of all that were submitted.
    number: u64,
    /// Bytes that a send has handed over.
    sent: usize,
    cancelled: bool,
}

/// A provided buffer.
struct Provided {
    slab: u16,
    memory: NonNull<u8>,
    len: usize,
    used: usize,
}

struct SimRing {
    network: SharedNetwork,
    seat: BackendId,
    submissions: Vec<Sqe>,
    submissions_max: usize,
    completions: VecDeque<Cqe>,
    completions_max: usize,
    /// Completions that are still to come, in order, and when.
    late: VecDeque<(u64, Cqe)>,
    pending: Vec<Pending>,
    submitted: u64,
    /// Cancellations that look for their request later: when, by which name, and how many had been submitted when they were.
    late_cancels: Vec<(u64, u64, u64)>,
    provided: VecDeque<Provided>,
    pool: PoolOptions,
    plain: bool,
    bell: Option<u64>,
    descriptors: Descriptors,
    next_descriptor: i32,
    resolving: Vec<Token>,
    resolved: Vec<Completion>,
    last_ns: u64,
    visits: u32,
}

impl SimRing {
    fn new(network: SharedNetwork, seat: BackendId, pool: PoolOptions) -> SimRing {
        let mut net = network.borrow_mut();
        let small = net.strikes(Fault::RingSmallQueue, 1);
        let submissions_max = if small { 4 << net.dice.pick(0, 1) } else { 256 };
        let tight = net.faults.has(Fault::RingOverflow);
        let completions_max = if tight { net.dice.pick(2, 8) as usize } else { 2048 };
        let plain = net.strikes(Fault::RingPlainBuffers, 1);
        drop(net);
        SimRing {
            network,
            seat,
            submissions: Vec::new(),
            submissions_max,
            completions: VecDeque::new(),
            completions_max,
            late: VecDeque::new(),
            pending: Vec::new(),
            submitted: 0,
            late_cancels: Vec::new(),
            provided: VecDeque::new(),
            pool,
            plain,
            bell: None,
            descriptors: Rc::default(),
            next_descriptor: 3,
            resolving: Vec::new(),
            resolved: Vec::new(),
            last_ns: 0,
            visits: 0,
        }
    }

    fn open(&mut self, id: Option<Id>) -> SimSocket {
        let descriptor = self.next_descriptor;
        self.next_descriptor += 1;
        self.descriptors.borrow_mut().insert(descriptor, id);
        SimSocket { descriptor, descriptors: Rc::clone(&self.descriptors), network: Rc::clone(&self.network) }
    }

    fn thing(&self, descriptor: i32) -> Option<Id> {
        let descriptors = self.descriptors.borrow();
        let thing = descriptors.get(&descriptor);
        assert!(thing.is_some(), "descriptor {descriptor} was closed under a request");
        thing.copied().flatten()
    }

    fn strikes(&self, fault: Fault, one_in: u64) -> bool {
        self.network.borrow_mut().strikes(fault, one_in)
    }

    /// A completion, now or later, but never before one that was posted earlier.
    fn post(&mut self, user_data: u64, result: i32, more: bool, buffer: Option<(u16, bool)>) {
        let mut network = self.network.borrow_mut();
        let mut at_ns = self.late.back().map_or(0, |(at_ns, _)| *at_ns);
        if network.strikes(Fault::RingLateCompletion, 24) {
            at_ns = at_ns.max(network.now_ns() + network.dice.magnitude(1, 50_000_000));
            network.poke(self.seat, at_ns);
        }
        let (slab, slab_more) = (buffer.map(|(slab, _)| slab), buffer.is_some_and(|(_, more)| more));
        self.late.push_back((at_ns, Cqe { user_data, result, more, slab, slab_more }));
    }

    /// Moves what is due to where the driver sees it; what finds no room waits for the next visit.
    fn flush(&mut self) {
        let patient = self.visits < PATIENCE;
        while let Some((at_ns, _)) = self.late.front() {
            if patient && *at_ns > self.network.borrow().now_ns() {
                return;
            }
            if self.completions.len() >= self.completions_max {
                self.network.borrow_mut().faults.note(Fault::RingOverflow);
                return;
            }
            self.completions.extend(self.late.pop_front().map(|(_, cqe)| cqe));
        }
    }

    fn submit(&mut self) {
        for Sqe { user_data, request } in std::mem::take(&mut self.submissions) {
            self.submitted += 1;
            let number = self.submitted;
            match request {
                Request::Bell => self.bell = Some(user_data),
                Request::Cancel { target } => {
                    let late = self.strikes(Fault::RingLateCancel, 4);
                    let mut network = self.network.borrow_mut();
                    let now_ns = network.now_ns();
                    let at_ns = if late { now_ns + network.dice.magnitude(1, 50_000_000) } else { now_ns };
                    // What has ended and is only late counts as found: the kernel would say so before.
                    let ended = self.late.iter().any(|(_, cqe)| cqe.user_data == target);
                    let found = ended || self.pending.iter().any(|pending| pending.user_data == target);
                    let missed = found && !ended && network.strikes(Fault::RingCancelMissed, 8);
                    network.poke(self.seat, at_ns);
                    drop(network);
                    if !missed {
                        self.late_cancels.push((at_ns, target, self.submitted));
                    }
                    self.post(user_data, if found && !missed { 0 } else { -libc::ENOENT }, false, None);
                }
                Request::Connect { socket, to } => {
                    // SAFETY: the file's invariant.
                    let to = unsafe { Address::from_sockaddr(&*to) };
                    let connected = to
                        .and_then(|to| sim::place(&to))
                        .and_then(|to| self.network.borrow_mut().connect(self.seat, to));
                    match connected {
                        Ok(id) => {
                            self.descriptors.borrow_mut().insert(socket, Some(id));
                            self.pending.push(Pending { user_data, request, number, sent: 0, cancelled: false });
                        }
                        Err(error) => self.post(user_data, -errno(&error), false, None),
                    }
                }
                request => self.pending.push(Pending { user_data, request, number, sent: 0, cancelled: false }),
            }
        }
    }

    /// Works on everything that is pending, from a random place on.
    fn work(&mut self) {
        let now_ns = self.network.borrow().now_ns();
        let patient = self.visits < PATIENCE;
        for (_, target, submitted) in self.late_cancels.extract_if(.., |(at_ns, ..)| *at_ns <= now_ns || !patient) {
            if let Some(pending) = self.pending.iter_mut().find(|pending| pending.user_data == target) {
                assert!(pending.number <= submitted, "a cancellation hits a request that was not meant");
                pending.cancelled = true;
            }
        }
        let count = self.pending.len();
        if count > 1 {
            let first = self.network.borrow_mut().dice.index(count);
            self.pending.rotate_left(first);
        }
        let mut at = 0;
        while at < self.pending.len() {
            let mut pending = self.pending.remove(at);
            if self.attempt(&mut pending) {
                continue;
            }
            self.pending.insert(at, pending);
            at += 1;
        }
    }

    /// True when the request has had its last completion.
    fn attempt(&mut self, pending: &mut Pending) -> bool {
        let user_data = pending.user_data;
        if pending.cancelled {
            let result = if pending.sent > 0 { pending.sent as i32 } else { -libc::ECANCELED };
            self.post(user_data, result, false, None);
            return true;
        }
        let one_shot =
            matches!(pending.request, Request::Recv { .. } | Request::Send { .. } | Request::SendMessage { .. });
        if one_shot && pending.sent == 0 && self.strikes(Fault::RingNotNow, 64) {
            let result = if self.network.borrow_mut().dice.once_in(2) { -libc::EINTR } else { -libc::EAGAIN };
            self.post(user_data, result, false, None);
            return true;
        }
        match pending.request {
            Request::Accept { socket } => self.accept(user_data, socket),
            Request::Connect { socket, .. } => {
                let connected = self.thing(socket).and_then(|id| self.network.borrow().connected(id));
                let Some(result) = connected else { return false };
                self.post(user_data, result.map_or_else(|error| -errno(&error), |_| 0), false, None);
                true
            }
            Request::Recv { socket, memory, len } => {
                // SAFETY: the file's invariant; what is there may be uninitialised, so it is zeroed before it is a slice.
                let into = unsafe {
                    std::ptr::write_bytes(memory, 0, len as usize);
                    std::slice::from_raw_parts_mut(memory, len as usize)
                };
                let Some(id) = self.thing(socket) else { return false };
                let read = self.network.borrow_mut().read(id, into);
                let Some(result) = said(read) else { return false };
                self.post(user_data, result, false, None);
                true
            }
            Request::RecvMulti { socket } => self.receive(user_data, socket),
            Request::Send { socket, memory, len } => {
                // SAFETY: the file's invariant.
                let bytes = unsafe { std::slice::from_raw_parts(memory, len as usize) };
                self.send(pending, socket, &[bytes])
            }
            Request::SendMessage { socket, message } => {
                // SAFETY: the file's invariant, for the message and for each of its parts.
                let parts: Vec<&[u8]> = unsafe {
                    let parts = Message::parts(&*message);
                    parts.map(|(memory, len)| std::slice::from_raw_parts(memory, len)).collect()
                };
                self.send(pending, socket, &parts)
            }
            Request::Cancel { .. } | Request::Bell => true,
        }
    }

    fn accept(&mut self, user_data: u64, socket: i32) -> bool {
        let Some(listener) = self.thing(socket) else { return false };
        // Bounded: each round takes a connection that has come in.
        loop {
            let accepted = self.network.borrow_mut().accept(listener);
            match accepted {
                Ok((id, _)) => {
                    let descriptor = self.next_descriptor;
                    self.next_descriptor += 1;
                    self.descriptors.borrow_mut().insert(descriptor, Some(id));
                    let more = !self.strikes(Fault::RingMultishotEnds, 6);
                    self.post(user_data, descriptor, more, None);
                    if !more {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    self.post(user_data, -errno(&error), false, None);
                    return true;
                }
            }
        }
    }

    fn receive(&mut self, user_data: u64, socket: i32) -> bool {
        let Some(id) = self.thing(socket) else { return false };
        // Bounded: each round takes bytes that have arrived.
        while self.network.borrow().is_readable(id) {
            if self.strikes(Fault::RingNoBuffers, 24) || self.provided.is_empty() {
                self.post(user_data, -libc::ENOBUFS, false, None);
                return true;
            }
            let Some(front) = self.provided.front_mut() else { return false };
            // SAFETY: the slab was provided with this length, and is the ring's until it says that it is used up.
            let room = unsafe {
                std::slice::from_raw_parts_mut(front.memory.as_ptr().add(front.used), front.len - front.used)
            };
            let untouched = room.chunks(UNTOUCHED.len()).all(|part| part == &UNTOUCHED[..part.len()]);
            assert!(untouched, "somebody wrote to a buffer that the kernel owns");
            let read = self.network.borrow_mut().read(id, room);
            let Some(result) = said(read) else { return false };
            if result <= 0 {
                self.post(user_data, result, false, None);
                return true;
            }
            front.used += result as usize;
            let (slab, slab_more) = (front.slab, !self.plain && front.used < front.len);
            if !slab_more {
                self.provided.pop_front();
            }
            let more = !self.strikes(Fault::RingMultishotEnds, 12);
            self.post(user_data, result, more, Some((slab, slab_more)));
            if !more {
                return true;
            }
        }
        false
    }

    fn send(&mut self, pending: &mut Pending, socket: i32, parts: &[&[u8]]) -> bool {
        let Some(id) = self.thing(socket) else { return false };
        let total: usize = parts.iter().map(|part| part.len()).sum();
        // Bounded: each round hands over at least a byte.
        loop {
            let mut skip = pending.sent;
            let rest = parts.iter().map(move |part| {
                let rest = &part[skip.min(part.len())..];
                skip -= part.len() - rest.len();
                rest
            });
            let written = self.network.borrow_mut().write(id, rest);
            match said(written) {
                None => return false,
                Some(result) if result < 0 => {
                    let result = if pending.sent > 0 { pending.sent as i32 } else { result };
                    self.post(pending.user_data, result, false, None);
                    return true;
                }
                Some(len) => {
                    pending.sent += len as usize;
                    if pending.sent == total || self.strikes(Fault::RingShortSend, 16) {
                        self.post(pending.user_data, pending.sent as i32, false, None);
                        return true;
                    }
                }
            }
        }
    }
}

impl Ring for SimRing {
    type Socket = SimSocket;

    fn now_ns(&self) -> u64 {
        // A driver that is dropped waits for its last operations, and nobody else can move the clock meanwhile.
        let waited_ns = if self.visits > 10 * PATIENCE { u64::from(self.visits) * 1_000_000 } else { 0 };
        self.network.borrow().now_ns() + waited_ns
    }

    fn waker(&self) -> Waker {
        self.network.borrow().waker(self.seat)
    }

    fn silence(&mut self) {}

    fn push(&mut self, sqe: Sqe) -> bool {
        let room = self.submissions.len() < self.submissions_max;
        if room {
            self.submissions.push(sqe);
        }
        room
    }

    fn needs_enter(&self) -> bool {
        !self.submissions.is_empty() || self.has_overflowed() || self.network.borrow().has_work(self.seat)
    }

    fn enter(&mut self, wait_until_ns: Option<u64>) -> io::Result<()> {
        let now_ns = self.network.borrow().now_ns();
        self.visits = if now_ns == self.last_ns { self.visits + 1 } else { 0 };
        self.last_ns = now_ns;
        self.submit();
        // What is ready is found by trying everything.
        while self.network.borrow_mut().next_ready(self.seat).is_some() {}
        self.work();
        if let Some(user_data) = self.bell
            && self.network.borrow_mut().take_bell(self.seat)
        {
            let more = !self.strikes(Fault::RingMultishotEnds, 4);
            self.bell = more.then_some(user_data);
            self.post(user_data, 1, more, None);
        }
        self.flush();
        let waits = wait_until_ns.filter(|_| self.completions.is_empty());
        self.network.borrow_mut().turned(self.seat, waits.unwrap_or(0), false);
        Ok(())
    }

    fn has_overflowed(&self) -> bool {
        let now_ns = self.network.borrow().now_ns();
        self.completions.len() >= self.completions_max && self.late.front().is_some_and(|(at_ns, _)| *at_ns <= now_ns)
    }

    fn reap(&mut self) -> Option<Cqe> {
        let cqe = self.completions.pop_front();
        // What found no room comes with the next visit.
        let now_ns = self.network.borrow().now_ns();
        if cqe.is_none() && self.late.front().is_some_and(|(at_ns, _)| *at_ns <= now_ns) {
            self.network.borrow_mut().poke(self.seat, now_ns);
        }
        cqe
    }

    fn pool_options(&self) -> PoolOptions {
        self.pool
    }

    fn slabs_wanted(&self) -> usize {
        self.pool.slab_count.min(4)
    }

    fn provide(&mut self, slab: u16, memory: NonNull<u8>, len: usize) {
        // SAFETY: the slab is the ring's from here on.
        unsafe { std::ptr::write_bytes(memory.as_ptr(), CANARY, len) };
        self.provided.push_back(Provided { slab, memory, len, used: 0 });
    }

    fn listen(&mut self, address: &Address, _: &SocketOptions) -> io::Result<(SimSocket, Address)> {
        let (id, bound) = self.network.borrow_mut().listen(self.seat, sim::place(address)?)?;
        Ok((self.open(Some(id)), sim::address(bound)))
    }

    fn open_stream(&mut self, _: &SockAddr, _: &SocketOptions) -> io::Result<SimSocket> {
        Ok(self.open(None))
    }

    fn adopt(&mut self, accepted: i32) -> SimSocket {
        assert!(self.descriptors.borrow().contains_key(&accepted), "adopted once");
        SimSocket { descriptor: accepted, descriptors: Rc::clone(&self.descriptors), network: Rc::clone(&self.network) }
    }

    fn id(&self, socket: &SimSocket) -> i32 {
        socket.descriptor
    }

    fn peer(&self, socket: &SimSocket) -> io::Result<Address> {
        self.connected(socket)
    }

    fn connected(&self, socket: &SimSocket) -> io::Result<Address> {
        let id = self.thing(socket.descriptor).ok_or(io::ErrorKind::NotConnected)?;
        let connected = self.network.borrow().connected(id);
        connected.unwrap_or(Err(io::ErrorKind::NotConnected.into())).map(sim::address)
    }

    fn send_now(&mut self, socket: &SimSocket, bytes: &[u8]) -> usize {
        let Some(id) = self.thing(socket.descriptor) else { return 0 };
        let mut network = self.network.borrow_mut();
        // Now and then it does not fit at once, so that requests send what is short as well.
        if network.dice.index(4) == 0 {
            return 0;
        }
        network.write(id, std::iter::once(bytes)).unwrap_or(0)
    }

    fn recv_now(&mut self, socket: &SimSocket, into: &mut [u8]) -> i32 {
        if !self.late.is_empty() || !self.completions.is_empty() {
            return 0;
        }
        let Some(id) = self.thing(socket.descriptor) else { return 0 };
        let mut network = self.network.borrow_mut();
        let result = if network.is_readable(id) { said(network.read(id, into)) } else { None };
        result.unwrap_or(0)
    }

    fn shutdown(&self, socket: &SimSocket) {
        if let Some(id) = self.thing(socket.descriptor) {
            self.network.borrow_mut().shutdown(id);
        }
    }

    fn release(&mut self, socket: SimSocket) -> Option<Stream> {
        let id = self.descriptors.borrow_mut().remove(&socket.descriptor).flatten()?;
        Some(Stream::Simulated(self.network.borrow_mut().give(id)))
    }

    fn attach(&mut self, stream: Stream) -> io::Result<SimSocket> {
        let Stream::Simulated(stream) = stream else { return Err(io::ErrorKind::Unsupported.into()) };
        let (id, _) = self.network.borrow_mut().take(self.seat, &stream);
        Ok(self.open(Some(id)))
    }

    fn resolve(&mut self, host: &str, port: u16, token: Token) {
        self.resolving.push(token);
        self.network.borrow_mut().resolve(self.seat, host, port, token);
    }

    fn cancel_resolve(&mut self, token: Token) -> bool {
        let Some(at) = self.resolving.iter().position(|&pending| pending == token) else { return false };
        self.resolving.swap_remove(at);
        self.resolved.push(Completion { token, outcome: Outcome::Resolved(Err(cancelled())) });
        true
    }

    fn has_resolved(&self) -> bool {
        !self.resolved.is_empty() || self.network.borrow().has_resolved(self.seat)
    }

    fn resolved(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.resolved);
        loop {
            let Some((token, result)) = self.network.borrow_mut().next_resolved(self.seat) else { break };
            if let Some(at) = self.resolving.iter().position(|&pending| pending == token) {
                self.resolving.swap_remove(at);
                out.push(Completion { token, outcome: Outcome::Resolved(result) });
            }
        }
    }
}

/// A result as the kernel writes it; nothing for "not now".
fn said(result: io::Result<usize>) -> Option<i32> {
    match result {
        Ok(len) => Some(len as i32),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some(-errno(&error)),
    }
}

fn errno(error: &io::Error) -> i32 {
    use io::ErrorKind as K;
    error.raw_os_error().unwrap_or(match error.kind() {
        K::ConnectionRefused => libc::ECONNREFUSED,
        K::ConnectionReset => libc::ECONNRESET,
        K::ConnectionAborted => libc::ECONNABORTED,
        K::HostUnreachable => libc::EHOSTUNREACH,
        K::NotFound => libc::ENOENT,
        K::BrokenPipe => libc::EPIPE,
        K::NotConnected => libc::ENOTCONN,
        _ => libc::EIO,
    })
}
