//! Where a peer that comes late begins, and what is kept for it.
//!
//! The log keeps what all peers have passed by bytes and by messages; for the age, which it does not know, the home shard notes from
//! time to time how far the log was. Used under PUBLISH only.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use super::ShardSocket;
use super::config::nanos;
use crate::log::{Cursor, Handle, Retain};
use crate::sabotage::{Bug, planted};

/// Where a new peer of a PUBLISH socket begins, one that comes back included: every connection is new. What is sent from then on
/// follows without a gap.
///
/// Whatever it says, what was sent while nobody at all was connected goes to the first peer that comes, in full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Replay {
    /// At what is sent next.
    #[default]
    Live,
    /// At the oldest message that is retained, see [`Retention`].
    Oldest,
    /// At the newest message of each key, see [`send_keyed`](crate::Socket::send_keyed), in the order of their last updates. What was
    /// sent without a key is not part of it, and no superseded value is. A value that is replaced before it has gone out comes later,
    /// in its new place.
    Snapshot,
}

/// How much of what was sent a PUBLISH socket keeps for peers that begin at [`Replay::Oldest`]: what is within all of the bounds that are
/// set. By default, with none set, nothing. It lies in the log, within `log_bytes_max`, and gives way, the oldest first, when the log
/// needs room.
///
/// ```
/// use aiomsg_uring::{Replay, Retention, Socket};
///
/// let news = Socket::builder()
///     .replay(Replay::Oldest)
///     .retain(Retention { messages: Some(1000), ..Retention::default() })
///     .build()?;
/// # Ok::<(), aiomsg_uring::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Retention {
    /// Bytes on the wire.
    pub bytes: Option<usize>,
    /// Messages.
    pub messages: Option<u64>,
    /// Age. It is known to a sixty-fourth, and what is a little older may be kept.
    pub age: Option<Duration>,
}

impl Retention {
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Retention::default()
    }

    /// What the log looks after.
    pub(crate) fn in_log(&self) -> Retain {
        if self.is_nothing() {
            return Retain::NOTHING;
        }
        let bytes_max = self.bytes.map_or(u64::MAX, |bytes| bytes as u64);
        let more = if planted(Bug::RetainedTooLong) { 2 } else { 0 };
        Retain { bytes_max, messages_max: self.messages.unwrap_or(u64::MAX).saturating_add(more) }
    }
}

/// Notes of how far a log was when, for as long as messages are kept by age.
pub(crate) struct Ages {
    age_ns: u64,
    /// When, and the tail then; rising.
    marks: VecDeque<(u64, Cursor)>,
}

/// How often it notes: two notes make up more than this part of the age.
const MARKS: u64 = 64;

impl Ages {
    pub(crate) fn new(retention: &Retention) -> Option<Ages> {
        retention.age.map(|age| Ages { age_ns: nanos(age), marks: VecDeque::new() })
    }

    /// Notes that the log is at `tail`, and tells it what has become too old.
    pub(crate) fn note(&mut self, now_ns: u64, tail: Cursor, log: &Handle) {
        // The newest note is replaced while it is near the one before it; after a silence it is the one that counts, and stays.
        let before_ns = self.marks.iter().rev().nth(1).map(|(then_ns, _)| *then_ns);
        if before_ns.is_some_and(|before_ns| now_ns.saturating_sub(before_ns) < self.age_ns / MARKS) {
            self.marks.pop_back();
        }
        self.marks.push_back((now_ns, tail));
        let old = self.marks.partition_point(|(then_ns, _)| now_ns.saturating_sub(*then_ns) > self.age_ns);
        if let Some((_, tail)) = self.marks.drain(..old).next_back() {
            log.age(tail.position());
        }
    }
}

impl ShardSocket {
    /// Lets the log know what has become too old to be kept, if that is to be known.
    pub(super) fn note_ages(&mut self, now_ns: u64) {
        if let Some(ages) = &self.shared.ages {
            let tail = self.reader.tail();
            // Marks stay whole whatever panicked beside them.
            ages.lock().unwrap_or_else(PoisonError::into_inner).note(now_ns, tail, &self.shared.log);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{self, LogOptions};

    #[test]
    fn what_was_there_an_age_ago_is_too_old() {
        let retention = Retention { age: Some(Duration::from_nanos(640)), ..Retention::default() };
        let options = LogOptions { retain: retention.in_log(), ..LogOptions::default() };
        let (mut appender, mut readers) = log::open(options, 1);
        let mut ages = Ages::new(&retention).unwrap();
        let mut live = readers[0].join();
        for now_ns in 0..2000 {
            appender.append(&[0, 0, 0, 1, 3], &[]).unwrap();
            let tail = readers[0].tail();
            readers[0].advance(live, tail);
            live = tail;
            ages.note(now_ns, tail, &appender.handle());
            assert!(ages.marks.len() <= 2 * MARKS as usize + 3);
        }
        let late = readers[0].join_oldest();
        assert!((2000 - 660..=2000 - 640).contains(&late.messages()), "{late:?}");
        readers[0].leave(late);
        appender.append(&[0, 0, 0, 1, 3], &[]).unwrap();
        ages.note(10_000, readers[0].tail(), &appender.handle());
        assert_eq!(readers[0].join_oldest().messages(), 2000, "all but the last is too old by then");
    }
}
