//! The last value of each key of a log, in order of last update, and which stretches of the log have no key.
//!
//! ```text
//!   log       | k1 | - | k2 | - - - | k1 | k3 |      "-" a record without a key
//!   order                k2            k1   k3       each key once, where it was updated last
//!   unkeyed          [-]      [- - -]                stretches, merged where they touch
//!                                             ^ covered
//! ```
//!
//! With both, whoever is at some place in the log can go to `covered` at once and still miss nothing that counts: the stretches
//! without keys in between, and for each key that was updated in between its newest value.
//!
//! Invariants: `covered` is the end of the log as far as it was told, and everything before it is either in `order` or superseded or
//! forgotten, or inside a stretch. A stretch may hold records with keys too (see [`RUNS_MAX`]): inside it everything keeps its
//! place. An entry's position is that of its record in the log, so entries and stretches merge by position. Values are copies: no
//! memory of the log is held. An update of a known key allocates nothing unless its value has grown.
//!
//! Bounded by keys and bytes; a key beyond is refused before anything is appended. Called under a lock of its own, by producers right
//! around their append, and by the readers that go to `covered`. It does no I/O and knows no link.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use slab::Slab;

use super::{Cursor, Frame};

/// What a key costs beside its own bytes and those of its value, bytes: its places in the tables.
const KEY_BYTES: usize = 160;
/// Values of at least so many bytes are kept by reference.
const SHARE_FROM_BYTES: usize = 16 << 10;
/// Stretches remembered at most, 48 bytes each. Beyond that neighbours are taken together, and the keyed records between them keep
/// their places.
const RUNS_MAX: usize = 32 << 10;
/// A value's buffer that is this many times too large is given back.
const SLACK: usize = 4;

/// Most that a table holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LatestOptions {
    /// Keys.
    pub(crate) keys_max: usize,
    /// Bytes of keys, values and tables.
    pub(crate) bytes_max: usize,
}

/// A key too many, or bytes too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeysFull;

/// See the module's documentation.
pub(crate) struct Latest {
    options: LatestOptions,
    by_key: HashMap<Box<[u8]>, u32>,
    slots: Slab<Slot>,
    /// Positions of updates and whose they are, rising. One whose slot has gone on (or is gone) is stale and swept later.
    order: VecDeque<(u64, u32)>,
    unkeyed: VecDeque<Run>,
    covered: Cursor,
    /// Accounted now.
    bytes: usize,
}

struct Slot {
    /// Where its record begins in the log.
    position: u64,
    value: Value,
}

/// A finished frame.
enum Value {
    Own(Vec<u8>),
    Shared { head: Vec<u8>, payload: Bytes },
}

impl Value {
    fn bytes(&self) -> usize {
        match self {
            Value::Own(frame) => frame.capacity(),
            Value::Shared { head, payload } => head.capacity() + payload.len(),
        }
    }

    fn write(&mut self, head: &[u8], payload: &[u8]) {
        let bytes = head.len() + payload.len();
        if !matches!(self, Value::Own(_)) {
            *self = Value::Own(Vec::with_capacity(bytes));
        }
        if let Value::Own(frame) = self {
            frame.clear();
            if frame.capacity() / SLACK > bytes {
                frame.shrink_to(bytes);
            }
            frame.reserve_exact(bytes);
            frame.extend_from_slice(head);
            frame.extend_from_slice(payload);
        }
    }
}

/// A stretch without keys: frame boundaries, and the frames before each.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: Cursor,
    end: Cursor,
}

/// What [`Latest::visit`] showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Everything up to here was looked at: where to go on.
    pub(crate) reached: u64,
    /// Entries.
    pub(crate) entries: u64,
    /// Their bytes.
    pub(crate) bytes: usize,
}

impl Latest {
    /// A table that knows nothing of what is before `covered`: all of that counts as having no key.
    pub(crate) fn new(options: LatestOptions, covered: Cursor) -> Latest {
        let before = Run { start: Cursor::default(), end: covered };
        Latest {
            options,
            by_key: HashMap::new(),
            slots: Slab::new(),
            order: VecDeque::new(),
            unkeyed: (covered.position() > 0).then_some(before).into_iter().collect(),
            covered,
            bytes: 0,
        }
    }

    /// Whether a value of `bytes` bytes, its frame's head included, has room under `key`. To be asked before it is appended.
    ///
    /// # Errors
    /// When it has not.
    pub(crate) fn check(&self, key: &[u8], bytes: usize) -> Result<(), KeysFull> {
        let held = match self.by_key.get(key) {
            Some(&slot) => self.slots[slot as usize].value.bytes(),
            None if self.by_key.len() >= self.options.keys_max => return Err(KeysFull),
            None => 0,
        };
        let new = if held == 0 { KEY_BYTES + key.len() } else { 0 };
        // A buffer that is large enough stays as it is.
        let grown = bytes.saturating_sub(held);
        if self.bytes + new + grown > self.options.bytes_max { Err(KeysFull) } else { Ok(()) }
    }

    /// The record of `key` was appended from `start` to `end`, and `start` is what is covered: this is the key's value now.
    pub(crate) fn update(&mut self, key: &[u8], head: &[u8], payload: &[u8], end: Cursor) {
        let slot = self.touch(key, end);
        let value = &mut self.slots[slot as usize].value;
        let before = value.bytes();
        value.write(head, payload);
        self.bytes = self.bytes - before + value.bytes();
    }

    /// As [`update`](Self::update); a large payload is kept by reference.
    pub(crate) fn update_shared(&mut self, key: &[u8], head: &[u8], payload: Bytes, end: Cursor) {
        if payload.len() < SHARE_FROM_BYTES {
            return self.update(key, head, &payload, end);
        }
        let slot = self.touch(key, end);
        let value = &mut self.slots[slot as usize].value;
        let before = value.bytes();
        *value = Value::Shared { head: head.to_vec(), payload };
        self.bytes = self.bytes - before + value.bytes();
    }

    /// A record without a key was appended, up to `end`.
    pub(crate) fn pass(&mut self, end: Cursor) {
        let start = std::mem::replace(&mut self.covered, end);
        match self.unkeyed.back_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.unkeyed.push_back(Run { start, end }),
        }
    }

    /// Whether so many stretches are remembered that [`trim`](Self::trim) should be called.
    pub(crate) fn is_long(&self) -> bool {
        self.unkeyed.len() >= RUNS_MAX
    }

    /// Forgets stretches before `oldest`, where nobody is any more; takes neighbours together if that was not enough.
    pub(crate) fn trim(&mut self, oldest: u64) {
        while self.unkeyed.front().is_some_and(|run| run.end.position() <= oldest) {
            self.unkeyed.pop_front();
        }
        if self.unkeyed.len() > RUNS_MAX / 2 {
            let mut runs = std::mem::take(&mut self.unkeyed).into_iter();
            while let Some(first) = runs.next() {
                let end = runs.next().map_or(first.end, |second| second.end);
                self.unkeyed.push_back(Run { start: first.start, end });
            }
        }
    }

    /// Forgets a key and its value; false if it was not there.
    pub(crate) fn forget(&mut self, key: &[u8]) -> bool {
        let Some((key, slot)) = self.by_key.remove_entry(key) else { return false };
        let slot = self.slots.remove(slot as usize);
        self.bytes -= KEY_BYTES + key.len() + slot.value.bytes();
        true
    }

    /// How far the table knows the log.
    #[cfg(test)]
    pub(crate) fn covered(&self) -> Cursor {
        self.covered
    }

    /// The stretches between two frame boundaries, each cut to lie between them.
    pub(crate) fn unkeyed(&self, from: Cursor, to: Cursor) -> impl Iterator<Item = (Cursor, Cursor)> + '_ {
        let first = self.unkeyed.partition_point(|run| run.end.position() <= from.position());
        let within = self.unkeyed.range(first..).take_while(move |run| run.start.position() < to.position());
        let later = |a: Cursor, b: Cursor| if a.position() < b.position() { b } else { a };
        let earlier = |a: Cursor, b: Cursor| if a.position() < b.position() { a } else { b };
        within.map(move |run| (later(run.start, from), earlier(run.end, to)))
    }

    /// Shows the values whose records begin in `from..until`, in order, until they make up `bytes_max`: one at least, if there is one.
    pub(crate) fn visit(&self, from: u64, until: u64, bytes_max: usize, mut visit: impl FnMut(Frame<'_>)) -> Taken {
        let mut taken = Taken { reached: from.max(until), ..Taken::default() };
        for (position, slot) in self.entries(from, until) {
            if taken.bytes >= bytes_max {
                taken.reached = position;
                break;
            }
            match &slot.value {
                Value::Own(frame) => {
                    taken.bytes += frame.len();
                    visit(Frame::Whole(frame));
                }
                Value::Shared { head, payload } => {
                    taken.bytes += head.len() + payload.len();
                    visit(Frame::Split { head, payload });
                }
            }
            taken.entries += 1;
        }
        taken
    }

    /// Values whose records begin in `from..until`.
    pub(crate) fn count(&self, from: u64, until: u64) -> u64 {
        self.entries(from, until).count() as u64
    }

    /// Keys now.
    pub(crate) fn keys(&self) -> usize {
        self.by_key.len()
    }

    /// Bytes accounted now.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn entries(&self, from: u64, until: u64) -> impl Iterator<Item = (u64, &Slot)> + '_ {
        let first = self.order.partition_point(|(position, _)| *position < from);
        let within = self.order.range(first..).take_while(move |(position, _)| *position < until);
        within.filter_map(|&(position, slot)| {
            let slot = self.slots.get(slot as usize)?;
            (slot.position == position).then_some((position, slot))
        })
    }

    /// The key's slot, put last in the order; what is covered goes on to `end`.
    fn touch(&mut self, key: &[u8], end: Cursor) -> u32 {
        let position = std::mem::replace(&mut self.covered, end).position();
        let slot = match self.by_key.get(key) {
            Some(&slot) => slot,
            None => {
                let slot = self.slots.insert(Slot { position, value: Value::Own(Vec::new()) }) as u32;
                self.by_key.insert(key.into(), slot);
                self.bytes += KEY_BYTES + key.len();
                slot
            }
        };
        self.slots[slot as usize].position = position;
        // Half of the entries are stale by then, so that the sweep costs each update a constant amount.
        if self.order.len() > 2 * self.slots.len() + 64 {
            let slots = &self.slots;
            self.order.retain(|&(position, slot)| slots.get(slot as usize).is_some_and(|s| s.position == position));
        }
        self.order.push_back((position, slot));
        slot
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPTIONS: LatestOptions = LatestOptions { keys_max: 100, bytes_max: 1 << 20 };

    fn all(table: &Latest, from: u64, until: u64) -> Vec<u8> {
        piece(table, from, until, usize::MAX).0
    }

    fn piece(table: &Latest, from: u64, until: u64, bytes_max: usize) -> (Vec<u8>, Taken) {
        let mut out = Vec::new();
        let taken = table.visit(from, until, bytes_max, |frame| match frame {
            Frame::Whole(frame) => out.extend_from_slice(frame),
            Frame::Split { head, payload } => out.extend(head.iter().chain(payload.iter())),
        });
        (out, taken)
    }

    fn at(position: u64, seq: u64) -> Cursor {
        Cursor::boundary(position, seq)
    }

    #[test]
    fn an_update_moves_a_key_to_the_end() {
        let mut table = Latest::new(OPTIONS, Cursor::default());
        table.update(b"a", b"h", b"a1", at(3, 1));
        table.update(b"b", b"h", b"b1", at(6, 2));
        table.update(b"a", b"h", b"a2", at(9, 3));
        assert_eq!(all(&table, 0, 9), b"hb1ha2");
        assert_eq!(all(&table, 4, 9), b"ha2");
        assert_eq!(all(&table, 0, 6), b"hb1", "what begins later is not there yet");
        assert!(table.forget(b"b") && !table.forget(b"b"));
        assert_eq!((all(&table, 0, 9).as_slice(), table.keys()), (b"ha2".as_slice(), 1));
    }

    #[test]
    fn keys_and_bytes_are_bounded_and_known_keys_go_on() {
        let mut table = Latest::new(LatestOptions { keys_max: 2, bytes_max: 1000 }, Cursor::default());
        for (n, key) in [b"a", b"b"].into_iter().enumerate() {
            assert_eq!(table.check(key, 10), Ok(()));
            table.update(key, b"h", b"12345678", at(9 * (n as u64 + 1), n as u64 + 1));
        }
        assert_eq!(table.check(b"c", 1), Err(KeysFull));
        assert_eq!(table.check(b"a", 9), Ok(()));
        assert_eq!(table.check(b"a", 1000), Err(KeysFull));
        assert!(table.forget(b"a"));
        assert_eq!(table.check(b"c", 9), Ok(()));
        table.forget(b"b");
        assert_eq!((table.bytes(), table.keys()), (0, 0));
    }

    #[test]
    fn what_is_large_is_kept_by_reference_and_stretches_stay_bounded() {
        let mut table = Latest::new(OPTIONS, at(7, 1));
        let payload = Bytes::from(vec![1; SHARE_FROM_BYTES]);
        table.update_shared(b"a", b"h", payload.clone(), at(8 + payload.len() as u64, 2));
        let taken = table.visit(0, u64::MAX, 1, |frame| match frame {
            Frame::Whole(_) => panic!("copied"),
            Frame::Split { payload: kept, .. } => assert_eq!(kept.as_ptr(), payload.as_ptr()),
        });
        assert_eq!((taken.entries, taken.bytes), (1, payload.len() + 1));
        assert_eq!(table.unkeyed(at(0, 0), table.covered()).collect::<Vec<_>>(), [(at(0, 0), at(7, 1))]);
        let begin = table.covered();
        for n in 0..2 * RUNS_MAX as u64 {
            let (position, seq) = (begin.position() + 2 * n, begin.messages() + 2 * n);
            table.update(b"k", b"h", b"", at(position + 1, seq + 1));
            table.pass(at(position + 2, seq + 2));
            if table.is_long() {
                table.trim(0);
            }
        }
        assert!(table.unkeyed.len() < RUNS_MAX);
        let (start, end) = table.unkeyed(begin, table.covered()).last().unwrap();
        assert_eq!(end, table.covered());
        assert!(end.messages() - start.messages() <= 2);
        table.trim(end.position());
        assert_eq!(table.unkeyed.len(), 0);
    }

    proptest! {
        /// Against a list of all updates: for any range the newest of each key, in order, in whatever pieces they are taken.
        #[test]
        fn gives_what_a_list_of_updates_gives(
            steps in proptest::collection::vec((0..8u8, 0..40usize, 0..3u8), 1..300),
            bytes_max in 1..200usize,
            from in 0..4000u64,
        ) {
            let mut table = Latest::new(OPTIONS, Cursor::default());
            let mut newest: Vec<(u8, u64, Vec<u8>)> = Vec::new();
            let mut unkeyed = 0;
            let (mut position, mut seq) = (0, 0);
            for (n, (key, len, kind)) in steps.into_iter().enumerate() {
                if kind == 0 && key == 7 {
                    table.forget(&[len as u8 % 8]);
                    newest.retain(|(k, _, _)| *k != len as u8 % 8);
                    continue;
                }
                let end = at(position + len as u64 + 1, seq + 1);
                if kind == 0 {
                    table.pass(end);
                    unkeyed += 1;
                } else {
                    let value = vec![n as u8; len];
                    newest.retain(|(k, _, _)| *k != key);
                    newest.push((key, position, [b"h".as_slice(), &value].concat()));
                    table.update(&[key], b"h", &value, end);
                }
                (position, seq) = (end.position(), end.messages());
            }
            let from = from.min(position);
            let wanted: Vec<u8> = newest.iter().filter(|(_, p, _)| *p >= from).flat_map(|(_, _, v)| v.clone()).collect();
            let (mut out, mut reached, mut entries) = (Vec::new(), from, 0);
            while reached < position {
                let (bytes, taken) = piece(&table, reached, position, bytes_max);
                out.extend(bytes);
                prop_assert!(taken.reached > reached);
                (reached, entries) = (taken.reached, entries + taken.entries);
            }
            prop_assert_eq!(out, wanted);
            prop_assert_eq!(entries, table.count(from, position));
            let messages: u64 = table.unkeyed(at(0, 0), table.covered()).map(|(start, end)| end.messages() - start.messages()).sum();
            prop_assert_eq!(messages, unkeyed);
        }
    }
}
