//! A socket of libzmq, the system's library, through its C functions. For the rows of libzmq beside ours.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};

#[link(name = "zmq")]
unsafe extern "C" {
    fn zmq_ctx_new() -> *mut c_void;
    fn zmq_ctx_term(context: *mut c_void) -> c_int;
    fn zmq_socket(context: *mut c_void, kind: c_int) -> *mut c_void;
    fn zmq_close(socket: *mut c_void) -> c_int;
    fn zmq_setsockopt(socket: *mut c_void, option: c_int, value: *const c_void, len: usize) -> c_int;
    fn zmq_getsockopt(socket: *mut c_void, option: c_int, value: *mut c_void, len: *mut usize) -> c_int;
    fn zmq_bind(socket: *mut c_void, endpoint: *const c_char) -> c_int;
    fn zmq_connect(socket: *mut c_void, endpoint: *const c_char) -> c_int;
    fn zmq_send(socket: *mut c_void, bytes: *const c_void, len: usize, flags: c_int) -> c_int;
    fn zmq_recv(socket: *mut c_void, bytes: *mut c_void, len: usize, flags: c_int) -> c_int;
}

pub(crate) const SUB: c_int = 2;
pub(crate) const REQ: c_int = 3;
pub(crate) const REP: c_int = 4;
pub(crate) const PULL: c_int = 7;
pub(crate) const PUSH: c_int = 8;
pub(crate) const XPUB: c_int = 9;
pub(crate) const SUBSCRIBE: c_int = 6;
pub(crate) const LINGER: c_int = 17;
pub(crate) const LAST_ENDPOINT: c_int = 32;
pub(crate) const XPUB_NODROP: c_int = 69;
pub(crate) const XPUB_VERBOSER: c_int = 78;

/// One socket in a context of its own.
pub(crate) struct Zmq {
    context: *mut c_void,
    socket: *mut c_void,
}

// SAFETY: a socket of libzmq may go to another thread; here it is used by one at a time, for every call takes `&mut` or
// comes from the thread that owns the value.
unsafe impl Send for Zmq {}

impl Zmq {
    pub(crate) fn new(kind: c_int) -> Zmq {
        // SAFETY: plain constructors; their results are checked.
        let (context, socket) = unsafe {
            let context = zmq_ctx_new();
            (context, zmq_socket(context, kind))
        };
        assert!(!socket.is_null(), "libzmq gives no socket");
        let mut zmq = Zmq { context, socket };
        zmq.set(LINGER, 0);
        zmq
    }

    pub(crate) fn set(&mut self, option: c_int, value: c_int) {
        // SAFETY: the socket is open, the value is an int as these options want it.
        let result = unsafe { zmq_setsockopt(self.socket, option, (&raw const value).cast(), size_of::<c_int>()) };
        assert_eq!(result, 0, "option {option}");
    }

    pub(crate) fn subscribe_to_all(&mut self) {
        // SAFETY: the socket is open; an empty prefix needs no bytes.
        let result = unsafe { zmq_setsockopt(self.socket, SUBSCRIBE, c"".as_ptr().cast(), 0) };
        assert_eq!(result, 0, "subscribed");
    }

    /// The port.
    pub(crate) fn bind(&mut self) -> u16 {
        let mut text = [0u8; 64];
        let mut len = text.len();
        // SAFETY: the socket is open, the endpoint ends with a zero, the buffer has the length that is told.
        let results = unsafe {
            [
                zmq_bind(self.socket, c"tcp://127.0.0.1:*".as_ptr()),
                zmq_getsockopt(self.socket, LAST_ENDPOINT, text.as_mut_ptr().cast(), &mut len),
            ]
        };
        assert_eq!(results, [0, 0], "bound");
        let text = CStr::from_bytes_until_nul(&text).expect("ends with a zero").to_str().expect("a text");
        text.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    pub(crate) fn connect(&mut self, port: u16, number: usize) {
        let source = format!("127.0.{}.{}", 1 + number / 250, 1 + number % 250);
        let endpoint = CString::new(format!("tcp://{source}:0;127.0.0.1:{port}")).expect("no zero inside");
        // SAFETY: the socket is open, the endpoint ends with a zero.
        assert_eq!(unsafe { zmq_connect(self.socket, endpoint.as_ptr()) }, 0, "connecting");
    }

    #[inline]
    pub(crate) fn send(&mut self, payload: &[u8]) {
        // SAFETY: the socket is open; the payload is copied before the call returns.
        let sent = unsafe { zmq_send(self.socket, payload.as_ptr().cast(), payload.len(), 0) };
        assert_eq!(sent, payload.len() as c_int, "sent");
    }

    #[inline]
    pub(crate) fn recv<'a>(&mut self, buffer: &'a mut [u8]) -> &'a [u8] {
        // SAFETY: the socket is open; no more than the buffer's length is written to it.
        let len = unsafe { zmq_recv(self.socket, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let len = usize::try_from(len).expect("received");
        assert!(len <= buffer.len(), "cut");
        &buffer[..len]
    }
}

impl Drop for Zmq {
    fn drop(&mut self) {
        // SAFETY: both are open and used by nobody else; linger is 0, so that this does not wait.
        unsafe {
            zmq_close(self.socket);
            zmq_ctx_term(self.context);
        }
    }
}
