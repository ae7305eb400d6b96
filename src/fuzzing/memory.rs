//! Where messages lie: the log against a vector of all bytes, the receive queue against a deque.

use std::collections::VecDeque;

use arbitrary::Unstructured;
use bytes::Bytes;

use super::next;
use crate::log::{self, Appender, Cursor, Frame, LogOptions, Reader};
use crate::protocol::data_head;
use crate::queue::ReceiveQueue;

const KIB: usize = 1 << 10;
const CHUNK_BYTES: usize = 4 * KIB;

/// Bytes that rise and wrap: a piece says where it is from.
static PATTERN: [u8; 10_000] = {
    let mut bytes = [0; 10_000];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

/// A log, its cursors, slices of it that are in flight, and all bytes that were ever appended.
struct Logged {
    appender: Appender,
    readers: Vec<Reader>,
    cursors: Vec<(usize, Cursor)>,
    in_flight: Vec<(u64, Bytes)>,
    bytes: Vec<u8>,
    ends: Vec<u64>,
    /// Where the first cursor to join begins when there is none.
    floor: u64,
    limit_bytes: usize,
}

/// Appends, sends in part and in whole, skips, joins and leaves.
pub(super) fn log(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(limit) = input.arbitrary::<u8>() else { return };
    let limit_bytes = [16, 24, 48][usize::from(limit) % 3] * KIB;
    let (appender, readers) = log::open(
        LogOptions { chunk_bytes: CHUNK_BYTES, limit_bytes, share_from_bytes: 2 * KIB, ..LogOptions::default() },
        3,
    );
    let mut logged = Logged {
        appender,
        readers,
        cursors: Vec::new(),
        in_flight: Vec::new(),
        bytes: Vec::new(),
        ends: Vec::new(),
        floor: 0,
        limit_bytes,
    };
    loop {
        let (step, pick, amount) = next!(input, (u8, u8, u16));
        logged.step(step, usize::from(pick), usize::from(amount));
    }
    // Everybody reads everything: nothing is missing.
    logged.complete();
    for at in 0..logged.cursors.len() {
        while logged.send(at, 64 * KIB, 64, None, false) {}
        logged.check(logged.cursors[at].1, logged.bytes.len() as u64);
    }
}

impl Logged {
    /// That this is the cursor of a position.
    #[track_caller]
    fn check(&self, cursor: Cursor, pos: u64) {
        let before = self.ends.partition_point(|end| *end <= pos);
        let frame = before.checked_sub(1).map_or(0, |last| self.ends[last]);
        assert_eq!((cursor.position(), cursor.frame(), cursor.messages()), (pos, frame, before as u64));
        assert_eq!(cursor.is_aligned(), pos == frame);
    }

    /// A payload that tells which message it is.
    fn payload(number: usize, bytes: usize) -> Vec<u8> {
        PATTERN[number * 31 % 256..][..bytes].to_vec()
    }

    fn appended(&mut self, payload: &[u8]) {
        self.bytes.extend(data_head(payload.len()));
        self.bytes.extend(payload);
        self.ends.push(self.bytes.len() as u64);
    }

    fn step(&mut self, step: u8, pick: usize, amount: usize) {
        let number = self.ends.len();
        match step % 16 {
            0..4 => {
                let payload = Logged::payload(number, if step & 64 == 0 { amount % 200 } else { amount % 6_000 });
                let (bytes, fill) = (payload.len(), |to: &mut [u8]| to.copy_from_slice(&payload));
                let in_place = step & 128 != 0 && self.appender.append_with(|| data_head(bytes), bytes, fill).is_ok();
                if in_place || self.appender.append(&data_head(bytes), &payload).is_ok() {
                    self.appended(&payload);
                }
            }
            4 | 5 => {
                let payload = Logged::payload(number, amount % 9_000);
                match self.appender.append_bytes(&data_head(payload.len()), payload.clone().into()) {
                    Ok(()) => self.appended(&payload),
                    Err((_, back)) => assert!(back == payload),
                }
            }
            6 => {
                let payloads: Vec<_> = (0..pick % 12).map(|at| Logged::payload(number + at, amount % 700)).collect();
                let frames: Vec<_> =
                    payloads.iter().map(|payload| [&data_head(payload.len())[..], payload].concat()).collect();
                if self.appender.append_frames(frames.concat().into(), payloads.len() as u32).is_ok() {
                    payloads.iter().for_each(|payload| self.appended(payload));
                }
            }
            7 if self.cursors.len() < 8 => {
                let at = self.readers[pick % 3].join();
                let expected = if self.cursors.is_empty() { self.floor } else { self.bytes.len() as u64 };
                self.check(at, expected);
                self.cursors.push((pick % 3, at));
            }
            8 if !self.cursors.is_empty() => {
                let (reader, at) = self.cursors.swap_remove(pick % self.cursors.len());
                self.readers[reader].leave(at);
                self.floor = self.floor.max(at.frame());
            }
            9 => self.complete(),
            10 => self.skip(pick, amount % 30),
            _ => {
                let short = (step & 64 != 0).then_some(amount as u64);
                self.send(pick, amount / 2, pick % 10, short, step & 128 != 0);
            }
        }
        let handle = self.appender.handle();
        assert!(handle.bytes_held() <= self.limit_bytes);
        assert_eq!(
            (self.appender.position(), self.appender.messages()),
            (self.bytes.len() as u64, self.ends.len() as u64)
        );
        self.check(handle.tail(), self.bytes.len() as u64);
    }

    /// What is in flight has gone out, and is as it was.
    fn complete(&mut self) {
        for (at, slice) in self.in_flight.drain(..) {
            assert!(self.bytes[at as usize..][..slice.len()] == slice, "memory in flight was written");
        }
    }

    /// Sends the next bytes of a cursor, or the first `short` of them; false when there were none.
    fn send(&mut self, pick: usize, bytes_max: usize, slices_max: usize, short: Option<u64>, keep: bool) -> bool {
        let count = self.cursors.len().max(1);
        let Some(&(reader, from)) = self.cursors.get(pick % count) else { return false };
        let more = from.position() < self.bytes.len() as u64;
        let mut out = Vec::new();
        assert_eq!(self.readers[reader].has_more(from), more);
        let mut to = self.readers[reader].gather_until(from, Cursor::END, bytes_max, slices_max, &mut out);
        let gathered: usize = out.iter().map(Bytes::len).sum();
        assert!(out.len() <= slices_max && gathered <= bytes_max.max(CHUNK_BYTES));
        assert_eq!(gathered > 0, more && bytes_max > 0 && slices_max > 0);
        self.check(to, from.position() + gathered as u64);
        let mut at = from.position();
        for slice in out {
            assert!(slice == self.bytes[at as usize..][..slice.len()]);
            at += slice.len() as u64;
            if keep {
                self.in_flight.push((at - slice.len() as u64, slice));
            }
        }
        if let Some(short) = short {
            to = self.readers[reader].align(from, short % (gathered as u64 + 1));
            self.check(to, from.position() + short % (gathered as u64 + 1));
        }
        self.readers[reader].advance(from, to);
        self.cursors[pick % count].1 = to;
        gathered > 0
    }

    /// Passes over so many whole frames.
    fn skip(&mut self, pick: usize, frames: usize) {
        let count = self.cursors.len().max(1);
        let Some(&(reader, from)) = self.cursors.get(pick % count) else { return };
        if !from.is_aligned() {
            return;
        }
        let mut read = Vec::new();
        let mut left = frames;
        let to = self.readers[reader].frames(from, |frame| {
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
        self.check(to, to.position());
        assert!(read == self.bytes[from.position() as usize..to.position() as usize]);
        self.readers[reader].advance(from, to);
        self.cursors[pick % count].1 = to;
    }
}

/// Pushes, pops, releases; the bytes are counted, and a starved shard is told once there is room.
pub(super) fn receive_queue(data: &[u8]) {
    const SLOTS: usize = 8;
    const LIMIT: usize = 1_000;
    let mut input = Unstructured::new(data);
    let queue = ReceiveQueue::new(SLOTS, LIMIT);
    let (mut waiting, mut popped) = (VecDeque::new(), VecDeque::new());
    let (mut held, mut starved, mut closed) = (0, false, false);
    loop {
        let (step, bytes) = next!(input, (u8, u8));
        let bytes = usize::from(bytes) * 2;
        match step % 8 {
            0..4 => {
                let fits = held < LIMIT && waiting.len() < SLOTS && !closed;
                assert_eq!(queue.push(bytes, bytes).is_ok(), fits);
                if fits {
                    waiting.push_back(bytes);
                    held += bytes;
                } else if step & 64 != 0 {
                    queue.mark_starved();
                    starved = true;
                }
            }
            4 | 5 => {
                let next = waiting.pop_front();
                assert_eq!(queue.pop(), next);
                popped.extend(next);
            }
            6 => {
                if let Some(bytes) = popped.pop_front() {
                    held -= bytes;
                    let tell = starved && held <= LIMIT / 2;
                    assert_eq!(queue.release(bytes), tell);
                    starved &= !tell;
                }
            }
            _ if bytes == 2 => {
                queue.close();
                closed = true;
            }
            _ => {}
        }
        assert_eq!((queue.bytes(), queue.is_empty(), queue.is_closed()), (held, waiting.is_empty(), closed));
    }
}
