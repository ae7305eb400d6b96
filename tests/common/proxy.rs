//! A TCP proxy in this process whose connections a test can cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use aiomsg_uring::Address;

use super::socket_addr;

/// Passes connections on to one address, until it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Both ends of every connection that was not cut.
    open: Mutex<Vec<[TcpStream; 2]>>,
    cuts: AtomicUsize,
    finished: AtomicBool,
}

impl Proxy {
    /// A proxy for whatever listens at `target`, now or later.
    pub(crate) fn before(target: &Address) -> Proxy {
        Proxy::before_addr(socket_addr(target))
    }

    pub(crate) fn before_addr(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                if shared.finished.load(Ordering::Relaxed) {
                    break;
                }
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(target)) else { continue };
                let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                for stream in [&near, &far] {
                    stream.set_nodelay(true).ok();
                }
                shared.open.lock().expect("whole").push([clone(&near), clone(&far)]);
                let back = (clone(&far), clone(&near));
                thread::spawn(move || pass(near, far));
                thread::spawn(move || pass(back.0, back.1));
            }
        });
        Proxy { address, state }
    }

    /// Where to connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection with a reset, whatever is on its way in it.
    pub(crate) fn cut(&self) {
        for pair in self.state.open.lock().expect("whole").drain(..) {
            self.state.cuts.fetch_add(1, Ordering::Relaxed);
            for stream in pair {
                let socket = socket2::SockRef::from(&stream);
                socket.set_linger(Some(Duration::ZERO)).ok();
                stream.shutdown(Shutdown::Both).ok();
            }
        }
    }

    /// Connections that were cut.
    pub(crate) fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.finished.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the accepting thread.
        TcpStream::connect(self.address).ok();
    }
}

/// Copies until either end is closed; then the other one gets its end too.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Write).ok();
}
