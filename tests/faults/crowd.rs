//! Thousands of connections held, and many more connected and closed, between two processes: no descriptor and no memory
//! stays behind.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use aiomsg_uring::{Backend, Engine, Socket};

use crate::child::{Child, tell, waits};
use crate::common::{PATIENCE, eventually_within, hello_as, say_loudly};
use crate::scale;

on_both!([held_and_let_go, connected_and_closed, sockets_opened_and_closed]);

/// Threads of a dialing child.
const THREADS: usize = 8;
/// What may be resident per idle link of the holding end.
const LINK_BYTES_MAX: u64 = 4 << 10;
/// What an allocator and the table of peers that are gone may keep besides.
const SLACK_BYTES: u64 = 6 << 20;

/// What a holder has now.
#[derive(Clone, Copy, Debug)]
struct Holds {
    peers: u64,
    descriptors: u64,
    resident_bytes: u64,
}

struct Holder {
    child: Child,
    address: String,
}

impl Holder {
    fn start(backend: Backend) -> Holder {
        let mut child = Child::start(backend, "hold");
        let address = child.line();
        Holder { child, address }
    }

    fn look(&mut self) -> Holds {
        self.child.go_on();
        let [peers, descriptors, resident_bytes] = self.child.numbers()[..] else { panic!("three numbers") };
        Holds { peers, descriptors, resident_bytes }
    }

    fn wait_for_peers(&mut self, peers: u64) -> Holds {
        let mut holds = self.look();
        eventually_within(PATIENCE * 4, &format!("{peers} peers"), || {
            holds = self.look();
            holds.peers == peers
        });
        holds
    }
}

fn held_and_let_go(backend: Backend) {
    let count = 1_000 * scale() as u64;
    let mut holder = Holder::start(backend);
    // What is needed for a first crowd at all is not a link's.
    let mut few = Child::start(backend, &format!("crowd {} 50", holder.address));
    few.line();
    let before = holder.wait_for_peers(50);
    let mut crowd = Child::start(backend, &format!("crowd {} {count}", holder.address));
    crowd.line();
    let full = holder.wait_for_peers(50 + count);
    let link_bytes = full.resident_bytes.saturating_sub(before.resident_bytes) / count;
    drop((few, crowd));
    let mut after = holder.wait_for_peers(0);
    eventually_within(PATIENCE, "no descriptor stays", || {
        after = holder.look();
        after.descriptors <= before.descriptors - 50
    });
    say_loudly(&format!("{count} connections held on {backend:?}: {link_bytes} bytes each; {after:?} afterwards"));
    assert!(link_bytes <= LINK_BYTES_MAX + SLACK_BYTES / count, "{link_bytes}: {before:?}, {full:?}");
}

fn connected_and_closed(backend: Backend) {
    let count = 10_000 * scale();
    let mut holder = Holder::start(backend);
    let mut run = |count: usize| {
        Child::start(backend, &format!("cycle {} {count}", holder.address)).line();
        holder.wait_for_peers(0)
    };
    // The first ones fill tables that are bounded.
    let before = run(count / 2);
    let mut after = run(count);
    // The last ones may still be closing.
    eventually_within(PATIENCE, "no descriptor stays", || {
        after = holder.look();
        after.descriptors <= before.descriptors
    });
    say_loudly(&format!("{} connections made and closed on {backend:?}: {before:?}, {after:?}", count / 2 + count));
    assert!(after.resident_bytes <= before.resident_bytes + SLACK_BYTES, "{before:?}, {after:?}");
}

fn sockets_opened_and_closed(backend: Backend) {
    let count = 100 * scale();
    let mut child = Child::start(backend, &format!("own-cycle {count}"));
    let (before, after) = (child.numbers(), child.numbers());
    assert_eq!(before[0], after[0], "descriptors");
    assert!(after[1] <= before[1] + SLACK_BYTES, "{before:?} {after:?}");
}

/// A child that holds what connects to it, and tells how much that is when asked.
pub(crate) fn hold() {
    let engine = Engine::new().expect("an engine");
    let builder = Socket::builder().engine(&engine).accepts_per_second(u32::MAX, u32::MAX);
    let socket = builder.build_blocking().expect("a socket");
    tell(socket.bind("0.0.0.0:0").expect("bound").to_string().rsplit(':').next().expect("a port"));
    while waits() {
        let [descriptors, resident_bytes] = usage();
        tell(format!("{} {descriptors} {resident_bytes}", socket.peers().len()));
    }
}

/// A child that holds connections until it is killed.
pub(crate) fn dial(port: &str, count: &str) {
    let held = in_threads(count, |number| connect(port, number));
    tell(held.len());
    waits();
}

/// A child that makes connections and ends them, one way or the other.
pub(crate) fn cycle(port: &str, count: &str) {
    in_threads(count, |number| {
        let stream = connect(port, number);
        if number.is_multiple_of(2) {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a reset on close");
        }
    });
    tell("done");
}

/// A child that opens and closes sockets of the library, listening and connected.
pub(crate) fn cycle_own(count: &str) {
    let engine = Engine::new().expect("an engine");
    let socket = || Socket::builder().engine(&engine).build_blocking().expect("a socket");
    let pairs = |count: usize| {
        for value in 0..count {
            let (one, other) = (socket(), socket());
            other.connect(one.bind("127.0.0.1:0").expect("bound")).expect("connecting");
            other.wait_for_peers(1, PATIENCE).expect("a peer");
            one.wait_for_peers(1, PATIENCE).expect("a peer");
            one.send(&value.to_be_bytes()).expect("sent");
            other.recv_timeout(PATIENCE).expect("received");
            if value % 2 == 0 {
                one.close();
                other.close();
            }
        }
    };
    let count: usize = count.parse().expect("a number");
    pairs(count);
    // Dropped sockets close in their own time, which is a second at most.
    thread::sleep(Duration::from_secs(2));
    let before = usage();
    tell(before.map(|value| value.to_string()).join(" "));
    pairs(count * 2);
    eventually_within(PATIENCE, "descriptors as before", || usage()[0] <= before[0]);
    tell(usage().map(|value| value.to_string()).join(" "));
}

fn in_threads<T: Send>(count: &str, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let count: usize = count.parse().expect("a number");
    let job = &job;
    thread::scope(|scope| {
        let share = |thread: usize| move || (thread..count).step_by(THREADS).map(job).collect::<Vec<_>>();
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(share(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("its share")).collect()
    })
}

/// Connects and shakes hands, under an identity of its own.
fn connect(port: &str, number: usize) -> TcpStream {
    // Several addresses: one has not ports enough for all that wait for their last packets to be gone.
    let mut stream = TcpStream::connect(format!("127.0.0.{}:{port}", 1 + number % 8)).expect("connected");
    let mut identity = [0x5a; 16];
    identity[..8].copy_from_slice(&number.to_be_bytes());
    identity[8..12].copy_from_slice(&std::process::id().to_be_bytes());
    let hello = hello_as(identity);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&hello).expect("written");
    stream.read_exact(&mut vec![0; hello.len()]).expect("a HELLO");
    stream
}

/// Open descriptors and resident bytes of this process.
fn usage() -> [u64; 2] {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("a list").count() as u64;
    let status = std::fs::read_to_string("/proc/self/status").expect("text");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    let kib: u64 = line.split_whitespace().nth(1).expect("a word").parse().expect("a number");
    [descriptors, kib << 10]
}
