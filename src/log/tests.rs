//! Tests of the log as a whole: random operations against a plain vector of bytes, and threads against each other.
//! Called by `cargo test` only.

use super::chunk::live_blocks;
use super::*;
use proptest::prelude::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const KIB: usize = 1 << 10;

fn head(payload_bytes: usize) -> [u8; 5] {
    let [a, b, c, d] = (payload_bytes as u32 + 1).to_be_bytes();
    [a, b, c, d, 3]
}

/// `bytes` bytes that differ from message to message.
fn payload(number: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|i| (number * 31 + i) as u8).collect()
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [&head(payload.len())[..], payload].concat()
}

fn small() -> LogOptions {
    LogOptions { chunk_bytes: 4 * KIB, limit_bytes: 64 * KIB, share_from_bytes: 2 * KIB, ..LogOptions::default() }
}

fn open_one(options: LogOptions) -> (Appender, Reader) {
    let (appender, mut readers) = open(options, 1);
    (appender, readers.pop().unwrap())
}

fn drain(reader: &mut Reader, mut at: Cursor) -> (Vec<u8>, Cursor) {
    let mut all = Vec::new();
    loop {
        let mut out = Vec::new();
        let to = reader.gather(at, 64 * KIB, 64, &mut out);
        if out.is_empty() {
            return (all, at);
        }
        all.extend(out.drain(..).flatten());
        reader.advance(at, to);
        at = to;
    }
}

#[test]
fn who_panics_while_filling_appends_nothing() {
    let (mut appender, mut reader) = open_one(small());
    let cursor = reader.join();
    appender.append(&head(3), b"one").unwrap();
    let panics = |to: &mut [u8]| {
        to.fill(9);
        panic!("on purpose");
    };
    let filled = std::panic::AssertUnwindSafe(|| appender.append_with(|| head(40), 40, panics).is_ok());
    assert!(std::panic::catch_unwind(filled).is_err());
    assert!(appender.append_with(|| head(3), 3, |to| to.copy_from_slice(b"two")).is_ok());
    assert_eq!(appender.messages(), 2);
    let mut out = Vec::new();
    reader.gather(cursor, usize::MAX, 10, &mut out);
    assert_eq!(out.concat(), [frame(b"one"), frame(b"two")].concat());
}

#[test]
fn appended_frames_are_read_in_order_by_all_cursors() {
    let (mut appender, mut reader) = open_one(small());
    let (a, b) = (reader.join(), reader.join());
    let mut expected = Vec::new();
    for (number, bytes) in [0, 10, 900, 3000, 1, 9000, 64].into_iter().enumerate() {
        let payload = payload(number as u64, bytes);
        appender.append(&head(bytes), &payload).unwrap();
        expected.extend(frame(&payload));
    }
    assert_eq!(appender.messages(), 7);
    assert_eq!(appender.position(), expected.len() as u64);
    for cursor in [a, b] {
        let (read, end) = drain(&mut reader, cursor);
        assert!(read == expected);
        assert_eq!(end, reader.tail());
        assert_eq!((end.messages(), end.is_aligned()), (7, true));
        assert!(!reader.has_more(end));
    }
}

#[test]
fn a_large_payload_is_not_copied_and_does_not_use_up_a_block() {
    let (mut appender, mut reader) = open_one(small());
    let at = reader.join();
    for number in 0..8 {
        let payload = Bytes::from(payload(number, 3 * KIB));
        let address = payload.as_ptr();
        appender.append_bytes(&head(3 * KIB), payload).unwrap();
        let mut out = Vec::new();
        reader.gather(at, usize::MAX, usize::MAX, &mut out);
        assert_eq!(out[2 * number as usize + 1].as_ptr(), address);
    }
    assert_eq!(appender.handle().bytes_held(), 4 * KIB + 8 * 3 * KIB);
}

#[test]
fn what_is_by_reference_is_given_back_once_all_have_passed_it() {
    let (mut appender, mut reader) = open_one(small());
    let (a, b) = (reader.join(), reader.join());
    let payload = Bytes::from(payload(0, 3 * KIB));
    appender.append_bytes(&head(3 * KIB), payload.clone()).unwrap();
    let handle = appender.handle();
    drain(&mut reader, a);
    handle.give_back();
    assert!(!payload.is_unique(), "one has not passed it");
    drain(&mut reader, b);
    handle.give_back();
    assert!(payload.is_unique());
    assert_eq!(handle.bytes_held(), 4 * KIB);
}

#[test]
fn links_at_the_same_place_are_given_the_same_slice() {
    let (mut appender, mut reader) = open_one(small());
    let (a, b) = (reader.join(), reader.join());
    appender.append(&head(100), &[7; 100]).unwrap();
    let mut out = Vec::new();
    reader.gather(a, KIB, 1, &mut out);
    reader.gather(b, KIB, 1, &mut out);
    assert_eq!(out[0].as_ptr(), out[1].as_ptr());
    assert!(!out[0].is_unique());
}

#[test]
fn memory_in_flight_is_not_used_again() {
    let (mut appender, mut reader) = open_one(LogOptions { limit_bytes: 16 * KIB, ..small() });
    let mut at = reader.join();
    appender.append(&head(1000), &[1; 1000]).unwrap();
    let mut kept = Vec::new();
    at = {
        let to = reader.gather(at, KIB, 1, &mut kept);
        reader.advance(at, to);
        to
    };
    for _ in 0..100 {
        appender.append(&head(1000), &[2; 1000]).unwrap();
        at = drain(&mut reader, at).1;
        assert!(kept[0][5..].iter().all(|byte| *byte == 1));
    }
    assert!(appender.handle().bytes_held() <= 12 * KIB);
}

#[test]
fn the_backlog_of_a_peerless_time_goes_to_the_first_cursor() {
    let (mut appender, mut readers) = open(small(), 2);
    appender.append(&head(3), b"one").unwrap();
    let first = readers[1].join();
    let late = readers[0].join();
    assert_eq!((first.messages(), late.messages()), (0, 1));
    let (read, end) = drain(&mut readers[1], first);
    assert_eq!(read, frame(b"one"));
    appender.append(&head(3), b"two").unwrap();
    assert_eq!(readers[0].leave(late), 1, "nobody else gets the second in its stead");
    // The last to go was inside a frame: the backlog begins with that frame, whole.
    let mut out = Vec::new();
    readers[1].gather(end, KIB, 1, &mut out);
    let inside = readers[1].align(end, 6);
    assert_eq!((inside.position(), inside.messages(), inside.is_aligned()), (14, 1, false));
    readers[1].advance(end, inside);
    readers[1].leave(inside);
    let next = readers[0].join();
    assert_eq!(drain(&mut readers[0], next).0, frame(b"two"));
    assert_eq!(appender.handle().cursors(), 1);
}

#[test]
fn a_full_log_refuses_and_has_room_again_once_read() {
    let (mut appender, mut reader) = open_one(small());
    let at = reader.join();
    let mut accepted = 0;
    while appender.append(&head(500), &[0; 500]).is_ok() {
        accepted += 1;
    }
    assert!(accepted * 505 > 50 * KIB && accepted * 505 <= 64 * KIB);
    let refused = Bytes::from(vec![0; 5000]);
    assert!(appender.append_bytes(&head(5000), refused.clone()).is_err_and(|(Full, back)| back == refused));
    let mut released = false;
    let mut at = at;
    while reader.has_more(at) {
        let mut out = Vec::new();
        let to = reader.gather(at, 4 * KIB, 8, &mut out);
        drop(out);
        released |= reader.advance(at, to);
        at = to;
    }
    assert!(released);
    appender.append(&head(500), &[0; 500]).unwrap();
}

/// Whatever happened before: once all is read and dropped, the largest payload finds room, again and again.
#[test]
fn an_idle_log_has_room_for_the_largest_payload() {
    let (mut appender, mut reader) = open_one(small());
    let mut at = reader.join();
    let largest = appender.handle().payload_bytes_max();
    for round in 0..20 {
        for _ in 0..round {
            appender.append(&head(1000), &[0; 1000]).unwrap();
        }
        at = drain(&mut reader, at).1;
        let payload = Bytes::from(payload(round, largest));
        appender.append_bytes(&head(largest), payload).unwrap();
        at = drain(&mut reader, at).1;
        appender.append(&head(largest), &vec![0; largest]).unwrap();
        at = drain(&mut reader, at).1;
    }
}

#[test]
fn frames_are_visited_whole_and_can_be_left() {
    let (mut appender, mut reader) = open_one(small());
    let at = reader.join();
    appender.append(&head(3), b"one").unwrap();
    appender.append_bytes(&head(5000), Bytes::from(vec![9; 5000])).unwrap();
    let ready = [frame(&[4; 2000]), frame(b"four")].concat();
    appender.append_frames(ready.into(), 2).unwrap();
    let mut seen = Vec::new();
    let end = reader.frames(at, |frame| {
        seen.push(match frame {
            Frame::Whole(bytes) => (bytes.len(), 0),
            Frame::Split { head, payload } => (head.len(), payload.len()),
        });
        seen.len() < 4
    });
    assert_eq!(seen, [(8, 0), (5, 5000), (2005, 0), (9, 0)]);
    assert_eq!(end.messages(), 3);
    let last = reader.frames(end, |_| true);
    assert_eq!(reader.messages_between(end, last), 1);
    assert_eq!(reader.bytes_between(at, end), 8 + 5005 + 2005);
}

#[test]
fn nothing_leaks() {
    let before = live_blocks::count();
    let (mut appender, mut reader) = open_one(LogOptions { limit_bytes: 4 << 20, ..small() });
    let at = reader.join();
    while appender.append(&head(1000), &[0; 1000]).is_ok() {}
    assert_eq!(live_blocks::count() - before, 1024);
    let mut out = Vec::new();
    reader.gather(at, KIB, 1, &mut out);
    drop((appender, reader));
    assert_eq!(live_blocks::count() - before, 1);
    assert_eq!(out[0][5], 0);
    drop(out);
    assert_eq!(live_blocks::count(), before);
}

#[derive(Clone, Debug)]
enum Op {
    Append {
        bytes: usize,
    },
    /// In its place if it fits there, else as [`Op::Append`].
    AppendWith {
        bytes: usize,
    },
    AppendBytes {
        bytes: usize,
    },
    AppendFrames {
        bytes: usize,
        count: u32,
    },
    Join {
        reader: usize,
        tail: bool,
    },
    Leave {
        cursor: usize,
    },
    /// Gathers, keeps the slices or drops them, then advances by so much of what was gathered.
    Send {
        cursor: usize,
        max_bytes: usize,
        max_slices: usize,
        short: Option<u64>,
        keep: bool,
    },
    Skip {
        cursor: usize,
        frames: usize,
    },
    /// Moves on to what is at most so far behind the tail.
    Jump {
        cursor: usize,
        bytes: u64,
        messages: u64,
    },
    DropKept,
}

fn op() -> impl Strategy<Value = Op> {
    let cursor = || 0..8usize;
    prop_oneof![
        8 => prop_oneof![0..200usize, 0..3000usize, 3000..20000usize].prop_map(|bytes| Op::Append { bytes }),
        4 => prop_oneof![0..200usize, 0..5000usize].prop_map(|bytes| Op::AppendWith { bytes }),
        3 => prop_oneof![0..3000usize, 0..30000usize].prop_map(|bytes| Op::AppendBytes { bytes }),
        2 => (0..2000usize, 0..12u32).prop_map(|(bytes, count)| Op::AppendFrames { bytes, count }),
        2 => (0..3usize, prop::bool::weighted(0.2)).prop_map(|(reader, tail)| Op::Join { reader, tail }),
        1 => cursor().prop_map(|cursor| Op::Leave { cursor }),
        10 => (cursor(), prop_oneof![0..9000usize, 9000..100_000usize], 0..10usize,
            prop::option::weighted(0.4, any::<u64>()), any::<bool>())
            .prop_map(|(cursor, max_bytes, max_slices, short, keep)| {
                Op::Send { cursor, max_bytes, max_slices, short, keep }
            }),
        2 => (cursor(), 0..30usize).prop_map(|(cursor, frames)| Op::Skip { cursor, frames }),
        2 => (cursor(), prop_oneof![0..3000u64, 0..100_000u64], prop_oneof![0..10u64, Just(u64::MAX)])
            .prop_map(|(cursor, bytes, messages)| Op::Jump { cursor, bytes, messages }),
        3 => Just(Op::DropKept),
    ]
}

/// What the log is to be: all bytes ever appended, and where each frame ends.
#[derive(Default)]
struct Model {
    bytes: Vec<u8>,
    ends: Vec<u64>,
    floor: u64,
}

impl Model {
    fn append(&mut self, payload: &[u8]) {
        self.bytes.extend(frame(payload));
        self.ends.push(self.bytes.len() as u64);
    }

    fn cursor(&self, pos: u64) -> Cursor {
        let seq = self.ends.partition_point(|end| *end <= pos);
        Cursor { pos, frame: if seq == 0 { 0 } else { self.ends[seq - 1] }, seq: seq as u64 }
    }

    fn tail(&self) -> Cursor {
        self.cursor(self.bytes.len() as u64)
    }
}

struct World {
    appender: Appender,
    readers: Vec<Reader>,
    cursors: Vec<(usize, Cursor)>,
    kept: Vec<(u64, Bytes)>,
    model: Model,
}

impl World {
    fn new(options: LogOptions) -> Self {
        let (appender, readers) = open(options, 3);
        Self { appender, readers, cursors: Vec::new(), kept: Vec::new(), model: Model::default() }
    }

    fn step(&mut self, op: Op) {
        let number = self.model.ends.len() as u64;
        match op {
            Op::Append { bytes } => {
                let payload = payload(number, bytes);
                if self.appender.append(&head(bytes), &payload).is_ok() {
                    self.model.append(&payload);
                }
            }
            Op::AppendWith { bytes } => {
                let payload = payload(number, bytes);
                let fill = |to: &mut [u8]| {
                    assert!(to.iter().all(|byte| *byte == 0), "not zero at first");
                    to.copy_from_slice(&payload);
                };
                let in_place = self.appender.append_with(|| head(bytes), bytes, fill).is_ok();
                if in_place || self.appender.append(&head(bytes), &payload).is_ok() {
                    self.model.append(&payload);
                }
            }
            Op::AppendBytes { bytes } => {
                let payload = payload(number, bytes);
                if self.appender.append_bytes(&head(bytes), payload.clone().into()).is_ok() {
                    self.model.append(&payload);
                }
            }
            Op::AppendFrames { bytes, count } => {
                let payloads: Vec<_> = (0..u64::from(count)).map(|i| payload(number + i, bytes)).collect();
                let frames: Vec<u8> = payloads.iter().flat_map(|payload| frame(payload)).collect();
                if self.appender.append_frames(frames.into(), count).is_ok() {
                    payloads.iter().for_each(|payload| self.model.append(payload));
                }
            }
            Op::Join { reader, tail } => {
                let at = if tail { self.readers[reader].join_tail() } else { self.readers[reader].join() };
                let backlog = self.cursors.is_empty() && !tail;
                assert_eq!(at, if backlog { self.model.cursor(self.model.floor) } else { self.model.tail() });
                self.cursors.push((reader, at));
            }
            Op::Leave { cursor } => {
                if !self.cursors.is_empty() {
                    let (reader, at) = self.cursors.swap_remove(cursor % self.cursors.len());
                    self.readers[reader].leave(at);
                    self.model.floor = self.model.floor.max(at.frame);
                }
            }
            Op::Send { cursor, max_bytes, max_slices, short, keep } => {
                self.send(cursor, max_bytes, max_slices, short, keep)
            }
            Op::Skip { cursor, frames } => self.skip(cursor, frames),
            Op::Jump { cursor, bytes, messages } => self.jump(cursor, bytes, messages),
            Op::DropKept => self.kept.clear(),
        }
        self.check();
    }

    fn send(&mut self, cursor: usize, max_bytes: usize, max_slices: usize, short: Option<u64>, keep: bool) {
        let count = self.cursors.len().max(1);
        let Some((reader, cursor)) = self.cursors.get_mut(cursor % count) else { return };
        let (reader, from) = (&mut self.readers[*reader], *cursor);
        assert_eq!(reader.has_more(from), from.pos < self.model.bytes.len() as u64);
        let mut out = Vec::new();
        let mut to = reader.gather(from, max_bytes, max_slices, &mut out);
        assert!(out.len() <= max_slices);
        let gathered: usize = out.iter().map(Bytes::len).sum();
        assert_eq!(gathered as u64, reader.bytes_between(from, to));
        assert!(gathered <= max_bytes.max(4 * KIB));
        assert_eq!(gathered > 0, max_bytes > 0 && max_slices > 0 && from.pos < self.model.bytes.len() as u64);
        assert_eq!(to, self.model.cursor(to.pos));
        let mut at = from.pos;
        for slice in out {
            let end = at + slice.len() as u64;
            assert!(slice == self.model.bytes[at as usize..end as usize]);
            if keep {
                self.kept.push((at, slice));
            }
            at = end;
        }
        if let Some(short) = short {
            to = reader.align(from, short % (gathered as u64 + 1));
            assert_eq!(to, self.model.cursor(to.pos));
        }
        reader.advance(from, to);
        *cursor = to;
    }

    fn skip(&mut self, cursor: usize, frames: usize) {
        let count = self.cursors.len().max(1);
        let Some((reader, cursor)) = self.cursors.get_mut(cursor % count) else { return };
        if !cursor.is_aligned() {
            return;
        }
        let mut left = frames;
        let mut read = Vec::new();
        let to = self.readers[*reader].frames(*cursor, |frame| {
            if left == 0 {
                return false;
            }
            left -= 1;
            match frame {
                Frame::Whole(bytes) => read.extend_from_slice(bytes),
                Frame::Split { head, payload } => read.extend([head, payload].concat()),
            }
            true
        });
        assert_eq!(to, self.model.cursor(to.pos));
        assert!(read == self.model.bytes[cursor.pos as usize..to.pos as usize]);
        self.readers[*reader].advance(*cursor, to);
        *cursor = to;
    }

    fn jump(&mut self, cursor: usize, bytes: u64, messages: u64) {
        let count = self.cursors.len().max(1);
        let Some((reader, cursor)) = self.cursors.get_mut(cursor % count) else { return };
        let (tail, from) = (self.model.tail(), cursor.frame_start());
        let (position, seq) = (tail.pos.saturating_sub(bytes), tail.seq.saturating_sub(messages));
        let to = self.readers[*reader].boundary(from, position, seq);
        let end = |seq: u64| seq.checked_sub(1).map_or(0, |last| self.model.ends[last as usize]);
        let expected = (from.seq..=tail.seq).find(|&n| n >= seq && end(n) >= position);
        assert_eq!(Some(to), expected.map(|seq| Cursor::boundary(end(seq), seq)));
        if to.pos >= cursor.pos {
            self.readers[*reader].advance(*cursor, to);
            *cursor = to;
        }
    }

    fn check(&mut self) {
        let handle = self.appender.handle();
        assert!(handle.bytes_held() <= handle.limit_bytes());
        assert!(live_blocks::count() as usize * 4 * KIB <= handle.limit_bytes());
        assert_eq!(handle.cursors(), self.cursors.len());
        assert_eq!(self.appender.position(), self.model.bytes.len() as u64);
        assert_eq!(self.appender.messages(), self.model.ends.len() as u64);
        assert!(self.kept.iter().all(|(at, kept)| self.model.bytes[*at as usize..][..kept.len()] == *kept));
        for reader in &mut self.readers {
            assert_eq!(reader.tail(), self.model.tail());
        }
    }

    /// Everybody reads everything: then there is room for the largest payload.
    fn finish(mut self) {
        self.kept.clear();
        if self.cursors.is_empty() {
            self.step(Op::Join { reader: 1, tail: false });
        }
        for (reader, at) in &mut self.cursors {
            let (read, end) = drain(&mut self.readers[*reader], *at);
            assert!(read == self.model.bytes[at.pos as usize..]);
            assert_eq!(end, self.model.tail());
            *at = end;
        }
        let largest = self.appender.handle().payload_bytes_max();
        self.appender.append_bytes(&head(largest), vec![0; largest].into()).unwrap();
        drop(self);
        assert_eq!(live_blocks::count(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_operations_agree_with_a_vector(
        ops in prop::collection::vec(op(), 1..300),
        limit_kib in prop_oneof![Just(16usize), Just(32), Just(128)],
    ) {
        let mut world = World::new(LogOptions { limit_bytes: limit_kib * KIB, ..small() });
        ops.into_iter().for_each(|op| world.step(op));
        world.finish();
    }
}

/// Lets the others go on; fails when they do not, for one that has failed would be waited for without end.
fn wait(started: Instant) {
    assert!(started.elapsed() < Duration::from_secs(60), "no progress");
    std::thread::yield_now();
}

/// Reads with several cursors in turn, in small and in large steps, until `total` messages were seen by each.
fn read_all(mut reader: Reader, start: Cursor, total: u64, room: &AtomicU64) {
    let started = Instant::now();
    let mut cursors = vec![(start, Vec::<u8>::new(), 0u64)];
    for _ in 0..2 {
        let at = reader.join();
        cursors.push((at, Vec::new(), at.messages()));
    }
    let mut out = Vec::new();
    let mut round = 0usize;
    while cursors.iter().any(|(at, ..)| at.messages() < total) {
        round += 1;
        let pick = round % cursors.len();
        let (at, pending, number) = &mut cursors[pick];
        let to = reader.gather(*at, if round.is_multiple_of(3) { KIB } else { 64 * KIB }, 1 + round % 8, &mut out);
        out.drain(..).for_each(|slice| pending.extend_from_slice(&slice));
        let mut offset = 0;
        while let Some(len) = appender::frame_bytes(&pending[offset..]).map(|len| len as usize) {
            let Some(got) = pending.get(offset..offset + len) else { break };
            assert!(got[5..13] == number.to_be_bytes(), "message {number} expected");
            assert!(got[13..].iter().all(|byte| *byte == *number as u8));
            *number += 1;
            offset += len;
        }
        pending.drain(..offset);
        assert_eq!(to.messages(), *number);
        room.fetch_add(u64::from(reader.advance(*at, to)), Ordering::Relaxed);
        if to == *at {
            wait(started);
        }
        *at = to;
    }
    for (at, ..) in cursors {
        reader.leave(at);
    }
}

#[test]
fn threads_read_what_another_appends() {
    const TOTAL: u64 = 40_000;
    let options = LogOptions { chunk_bytes: 8 * KIB, limit_bytes: 96 * KIB, share_from_bytes: 4 * KIB, ..small() };
    let (appender, readers) = open(options, 2);
    let handle = appender.handle();
    let appender = Mutex::new(appender);
    let room = AtomicU64::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for mut reader in readers {
            let start = reader.join();
            let room = &room;
            scope.spawn(move || read_all(reader, start, TOTAL, room));
        }
        scope.spawn(|| {
            for number in 0..TOTAL {
                let bytes = if number % 97 == 0 { 9000 } else { 8 + (number % 300) as usize };
                let mut message = number.to_be_bytes().to_vec();
                message.resize(bytes, number as u8);
                let message = Bytes::from(message);
                while appender.lock().unwrap().append_bytes(&head(bytes), message.clone()).is_err() {
                    wait(started);
                }
                assert!(handle.bytes_held() <= handle.limit_bytes());
            }
        });
    });
    assert!(room.into_inner() > 0);
    assert_eq!(handle.cursors(), 0);
}

proptest! {
    /// A late cursor begins at a frame boundary, as far back as is retained and no further, and reads all that follows. What is only
    /// retained never makes an append fail.
    #[test]
    fn a_late_cursor_gets_what_is_retained(
        sizes in proptest::collection::vec((0..3000usize, 0..6u8), 1..150),
        messages_max in 0..100u64,
        bytes_max in 0..80_000u64,
        aged in 0..100usize,
    ) {
        let retain = Retain { bytes_max, messages_max };
        let (mut appender, mut readers) = open(LogOptions { retain, ..small() }, 2);
        let (mut late, mut live) = (readers.pop().unwrap(), readers.pop().unwrap());
        let mut at = live.join();
        let mut frames: Vec<Vec<u8>> = Vec::new();
        for (number, (bytes, step)) in sizes.into_iter().enumerate() {
            let payload = payload(number as u64, bytes);
            prop_assert!(appender.append_bytes(&head(bytes), payload.clone().into()).is_ok(), "what is retained gives way");
            frames.push(frame(&payload));
            at = drain(&mut live, at).1;
            let begins: Vec<u64> = frames.iter().scan(0, |sum, f| Some(std::mem::replace(sum, *sum + f.len() as u64))).collect();
            let tail = at.position();
            if number == aged {
                appender.handle().age(tail);
            }
            if step > 0 {
                continue;
            }
            let joined = late.join_oldest();
            let first = begins.iter().position(|begin| *begin == joined.position()).unwrap_or(frames.len());
            prop_assert_eq!(joined.messages(), first as u64);
            let ages = |n: usize| number < aged || n > aged;
            let wanted = |n: &usize| begins[*n] + bytes_max >= tail && (*n as u64 + messages_max) >= frames.len() as u64 && ages(*n);
            let oldest = (0..frames.len()).find(wanted).unwrap_or(frames.len());
            prop_assert!(first >= oldest, "nothing that is not to be retained");
            if tail < 30_000 {
                prop_assert_eq!(first, oldest, "there is room for all of it");
            }
            let (read, end) = drain(&mut late, joined);
            prop_assert_eq!(read, frames[first..].concat());
            late.leave(end);
        }
    }
}

#[test]
fn a_late_cursor_joins_before_others_of_its_reader() {
    let retain = Retain { bytes_max: u64::MAX, messages_max: u64::MAX };
    let (mut appender, mut reader) = open_one(LogOptions { retain, ..small() });
    let mut live = reader.join();
    for n in 0..20 {
        appender.append(&head(1000), &payload(n, 1000)).unwrap();
        live = drain(&mut reader, live).1;
    }
    let late = reader.join_oldest();
    assert_eq!(late, Cursor::default());
    appender.append(&head(1), b"x").unwrap();
    let (read, late) = drain(&mut reader, late);
    assert_eq!(read.len(), 20 * 1005 + 6);
    let (rest, live) = drain(&mut reader, live);
    assert_eq!((rest.len(), live), (6, late));
    reader.leave(late);
    reader.leave(live);
}
