//! A TCP proxy in this process that spoils what goes through it: the toxics of toxiproxy, an end at an exact byte, kills and
//! silent partitions of all connections at once.
//!
//! Two threads a connection, one for each direction. They never block for longer than `STEP`, so that an end comes when it
//! should, and a reset is one: both descriptors are closed with zero linger and no FIN before.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::Address;

use crate::common::socket_addr;

/// The longest wait in a system call.
const STEP: Duration = Duration::from_millis(5);

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both ends get a FIN after what has passed.
    Fin,
    /// Both ends get a RST.
    Reset,
    /// Nothing more passes this way, and neither end is told.
    Silence,
}

/// What is done to the bytes of one direction of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Toxic {
    /// Each piece is held for this long, and up to `jitter` longer.
    Latency { delay: Duration, jitter: Duration },
    /// No faster than this.
    Bandwidth { bytes_per_s: usize },
    /// A close is passed on only after this long.
    SlowClose { delay: Duration },
    /// Nothing passes; the connection is closed after this long.
    Timeout { after: Duration },
    /// The connection is reset after this long.
    ResetPeer { after: Duration },
    /// Pieces of at most so many bytes, with a pause after each.
    Slicer { bytes: usize, pause: Duration },
    /// The connection ends when so many bytes have passed; toxiproxy's `limit_data` is the one with a FIN.
    EndAt { bytes: usize, how: End },
}

/// From the connecting to the listening end, and back.
pub(crate) type Toxics = [Option<Toxic>; 2];

/// A proxy before one address, until it is dropped.
pub(crate) struct Chaos {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    links: Mutex<Vec<Weak<Link>>>,
    /// Directions in which nothing passes for now, on any connection.
    stopped: [AtomicBool; 2],
    /// Ends at a byte or a time that have come.
    ends: AtomicUsize,
    finished: AtomicBool,
}

/// A connection: the socket of the connecting end and that of the listening end.
struct Link {
    ends: [TcpStream; 2],
    over: AtomicBool,
}

impl Link {
    fn end(&self, how: End) {
        match how {
            End::Silence => return,
            End::Fin => self.ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both))),
            // Takes effect when both threads have let go of the sockets.
            End::Reset => self.ends.iter().for_each(|end| {
                socket2::SockRef::from(end).set_linger(Some(Duration::ZERO)).ok();
            }),
        }
        self.over.store(true, SeqCst);
    }
}

impl Chaos {
    /// A proxy for what listens at `target`; `plan` gives the toxics of the first connection, the second, and so on.
    pub(crate) fn before(target: &Address, plan: impl Fn(usize) -> Toxics + Send + 'static) -> Chaos {
        let target = socket_addr(target);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for (number, near) in listener.incoming().enumerate() {
                if shared.finished.load(SeqCst) {
                    break;
                }
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(target)) else { continue };
                for stream in [&near, &far] {
                    stream.set_nodelay(true).ok();
                    stream.set_read_timeout(Some(STEP)).expect("a timeout");
                    stream.set_write_timeout(Some(STEP)).expect("a timeout");
                }
                let link = Arc::new(Link { ends: [near, far], over: AtomicBool::new(false) });
                let mut links = shared.links.lock().expect("whole");
                links.retain(|link| link.strong_count() > 0);
                links.push(Arc::downgrade(&link));
                for (way, toxic) in plan(number).into_iter().enumerate() {
                    let (link, state) = (link.clone(), shared.clone());
                    thread::spawn(move || Passing { link, state, way, began: Instant::now() }.run(toxic));
                }
            }
        });
        Chaos { address, state }
    }

    pub(crate) fn clean_before(target: &Address) -> Chaos {
        Chaos::before(target, |_| [None, None])
    }

    /// Where to connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends that toxics have made.
    pub(crate) fn ends(&self) -> usize {
        self.state.ends.load(SeqCst)
    }

    /// Ends all connections; how many.
    pub(crate) fn kill(&self, how: End) -> usize {
        let links = self.state.links.lock().expect("whole");
        let alive = links.iter().filter_map(Weak::upgrade).filter(|link| !link.over.load(SeqCst));
        alive.map(|link| link.end(how)).count()
    }

    /// Lets nothing pass in the directions that are true, on connections old and new, until the next call.
    pub(crate) fn partition(&self, ways: [bool; 2]) {
        for (stopped, stop) in self.state.stopped.iter().zip(ways) {
            stopped.store(stop, SeqCst);
        }
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.state.finished.store(true, SeqCst);
        self.kill(End::Fin);
        // Wakes the accepting thread.
        TcpStream::connect(self.address).ok();
    }
}

/// One direction of one connection: 0 from the connecting end, 1 to it.
struct Passing {
    link: Arc<Link>,
    state: Arc<State>,
    way: usize,
    began: Instant,
}

impl Passing {
    fn run(self, toxic: Option<Toxic>) {
        let (mut from, to) = (&self.link.ends[self.way], &self.link.ends[1 - self.way]);
        let mut buffer = vec![0; 64 << 10];
        let mut passed = 0;
        let mut silent = false;
        while !self.is_over() {
            match toxic {
                Some(Toxic::EndAt { bytes, how }) if passed == bytes && !silent => {
                    self.end(how);
                    silent = how == End::Silence;
                }
                Some(Toxic::ResetPeer { after }) if self.began.elapsed() >= after => self.end(End::Reset),
                Some(Toxic::Timeout { after }) if self.began.elapsed() >= after => self.end(End::Fin),
                _ => {}
            }
            if self.state.stopped[self.way].load(SeqCst) {
                thread::sleep(STEP);
                continue;
            }
            let bytes_max = match toxic {
                Some(Toxic::EndAt { bytes, .. }) if !silent => (bytes - passed).min(buffer.len()),
                Some(Toxic::Slicer { bytes, .. }) => bytes,
                Some(Toxic::Bandwidth { bytes_per_s }) => (bytes_per_s / 100).clamp(1, buffer.len()),
                _ => buffer.len(),
            };
            if bytes_max == 0 {
                continue;
            }
            let bytes = match from.read(&mut buffer[..bytes_max]) {
                Ok(0) => break,
                Ok(bytes) => bytes,
                Err(error) if is_timeout(&error) => continue,
                Err(_) if silent => return,
                Err(_) => return self.link.end(End::Reset),
            };
            match toxic {
                Some(Toxic::Latency { delay, jitter }) => {
                    thread::sleep(delay + jitter.mul_f64(f64::from(buffer[bytes - 1]) / 255.0));
                }
                Some(Toxic::Bandwidth { bytes_per_s }) => {
                    thread::sleep(Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64));
                }
                _ => {}
            }
            let lost = silent || matches!(toxic, Some(Toxic::Timeout { .. }));
            if !lost && !self.write(to, &buffer[..bytes]) {
                return;
            }
            passed += bytes;
            if let Some(Toxic::Slicer { pause, .. }) = toxic {
                thread::sleep(pause);
            }
        }
        // What is silent does not pass a close on either.
        if !silent && !self.is_over() {
            if let Some(Toxic::SlowClose { delay }) = toxic {
                thread::sleep(delay);
            }
            to.shutdown(Shutdown::Write).ok();
        }
    }

    fn is_over(&self) -> bool {
        self.link.over.load(SeqCst)
    }

    fn end(&self, how: End) {
        self.state.ends.fetch_add(1, SeqCst);
        self.link.end(how);
    }

    /// False when the connection is over.
    fn write(&self, mut to: &TcpStream, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() && !self.is_over() {
            match to.write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if is_timeout(&error) => {}
                Err(_) => {
                    self.link.end(End::Reset);
                    return false;
                }
            }
        }
        bytes.is_empty()
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
