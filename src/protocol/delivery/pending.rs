//! What a sender keeps until its ACK: the messages of one link, when they are overdue, how often they went out (parent
//! module).
//!
//! Invariants: the rows are ordered by deadline, one for each waiting message; the first is no hole; holes are at most as many as
//! messages, and 64. The clock of the deadlines stands still during a pause. Ids that come and go in order, as those of one source
//! do, are compared and never hashed.

use std::collections::{HashMap, VecDeque};

use super::IdHash;
use crate::protocol::frame::MsgId;

/// Rows without a message beyond as many as there are messages.
const HOLES_MAX: usize = 64;

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
    /// By deadline, oldest first: all waits are equally long. A message that has gone leaves a hole.
    rows: VecDeque<Option<Row<T>>>,
    /// Number of the first row; they are numbered as they come.
    first: u64,
    /// Rows that are not holes.
    len: usize,
    /// Number of the row behind the one that was acknowledged last: peers acknowledge in the order of arrival.
    next: u64,
    /// No id in the rows is above it.
    highest: MsgId,
    /// Where the rows are, from the first id on that is out of order.
    index: Option<HashMap<MsgId, u64, IdHash>>,
    /// How long the clock has stood still in all, in nanoseconds.
    stopped_ns: u64,
    paused_ns: Option<u64>,
}

#[derive(Debug)]
struct Row<T> {
    /// On the clock that stops during pauses, in nanoseconds.
    deadline_ns: u64,
    waiting: Waiting<T>,
}

impl<T> Pending<T> {
    /// An empty table.
    pub(crate) fn new(config: PendingConfig) -> Self {
        Self {
            config,
            rows: VecDeque::new(),
            first: 0,
            len: 0,
            next: 0,
            highest: MsgId::default(),
            index: None,
            stopped_ns: 0,
            paused_ns: None,
        }
    }

    /// Adds a message that was sent at `now_ns`; its `attempts` include that sending. Given back when the table is full
    /// or the id is taken.
    #[inline(always)]
    pub(crate) fn insert(&mut self, waiting: Waiting<T>, now_ns: u64) -> Result<(), Waiting<T>> {
        let msg_id = waiting.msg_id;
        if self.len >= self.config.capacity {
            return Err(waiting);
        }
        if self.len > 0 && msg_id <= self.highest && self.index().contains_key(&msg_id) {
            return Err(waiting);
        }
        self.highest = if self.len == 0 { msg_id } else { self.highest.max(msg_id) };
        let deadline_ns = self.clock_ns(now_ns).saturating_add(self.config.resend_ns);
        self.push(Row { deadline_ns, waiting });
        self.len += 1;
        Ok(())
    }

    /// An ACK has come at `now_ns`. Returns its message, with how long it took if it was sent once only: else nobody knows which
    /// sending this answers. `None` for an id that does not wait: acknowledged before, expired, or never ours.
    #[inline(always)]
    pub(crate) fn acknowledge(&mut self, msg_id: &MsgId, now_ns: u64) -> Option<(T, Option<u64>)> {
        let likely = self.next.max(self.first);
        let number = match self.row(likely) {
            Some(row) if row.waiting.msg_id == *msg_id => likely,
            _ if self.len == 0 => return None,
            _ => *self.index().get(msg_id)?,
        };
        let Row { deadline_ns, waiting } = self.take(number)?;
        self.next = number + 1;
        let sent_ns = deadline_ns.saturating_sub(self.config.resend_ns);
        let round_trip_ns = (waiting.attempts == 1).then(|| self.clock_ns(now_ns).saturating_sub(sent_ns));
        Some((waiting.message, round_trip_ns))
    }

    /// The next message whose ACK is overdue. To be asked until `None`; nothing is overdue during a pause.
    pub(crate) fn poll(&mut self, now_ns: u64) -> Option<Overdue<'_, T>> {
        if self.deadline_ns() > now_ns {
            return None;
        }
        // The front is no hole, so there is a message.
        let mut row = self.take(self.first)?;
        if row.waiting.attempts >= self.config.attempts_max {
            return Some(Overdue::Expired(row.waiting));
        }
        row.deadline_ns = self.clock_ns(now_ns).saturating_add(self.config.resend_ns);
        row.waiting.attempts += 1;
        self.push(row);
        self.len += 1;
        let waiting = &self.rows.back()?.as_ref()?.waiting;
        Some(Overdue::Resend(waiting.msg_id, &waiting.message))
    }

    /// When to poll next, in nanoseconds; `u64::MAX` when nothing waits, and during a pause.
    pub(crate) fn deadline_ns(&self) -> u64 {
        match self.rows.front() {
            Some(Some(row)) if self.paused_ns.is_none() => row.deadline_ns.saturating_add(self.stopped_ns),
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
        (self.len, self.index) = (0, None);
        let rows = std::mem::take(&mut self.rows);
        self.first += rows.len() as u64;
        rows.into_iter().flatten().map(|row| row.waiting).collect()
    }

    /// How many messages wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `now_ns` on the clock that stops during pauses.
    fn clock_ns(&self, now_ns: u64) -> u64 {
        self.paused_ns.unwrap_or(now_ns).saturating_sub(self.stopped_ns)
    }

    fn row(&self, number: u64) -> Option<&Row<T>> {
        self.rows.get(usize::try_from(number.checked_sub(self.first)?).ok()?)?.as_ref()
    }

    #[inline(always)]
    fn push(&mut self, row: Row<T>) {
        if let Some(index) = &mut self.index {
            index.insert(row.waiting.msg_id, self.first + self.rows.len() as u64);
        }
        self.rows.push_back(Some(row));
    }

    /// Takes a row out, and the holes that are then at the front; all holes once they are the larger part.
    // Inlined, so that a row is not moved through memory once more: what was stored in words is not yet there to be loaded in pairs.
    #[inline(always)]
    fn take(&mut self, number: u64) -> Option<Row<T>> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let row = self.rows.get_mut(at)?.take()?;
        self.len -= 1;
        if let Some(index) = &mut self.index {
            index.remove(&row.waiting.msg_id);
        }
        while let Some(None) = self.rows.front() {
            self.rows.pop_front();
            self.first += 1;
        }
        if self.rows.len() > 2 * self.len + HOLES_MAX {
            self.close_holes();
        }
        if self.len == 0 {
            self.index = None;
        }
        Some(row)
    }

    #[cold]
    fn close_holes(&mut self) {
        self.first += self.rows.len() as u64;
        self.rows.retain(Option::is_some);
        self.index = None;
    }

    /// Where each row is; made when it is first needed, and again after the rows have moved.
    fn index(&mut self) -> &mut HashMap<MsgId, u64, IdHash> {
        let numbered = self.rows.iter().zip(self.first..);
        let ids = numbered.filter_map(|(row, number)| Some((row.as_ref()?.waiting.msg_id, number)));
        self.index.get_or_insert_with(|| ids.collect())
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
                prop_assert!(pending.rows.len() <= 2 * pending.len() + HOLES_MAX);
                let next_ns = model.iter().map(|row| row.1).min().filter(|_| !paused).unwrap_or(u64::MAX);
                prop_assert_eq!(pending.deadline_ns(), next_ns);
            }
        }
    }
}
