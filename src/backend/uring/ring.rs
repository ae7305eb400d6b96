//! The kernel's io_uring behind the [`Ring`] trait, by way of the `io-uring` crate. All unsafe calls of the driver into
//! the kernel are here and in `buffers.rs`.
//!
//! Their common invariant: the memory that a request points at stays valid and untouched until the request's last
//! completion. The driver keeps it (see `op.rs`); when it cannot (it is dropped while the kernel holds on to
//! requests) it leaks that memory.
//!
//! Set-up goes down a ladder: each flag that the kernel does not know costs performance, not function. With
//! DEFER_TASKRUN nothing completes unless the owner enters the kernel, and TASKRUN_FLAG shows when that is worth it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use socket2::{SockAddr, Socket};

use super::buffers::{BufferRing, GROUP};
use super::seam::{Cqe, Request, Ring, Sqe};
use crate::backend::options::{BackendOptions, PoolOptions};
use crate::backend::resolver::Resolver;
use crate::backend::sockets::{self, Listener, Stream};
use crate::backend::unacknowledged::unacknowledged;
use crate::backend::{Address, Completion, SocketOptions, Token, monotonic_ns};

/// Entries of the completion queue for each entry of the submission queue: multishot requests complete many times.
const COMPLETIONS_PER_SUBMISSION: u32 = 8;

/// The smallest submission queue that is tried when locked memory is short.
const ENTRIES_MIN: u32 = 32;

const SEND_FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// An io_uring instance of the calling thread.
pub(super) struct KernelRing {
    // Before `buffers`: the ring is closed first.
    ring: IoUring,
    buffers: BufferRing,
    bell: Arc<Bell>,
    resolver: Resolver,
    /// Whether the kernel shows pending completion work in the queue's flags.
    has_taskrun_flag: bool,
    /// DEFER_TASKRUN: nothing is received for a request but while its owner enters the kernel for that.
    is_deferred: bool,
}

impl KernelRing {
    /// Sets up a ring with its buffers and doorbell.
    pub(super) fn open(options: &BackendOptions) -> io::Result<KernelRing> {
        let (ring, has_taskrun_flag, is_deferred) = set_up(options.ring_entries.next_power_of_two().clamp(4, 4096))?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let buffers = BufferRing::register(&ring, options)?;
        let event =
            rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK)?;
        let bell = Arc::new(Bell { event, rung: AtomicBool::new(false) });
        let resolver = Resolver::new(Waker::from(Arc::clone(&bell)));
        Ok(KernelRing { ring, buffers, bell, resolver, has_taskrun_flag, is_deferred })
    }

    fn entry(&self, request: Request) -> squeue::Entry {
        match request {
            Request::Accept { socket } => opcode::AcceptMulti::new(types::Fd(socket)).flags(libc::SOCK_CLOEXEC).build(),
            Request::Connect { socket, to } => {
                // SAFETY: the operation keeps the address in a box until its last completion.
                let (address, len) = unsafe { ((*to).as_ptr(), (*to).len()) };
                opcode::Connect::new(types::Fd(socket), address.cast(), len).build()
            }
            Request::Recv { socket, memory, len } => opcode::Recv::new(types::Fd(socket), memory, len).build(),
            Request::RecvMulti { socket } => opcode::RecvMulti::new(types::Fd(socket), GROUP).build(),
            Request::Send { socket, memory, len } => {
                opcode::Send::new(types::Fd(socket), memory, len).flags(SEND_FLAGS).build()
            }
            Request::SendMessage { socket, message } => {
                // SAFETY: the operation keeps the message in a box until its last completion.
                let header = unsafe { (*message).header() };
                opcode::SendMsg::new(types::Fd(socket), header).flags(SEND_FLAGS as u32).build()
            }
            Request::Cancel { target } => opcode::AsyncCancel::new(target).build(),
            Request::Bell => {
                // The eventfd is never read: each write to it wakes a multishot poll once more.
                opcode::PollAdd::new(types::Fd(self.bell.event.as_raw_fd()), libc::POLLIN as u32).multi(true).build()
            }
        }
    }
}

/// The best ring that this kernel gives, and whether it has TASKRUN_FLAG and DEFER_TASKRUN.
fn set_up(mut entries: u32) -> io::Result<(IoUring, bool, bool)> {
    let mut rung = 0;
    // Bounded: each round goes down one rung or halves the entries.
    loop {
        let mut builder = IoUring::builder();
        builder.setup_submit_all().setup_clamp().setup_cqsize(entries * COMPLETIONS_PER_SUBMISSION);
        builder.setup_coop_taskrun().setup_taskrun_flag();
        if rung <= 1 {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        if rung == 0 {
            builder.setup_no_sqarray();
        }
        match builder.build(entries) {
            Ok(ring) => return Ok((ring, true, rung <= 1)),
            Err(error) => match error.raw_os_error() {
                // 6.6 has NO_SQARRAY, 6.1 DEFER_TASKRUN, 5.19 the others; multishot receive needs 6.0 anyway.
                Some(libc::EINVAL) if rung < 2 => rung += 1,
                Some(libc::ENOMEM) if entries > ENTRIES_MIN => entries /= 2,
                _ => return Err(error),
            },
        }
    }
}

impl Ring for KernelRing {
    type Socket = OsSocket;

    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.bell))
    }

    fn silence(&mut self) {
        // A read-modify-write: what the ringers that found it rung did before is visible after it.
        self.bell.rung.swap(false, Ordering::AcqRel);
    }

    fn push(&mut self, sqe: Sqe) -> bool {
        let entry = self.entry(sqe.request).user_data(sqe.user_data);
        // SAFETY: the descriptor is open and the memory valid until the last completion (the file's invariant).
        unsafe { self.ring.submission().push(&entry) }.is_ok()
    }

    fn needs_enter(&self) -> bool {
        // SAFETY: this thread owns the ring, and the only other handles on the submission queue are temporaries.
        let queue = unsafe { self.ring.submission_shared() };
        !queue.is_empty() || queue.cq_overflow() || queue.taskrun() || !self.has_taskrun_flag
    }

    fn enter(&mut self, wait_until_ns: Option<u64>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let result = match wait_until_ns {
            None => submitter.submit(),
            Some(u64::MAX) => submitter.submit_and_wait(1),
            Some(deadline_ns) => {
                let left = Duration::from_nanos(deadline_ns.saturating_sub(monotonic_ns()));
                let timeout = types::Timespec::from(left);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&timeout))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The deadline passed; a signal came; the completion queue has to be emptied first; memory is short for
                // the moment. The next visit goes on.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn has_overflowed(&self) -> bool {
        // SAFETY: as in `needs_enter`.
        unsafe { self.ring.submission_shared() }.cq_overflow()
    }

    fn reap(&mut self) -> Option<Cqe> {
        let cqe = self.ring.completion().next()?;
        Some(Cqe {
            user_data: cqe.user_data(),
            result: cqe.result(),
            more: cqueue::more(cqe.flags()),
            slab: cqueue::buffer_select(cqe.flags()),
            slab_more: cqueue::buffer_more(cqe.flags()),
        })
    }

    fn pool_options(&self) -> PoolOptions {
        self.buffers.pool_options()
    }

    fn slabs_wanted(&self) -> usize {
        self.buffers.slabs_wanted()
    }

    fn provide(&mut self, slab: u16, memory: NonNull<u8>, len: usize) {
        self.buffers.provide(slab, memory, len);
    }

    fn listen(&mut self, address: &Address, options: &SocketOptions) -> io::Result<(OsSocket, Address)> {
        let (listener, bound) = Listener::open(address, options, false)?;
        Ok((OsSocket::Listener(listener), bound))
    }

    fn open_stream(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<OsSocket> {
        Ok(OsSocket::Stream(sockets::open_stream(to, options, false)?))
    }

    fn adopt(&mut self, accepted: i32) -> OsSocket {
        // SAFETY: the kernel has just opened this descriptor for us, and each is adopted once.
        OsSocket::Stream(Socket::from(unsafe { OwnedFd::from_raw_fd(accepted) }))
    }

    fn id(&self, socket: &OsSocket) -> i32 {
        socket.inner().as_raw_fd()
    }

    fn peer(&self, socket: &OsSocket) -> io::Result<Address> {
        sockets::peer_address(socket.inner())
    }

    fn connected(&self, socket: &OsSocket) -> io::Result<Address> {
        sockets::connected(socket.inner())
    }

    fn unacknowledged(&self, socket: &OsSocket) -> Option<u64> {
        unacknowledged(socket.inner())
    }

    fn send_now(&mut self, socket: &OsSocket, bytes: &[u8]) -> usize {
        // What is wrong is said by the request that comes instead.
        socket.inner().send_with_flags(bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).unwrap_or(0)
    }

    fn recv_now(&mut self, socket: &OsSocket, into: &mut [u8]) -> i32 {
        if !self.is_deferred || self.has_overflowed() || !self.ring.completion().is_empty() {
            return 0;
        }
        match rustix::net::recv(socket.inner(), into, rustix::net::RecvFlags::DONTWAIT) {
            Ok((len, _)) => len as i32,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(error) => -error.raw_os_error(),
        }
    }

    fn shutdown(&self, socket: &OsSocket) {
        // It fails only when the connection is gone, which the next receive or send reports.
        let _ = socket.inner().shutdown(std::net::Shutdown::Write);
    }

    fn release(&mut self, socket: OsSocket) -> Option<Stream> {
        match socket {
            OsSocket::Stream(socket) => Some(Stream::System { socket, nonblocking: false }),
            OsSocket::Listener(_) => None,
        }
    }

    fn attach(&mut self, stream: Stream) -> io::Result<OsSocket> {
        Ok(OsSocket::Stream(stream.into_socket(false)?))
    }

    fn resolve(&mut self, host: &str, port: u16, token: Token) {
        self.resolver.resolve(host, port, token);
    }

    fn cancel_resolve(&mut self, token: Token) -> bool {
        self.resolver.cancel(token)
    }

    fn has_resolved(&self) -> bool {
        self.resolver.is_ready()
    }

    fn resolved(&mut self, out: &mut Vec<Completion>) {
        self.resolver.collect(out);
    }
}

/// A socket of this process.
pub(super) enum OsSocket {
    Stream(Socket),
    Listener(Listener),
}

impl OsSocket {
    fn inner(&self) -> &Socket {
        match self {
            OsSocket::Stream(socket) => socket,
            OsSocket::Listener(listener) => &listener.socket,
        }
    }
}

/// The doorbell: an eventfd that the ring polls.
struct Bell {
    event: OwnedFd,
    /// Set by whoever rings, cleared by the owner when it has noticed: later ringers need no system call.
    rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel)
            && let Err(error) = rustix::io::write(self.event.as_fd(), &1u64.to_ne_bytes())
        {
            tracing::error!(%error, "the doorbell failed");
        }
    }
}
