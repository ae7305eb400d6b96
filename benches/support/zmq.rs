//! libzmq, the system's library, through its C functions: PUSH/PULL, XPUB/SUB (which must not drop) and REQ/REP.
//!
//! Subscribers are connections of one SUB socket, the cheapest way that libzmq has to hold them; each comes from a source
//! address of its own, because a second connection to the same endpoint text is ignored.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::time::Duration;

use super::rig::{Checked, Numbered, Orders, Rig};

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

const SUB: c_int = 2;
const REQ: c_int = 3;
const REP: c_int = 4;
const PULL: c_int = 7;
const PUSH: c_int = 8;
const XPUB: c_int = 9;
const SUBSCRIBE: c_int = 6;
const LINGER: c_int = 17;
const LAST_ENDPOINT: c_int = 32;
const XPUB_NODROP: c_int = 69;
const XPUB_VERBOSER: c_int = 78;

/// One socket in a context of its own.
struct Zmq {
    context: *mut c_void,
    socket: *mut c_void,
}

// SAFETY: a socket of libzmq may go to another thread; here it is used by one at a time, for every call takes `&mut` or
// comes from the thread that owns the value.
unsafe impl Send for Zmq {}

impl Zmq {
    fn new(kind: c_int) -> Zmq {
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

    fn set(&mut self, option: c_int, value: c_int) {
        // SAFETY: the socket is open, the value is an int as these options want it.
        let result = unsafe { zmq_setsockopt(self.socket, option, (&raw const value).cast(), size_of::<c_int>()) };
        assert_eq!(result, 0, "option {option}");
    }

    fn subscribe_to_all(&mut self) {
        // SAFETY: the socket is open; an empty prefix needs no bytes.
        let result = unsafe { zmq_setsockopt(self.socket, SUBSCRIBE, c"".as_ptr().cast(), 0) };
        assert_eq!(result, 0, "subscribed");
    }

    /// The port.
    fn bind(&mut self) -> u16 {
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

    fn connect(&mut self, port: u16, number: usize) {
        let source = format!("127.0.{}.{}", 1 + number / 250, 1 + number % 250);
        let endpoint = CString::new(format!("tcp://{source}:0;127.0.0.1:{port}")).expect("no zero inside");
        // SAFETY: the socket is open, the endpoint ends with a zero.
        assert_eq!(unsafe { zmq_connect(self.socket, endpoint.as_ptr()) }, 0, "connecting");
    }

    #[inline]
    fn send(&mut self, payload: &[u8]) {
        // SAFETY: the socket is open; the payload is copied before the call returns.
        let sent = unsafe { zmq_send(self.socket, payload.as_ptr().cast(), payload.len(), 0) };
        assert_eq!(sent, payload.len() as c_int, "sent");
    }

    #[inline]
    fn recv<'a>(&mut self, buffer: &'a mut [u8]) -> &'a [u8] {
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

/// One sender, one receiver.
pub(crate) fn pair(payload_bytes: usize) -> Box<dyn Rig> {
    let (mut sender, mut receiver) = (Zmq::new(PUSH), Zmq::new(PULL));
    let port = sender.bind();
    let orders = Orders::start(move |work| {
        receiver.connect(port, 0);
        let (mut checked, mut buffer) = (Checked::new(payload_bytes), vec![0; payload_bytes + 1]);
        while let Some(messages) = work.next() {
            (0..messages).for_each(|_| checked.check(receiver.recv(&mut buffer)));
            work.finish();
        }
    });
    Box::new(Sender { sender, orders, numbered: Numbered::new(payload_bytes) })
}

/// One publisher, so many subscriptions.
pub(crate) fn fan_out(payload_bytes: usize, subscribers: usize) -> Box<dyn Rig> {
    let mut sender = Zmq::new(XPUB);
    sender.set(XPUB_NODROP, 1);
    sender.set(XPUB_VERBOSER, 1);
    let port = sender.bind();
    let orders = Orders::start(move |work| {
        let mut receiver = Zmq::new(SUB);
        receiver.subscribe_to_all();
        (0..subscribers).for_each(|number| receiver.connect(port, number));
        let mut buffer = vec![0; payload_bytes + 1];
        while let Some(messages) = work.next() {
            // Which connection a message came by is not told: it is the sum that counts.
            for _ in 0..messages * subscribers as u64 {
                assert_eq!(receiver.recv(&mut buffer).len(), payload_bytes);
            }
            work.finish();
        }
    });
    // Every subscription is told of.
    let mut told = [0; 8];
    (0..subscribers).for_each(|_| assert_eq!(sender.recv(&mut told), [1]));
    std::thread::sleep(Duration::from_millis(50));
    Box::new(Sender { sender, orders, numbered: Numbered::new(payload_bytes) })
}

/// One message there and back at a time.
pub(crate) fn round_trip(payload_bytes: usize) -> Box<dyn Rig> {
    let (mut near, mut far) = (Zmq::new(REQ), Zmq::new(REP));
    near.connect(far.bind(), 0);
    let echo = Orders::start(move |work| {
        let mut buffer = vec![0; payload_bytes];
        while let Some(rounds) = work.next() {
            for _ in 0..rounds {
                far.recv(&mut buffer);
                far.send(&buffer);
            }
            work.finish();
        }
    });
    Box::new(Ping { near, echo, payload: vec![1; payload_bytes], answer: vec![0; payload_bytes] })
}

struct Sender {
    sender: Zmq,
    orders: Orders,
    numbered: Numbered,
}

impl Rig for Sender {
    fn burst(&mut self, messages: u64) {
        self.orders.order(messages);
        (0..messages).for_each(|_| self.sender.send(self.numbered.next()));
        self.orders.finished();
    }
}

struct Ping {
    near: Zmq,
    echo: Orders,
    payload: Vec<u8>,
    answer: Vec<u8>,
}

impl Rig for Ping {
    fn burst(&mut self, messages: u64) {
        self.echo.order(messages);
        for _ in 0..messages {
            self.near.send(&self.payload);
            assert!(self.near.recv(&mut self.answer) == self.payload, "another payload came back");
        }
        self.echo.finished();
    }
}
