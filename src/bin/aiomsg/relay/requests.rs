//! Questions and answers through a relay. Nothing in a message says whom it answers, so the relay remembers: it deals
//! the questions out itself, one out-peer after the other, and keeps for each out-peer the in-peers that wait for it in
//! the order in which they asked. An out-peer that answers each message once, in order, needs to know nothing of this.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aiomsg_uring::{Identity, blocking};
use anyhow::Result;

use super::Flow;
use crate::work::is_interrupted;

/// Questions that one out-peer may owe an answer; more wait in the receive queue, and TCP slows those who ask.
const OPEN_MAX: usize = 1000;
/// How often a question that nobody can take is offered again, in case a peer has come.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Who waits for whom.
#[derive(Debug, Default)]
pub(super) struct Desk {
    open: Mutex<Open>,
    /// Notified at each answer.
    answered: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    /// For each out-peer the in-peers that it owes an answer, the first first.
    asked: HashMap<Identity, VecDeque<Identity>>,
    /// Questions so far: whose turn it is.
    turn: usize,
}

impl Desk {
    /// Deals out what in-peers send, until that ends.
    pub(super) fn ask(&self, from: &blocking::Socket, to: &blocking::Socket, flow: &Flow) -> Result<()> {
        while let Ok((client, question)) = from.recv_identity() {
            let mut open = self.lock();
            let worker = loop {
                let workers = to.peers();
                // An out-peer that left answers nothing; when it comes back it begins anew.
                open.asked.retain(|worker, _| workers.contains(worker));
                if let Some(worker) = open.next(&workers) {
                    break worker;
                }
                if is_interrupted() {
                    flow.lost.fetch_add(1, Relaxed);
                    return Ok(());
                }
                open = self
                    .answered
                    .wait_timeout(open, RETRY_INTERVAL)
                    .map_or_else(|e| e.into_inner().0, |(open, _)| open);
            };
            open.asked.entry(worker).or_default().push_back(client);
            drop(open);
            flow.note(to.send_to(worker, question))?;
        }
        Ok(())
    }

    /// Gives answers to those who asked, until they end.
    pub(super) fn answer(&self, from: &blocking::Socket, to: &blocking::Socket, flow: &Flow) -> Result<()> {
        while let Ok((worker, answer)) = from.recv_identity() {
            let client = self.lock().asked.get_mut(&worker).and_then(VecDeque::pop_front);
            self.answered.notify_one();
            match client {
                Some(client) => flow.note(to.send_to(client, answer))?,
                None => drop(flow.lost.fetch_add(1, Relaxed)),
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// The next of `workers` that has room for a question.
    fn next(&mut self, workers: &[Identity]) -> Option<Identity> {
        let mut workers = workers.to_vec();
        workers.sort_unstable();
        let free = |worker: &Identity| self.asked.get(worker).is_none_or(|asked| asked.len() < OPEN_MAX);
        let turn = self.turn;
        self.turn += 1;
        (0..workers.len()).map(|step| workers[(turn + step) % workers.len()]).find(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_dealt_in_turn_to_those_with_room() {
        let workers = [1, 2, 3].map(|byte| Identity::from_bytes([byte; 16]));
        let mut open = Open::default();
        let dealt: Vec<_> = (0..4).map(|_| open.next(&workers).unwrap()).collect();
        assert_eq!(dealt, [workers[0], workers[1], workers[2], workers[0]]);
        open.asked.insert(workers[1], vec![workers[0]; OPEN_MAX].into());
        assert_eq!(open.next(&workers), Some(workers[2]));
        assert_eq!(open.next(&[]), None);
        assert_eq!(open.next(&workers[1..2]), None);
    }
}
