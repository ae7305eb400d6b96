//! Name resolution for drivers: IP literals at once, names on short-lived helper threads.
//!
//! The system's resolver blocks for as long as it likes, so a helper thread waits for it, at most [`THREADS_MAX`] at a
//! time, and rings the driver's doorbell with the result. A cancelled lookup ends at once; its thread's late answer is
//! dropped. The drivers call in here.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Waker;

use super::{Completion, Outcome, Token, cancelled};

/// Helper threads at one time; further lookups wait.
const THREADS_MAX: usize = 8;

/// The lookups of one backend.
pub(super) struct Resolver {
    bell: Waker,
    sender: Sender<(u64, io::Result<Vec<SocketAddr>>)>,
    receiver: Receiver<(u64, io::Result<Vec<SocketAddr>>)>,
    /// Lookups without a terminal completion: a number of our own (tokens may come again) and the token.
    pending: Vec<(u64, Token)>,
    /// Lookups that wait for a thread.
    waiting: VecDeque<(u64, String, u16)>,
    threads: usize,
    next: u64,
    done: Vec<Completion>,
}

impl Resolver {
    /// Rings `bell` when a lookup is done.
    pub(super) fn new(bell: Waker) -> Resolver {
        let (sender, receiver) = channel();
        Resolver {
            bell,
            sender,
            receiver,
            pending: Vec::new(),
            waiting: VecDeque::new(),
            threads: 0,
            next: 0,
            done: Vec::new(),
        }
    }

    /// Starts a lookup.
    pub(super) fn resolve(&mut self, host: &str, port: u16, token: Token) {
        let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = literal.parse::<IpAddr>() {
            self.done.push(Completion { token, outcome: Outcome::Resolved(Ok(vec![SocketAddr::new(ip, port)])) });
            return;
        }
        self.next += 1;
        self.pending.push((self.next, token));
        self.waiting.push_back((self.next, host.to_owned(), port));
        self.start_threads();
    }

    /// Ends a lookup; false when the token names none.
    pub(super) fn cancel(&mut self, token: Token) -> bool {
        let Some(at) = self.pending.iter().position(|(_, pending)| *pending == token) else { return false };
        let (number, _) = self.pending.swap_remove(at);
        self.waiting.retain(|(waiting, ..)| *waiting != number);
        self.done.push(Completion { token, outcome: Outcome::Resolved(Err(cancelled())) });
        true
    }

    /// Whether a completion is ready without waiting.
    pub(super) fn is_ready(&self) -> bool {
        !self.done.is_empty()
    }

    /// Appends what is done.
    pub(super) fn collect(&mut self, out: &mut Vec<Completion>) {
        // Bounded by the threads that were running.
        while self.threads > 0 {
            let Ok((number, result)) = self.receiver.try_recv() else { break };
            self.threads -= 1;
            if let Some(at) = self.pending.iter().position(|(pending, _)| *pending == number) {
                let (_, token) = self.pending.swap_remove(at);
                self.done.push(Completion { token, outcome: Outcome::Resolved(result) });
            }
        }
        if !self.waiting.is_empty() {
            self.start_threads();
        }
        out.append(&mut self.done);
    }

    fn start_threads(&mut self) {
        while self.threads < THREADS_MAX {
            let Some((number, host, port)) = self.waiting.pop_front() else { return };
            let (sender, bell) = (self.sender.clone(), self.bell.clone());
            let lookup = move || {
                // A backend that is gone wants no answer.
                let _ = sender.send((number, look_up(&host, port)));
                bell.wake();
            };
            self.threads += 1;
            if let Err(error) = std::thread::Builder::new().name("aiomsg-resolve".into()).spawn(lookup) {
                let _ = self.sender.send((number, Err(error)));
                self.bell.wake_by_ref();
            }
        }
    }
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in (host, port).to_socket_addrs()? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
    }
    Ok(addresses)
}
