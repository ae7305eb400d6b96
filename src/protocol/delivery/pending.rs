//! What a sender keeps until its ACK: the messages of one link, when they are overdue, how often they went out (parent
//! module).
//!
//! Invariants: `queue` is ordered by deadline and has one live row per waiting message; its front is live; stale rows
//! are at most as many as live ones, and 64. The clock of the deadlines stands still during a pause.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};

use super::IdHash;
use crate::protocol::frame::MsgId;

/// How long messages wait for their ACK, and how often they go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PendingConfig {
    /// Nanoseconds without an ACK after which a message is sent again.
    pub(crate) resend_ns: u64,
    /// How often a message is sent in all (at least 1) before it expires.
    pub(crate) attempts_max: u32,
    /// Most messages that wait at one time.
    pub(crate) capacity: usize,
}

impl Default for PendingConfig {
    fn default() -> Self {
        Self { resend_ns: 5_000_000_000, attempts_max: 6, capacity: 65_536 }
    }
}

/// A message that waits for its ACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting<T> {
    /// Under which it is acknowledged; the same in every attempt.
    pub(crate) msg_id: MsgId,
    /// How often it was sent, also on earlier links.
    pub(crate) attempts: u32,
    /// The message, or where to find it.
    pub(crate) message: T,
}

/// What has become of a message whose ACK did not come in time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Overdue<'a, T> {
    /// Send it again; the attempt is counted already.
    Resend(MsgId, &'a T),
    /// It was sent as often as allowed, and waits no longer.
    Expired(Waiting<T>),
}

/// The messages of one link that wait for their ACK.
///
/// Its deadlines stand still between [`pause`](Self::pause) and [`resume`](Self::resume): while this end does not read
/// a link, the ACKs on it cannot be seen.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    config: PendingConfig,
    /// With each message, its deadline on the clock that stops during pauses, in nanoseconds.
    waiting: HashMap<MsgId, (u64, Waiting<T>), IdHash>,
    /// Deadlines in order, oldest first: all waits are equally long. A row whose message has gone or moved is stale.
    queue: VecDeque<(u64, MsgId)>,
    /// How long the clock has stood still in all, in nanoseconds.
    stopped_ns: u64,
    paused_ns: Option<u64>,
}

impl<T> Pending<T> {
    /// An empty table.
    pub(crate) fn new(config: PendingConfig) -> Self {
        Self { config, waiting: HashMap::default(), queue: VecDeque::new(), stopped_ns: 0, paused_ns: None }
    }

    /// Adds a message that was sent at `now_ns`; its `attempts` include that sending. Given back when the table is full
    /// or the id is taken.
    pub(crate) fn insert(&mut self, waiting: Waiting<T>, now_ns: u64) -> Result<(), Waiting<T>> {
        let deadline_ns = self.clock_ns(now_ns).saturating_add(self.config.resend_ns);
        if self.waiting.len() >= self.config.capacity {
            return Err(waiting);
        }
        let msg_id = waiting.msg_id;
        match self.waiting.entry(msg_id) {
            Entry::Occupied(_) => return Err(waiting),
            Entry::Vacant(place) => place.insert((deadline_ns, waiting)),
        };
        self.queue.push_back((deadline_ns, msg_id));
        Ok(())
    }

    /// An ACK has come at `now_ns`. Returns its message, with how long it took if it was sent once only: else nobody knows which
    /// sending this answers. `None` for an id that does not wait: acknowledged before, expired, or never ours.
    pub(crate) fn acknowledge(&mut self, msg_id: &MsgId, now_ns: u64) -> Option<(T, Option<u64>)> {
        let (deadline_ns, waiting) = self.waiting.remove(msg_id)?;
        self.drop_stale();
        let sent_ns = deadline_ns.saturating_sub(self.config.resend_ns);
        let round_trip_ns = (waiting.attempts == 1).then(|| self.clock_ns(now_ns).saturating_sub(sent_ns));
        Some((waiting.message, round_trip_ns))
    }

    /// The next message whose ACK is overdue. To be asked until `None`; nothing is overdue during a pause.
    pub(crate) fn poll(&mut self, now_ns: u64) -> Option<Overdue<'_, T>> {
        if self.deadline_ns() > now_ns {
            return None;
        }
        let deadline_ns = self.clock_ns(now_ns).saturating_add(self.config.resend_ns);
        // The front is never stale, so there is a message.
        let (_, msg_id) = self.queue.pop_front()?;
        let attempts = self.waiting.get(&msg_id).map_or(0, |(_, waiting)| waiting.attempts);
        if attempts >= self.config.attempts_max {
            let expired = self.waiting.remove(&msg_id)?.1;
            self.drop_stale();
            return Some(Overdue::Expired(expired));
        }
        self.queue.push_back((deadline_ns, msg_id));
        if let Some((deadline, waiting)) = self.waiting.get_mut(&msg_id) {
            (*deadline, waiting.attempts) = (deadline_ns, attempts + 1);
        }
        self.drop_stale();
        self.waiting.get(&msg_id).map(|(_, waiting)| Overdue::Resend(msg_id, &waiting.message))
    }

    /// When to poll next, in nanoseconds; `u64::MAX` when nothing waits, and during a pause.
    pub(crate) fn deadline_ns(&self) -> u64 {
        match self.queue.front() {
            Some((deadline_ns, _)) if self.paused_ns.is_none() => deadline_ns.saturating_add(self.stopped_ns),
            _ => u64::MAX,
        }
    }

    /// This end stops reading the link.
    pub(crate) fn pause(&mut self, now_ns: u64) {
        self.paused_ns.get_or_insert(now_ns);
    }

    /// This end reads the link again: all deadlines move by the length of the pause.
    pub(crate) fn resume(&mut self, now_ns: u64) {
        if let Some(paused_ns) = self.paused_ns.take() {
            self.stopped_ns += now_ns.saturating_sub(paused_ns);
        }
    }

    /// Takes out everything that waits, in the order of the last sendings: the link has died, others take over.
    pub(crate) fn drain(&mut self) -> Vec<Waiting<T>> {
        let mut drained = Vec::with_capacity(self.waiting.len());
        for (deadline_ns, msg_id) in self.queue.drain(..) {
            if self.waiting.get(&msg_id).is_some_and(|(current_ns, _)| *current_ns == deadline_ns) {
                drained.extend(self.waiting.remove(&msg_id).map(|(_, waiting)| waiting));
            }
        }
        drained
    }

    /// How many messages wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// `now_ns` on the clock that stops during pauses.
    fn clock_ns(&self, now_ns: u64) -> u64 {
        self.paused_ns.unwrap_or(now_ns).saturating_sub(self.stopped_ns)
    }

    /// Keeps the front of the queue live, and stale rows below live ones: ACKs out of order leave rows behind in the
    /// middle, which go all at once when they are the larger part.
    fn drop_stale(&mut self) {
        let waiting = &self.waiting;
        let is_live = |(deadline_ns, msg_id): &(u64, MsgId)| {
            waiting.get(msg_id).is_some_and(|(current_ns, _)| current_ns == deadline_ns)
        };
        while self.queue.front().is_some_and(|row| !is_live(row)) {
            self.queue.pop_front();
        }
        if self.queue.len() > 2 * waiting.len() + 64 {
            self.queue.retain(is_live);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> MsgId {
        MsgId((u128::from(number)).to_be_bytes())
    }

    fn sent(number: u64) -> Waiting<u64> {
        Waiting { msg_id: id(number), attempts: 1, message: number }
    }

    #[test]
    fn resends_until_it_expires() {
        let mut pending = Pending::new(PendingConfig { resend_ns: 50, attempts_max: 3, capacity: 2 });
        pending.insert(sent(1), 0).unwrap();
        assert_eq!(pending.insert(sent(1), 0), Err(sent(1)), "the id is taken");
        pending.insert(sent(2), 10).unwrap();
        assert_eq!(pending.insert(sent(3), 10), Err(sent(3)), "full");
        assert_eq!(pending.deadline_ns(), 50);
        assert_eq!(pending.poll(49), None);
        assert_eq!(pending.poll(50), Some(Overdue::Resend(id(1), &1)));
        assert_eq!(pending.poll(50), None);
        assert_eq!(pending.acknowledge(&id(2), 55), Some((2, Some(45))));
        assert_eq!(pending.acknowledge(&id(2), 55), None);
        assert_eq!(pending.poll(100), Some(Overdue::Resend(id(1), &1)));
        assert_eq!(pending.poll(150), Some(Overdue::Expired(Waiting { attempts: 3, ..sent(1) })));
        assert_eq!(pending.poll(u64::MAX), None);
        assert_eq!((pending.deadline_ns(), pending.is_empty()), (u64::MAX, true));
    }

    #[test]
    fn a_pause_moves_all_deadlines() {
        let mut pending = Pending::new(PendingConfig { resend_ns: 50, ..PendingConfig::default() });
        pending.insert(sent(1), 0).unwrap();
        pending.pause(20);
        pending.pause(30);
        pending.insert(sent(2), 90).unwrap();
        assert_eq!(pending.poll(1_000), None);
        assert_eq!(pending.deadline_ns(), u64::MAX);
        pending.resume(120);
        assert_eq!(pending.deadline_ns(), 150);
        assert_eq!(pending.poll(149), None);
        assert_eq!(pending.poll(150), Some(Overdue::Resend(id(1), &1)));
        assert_eq!(pending.poll(169), None);
        assert_eq!(pending.poll(170), Some(Overdue::Resend(id(2), &2)));
    }

    #[test]
    fn drained_in_order_with_its_attempts() {
        let mut pending = Pending::new(PendingConfig { resend_ns: 50, ..PendingConfig::default() });
        for number in 0..5 {
            pending.insert(sent(number), number).unwrap();
        }
        pending.acknowledge(&id(2), 5);
        assert_eq!(pending.poll(50), Some(Overdue::Resend(id(0), &0)));
        let drained: Vec<_> = pending.drain().into_iter().map(|waiting| (waiting.message, waiting.attempts)).collect();
        assert_eq!(drained, [(1, 1), (3, 1), (4, 1), (0, 2)]);
        assert_eq!((pending.len(), pending.deadline_ns()), (0, u64::MAX));
    }

    proptest! {
        /// Against a model that looks at every message in every step.
        #[test]
        fn agrees_with_a_plain_table(steps in prop::collection::vec((0u8..5, 0u64..60, 0u64..30), 0..400)) {
            let config = PendingConfig { resend_ns: 100, attempts_max: 3, capacity: 20 };
            let mut pending = Pending::new(config);
            // (number, deadline, attempts)
            let mut model: Vec<(u64, u64, u32)> = Vec::new();
            let mut now_ns = 0;
            let mut paused = false;
            for (step, number, pass_ns) in steps {
                now_ns += pass_ns;
                if paused {
                    model.iter_mut().for_each(|(_, deadline_ns, _)| *deadline_ns += pass_ns);
                }
                match step {
                    0 | 1 => {
                        let fits = model.len() < 20 && model.iter().all(|row| row.0 != number);
                        prop_assert_eq!(pending.insert(sent(number), now_ns).is_ok(), fits);
                        if fits {
                            model.push((number, now_ns + 100, 1));
                        }
                    }
                    2 => {
                        let known = model.iter().any(|row| row.0 == number);
                        prop_assert_eq!(pending.acknowledge(&id(number), now_ns).is_some(), known);
                        model.retain(|row| row.0 != number);
                    }
                    3 if number < 10 => {
                        paused = !paused;
                        if paused { pending.pause(now_ns) } else { pending.resume(now_ns) }
                    }
                    _ => {
                        let (mut found, mut expected) = (Vec::new(), Vec::new());
                        while let Some(overdue) = pending.poll(now_ns) {
                            found.push(match overdue {
                                Overdue::Resend(_, &number) => (number, true),
                                Overdue::Expired(waiting) => (waiting.message, false),
                            });
                        }
                        if !paused {
                            for row in model.iter_mut().filter(|row| row.1 <= now_ns) {
                                expected.push((row.0, row.2 < 3));
                                (row.1, row.2) = (now_ns + 100, row.2 + 1);
                            }
                            model.retain(|row| row.2 <= 3);
                        }
                        found.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(found, expected);
                    }
                }
                prop_assert_eq!(pending.len(), model.len());
                prop_assert!(pending.queue.len() <= 2 * pending.len() + 64);
                let next_ns = model.iter().map(|row| row.1).min().filter(|_| !paused).unwrap_or(u64::MAX);
                prop_assert_eq!(pending.deadline_ns(), next_ns);
            }
        }
    }
}
