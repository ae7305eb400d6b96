//! Cuts a link's received bytes into whole frames, in place where they lie whole (protocol, "Frames").
//!
//! ```text
//!   received   |...tail of A| B | C | D | head of E...|
//!               `--.--------'`----.----'`-----.------'
//!            with the carry:     run:       to the carry
//!              `assembled`   lent in place
//! ```
//! Only a frame that straddles two inputs is copied, and only if it carries a message: of an ACK just its msg_id is kept,
//! and every other type is counted past. So the carry is one message in progress, and none between messages.
//!
//! Invariants:
//! - `head_len <= 5`; the head is complete, and the rest of the state meaningful, exactly when TYPE was read.
//! - `carry.len() < carry_target` while a frame is being carried, `carry` owns no memory otherwise.
//! - Nothing is reserved because a peer announced it: beyond the bytes that have arrived, the carry holds at most as much
//!   again or [`CARRY_MIN`], and [`AHEAD_MIN`] while it is lent.
//! - The same frames in any chunking give the same messages and ACKs, in the same order.
//!
//! Called by `shard`, one per link, after the handshake. Never blocks and never looks into a payload.

use std::fmt;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::frame::{self, DATA_HEAD_BYTES, LENGTH_BYTES, MSG_ID_BYTES, MSG_ID_LENGTH, MsgId, kind};
use crate::copy;

/// Bytes that a carry may have free although fewer have arrived.
const CARRY_MIN: usize = 4 * 1024;
/// Free bytes that a lent carry has at least, if the frame still misses as many.
const AHEAD_MIN: usize = 64 * 1024;

/// The state between two inputs of one link.
#[derive(Debug)]
pub(crate) struct Deframer {
    /// Largest LENGTH that is let through, in bytes.
    max_frame_bytes: u32,
    /// LENGTH and TYPE of the frame in progress, as far as they have arrived.
    head: [u8; DATA_HEAD_BYTES],
    /// How much of `head` there is; 0 between frames.
    head_len: u8,
    /// What has arrived of the frame in progress, head included, if it is one to keep.
    carry: BytesMut,
    /// How many bytes of it `carry` must reach: a whole message, or an ACK up to its msg_id; 0 for other types.
    carry_target: usize,
    /// How many bytes of the frame come after those; they are dropped.
    skip: usize,
    /// The carry is with whoever receives into it.
    lent: bool,
}

/// What one input has brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// A whole DATA or DATA_REQ frame that began in an earlier input. It comes before those in `run`.
    pub(crate) assembled: Option<Bytes>,
    /// Where the whole frames lie in this input; walk them with [`frame::next_message`].
    pub(crate) run: Range<usize>,
    /// Messages in `assembled` and `run` together.
    pub(crate) messages: u32,
    /// Whether one of them wants an ACK.
    pub(crate) needs_ack: bool,
}

/// Why a connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum FrameError {
    /// The peer announced a frame beyond the limit.
    TooLong {
        /// Its LENGTH, in bytes.
        len: u32,
        /// The limit, in bytes.
        max: u32,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooLong { len, max } => {
                write!(
                    f,
                    "the peer announced a frame of {len} bytes, the limit is {max}: raise it, or send less at once"
                )
            }
        }
    }
}

impl std::error::Error for FrameError {}

impl Deframer {
    /// A deframer that refuses frames whose LENGTH exceeds `max_frame_bytes`, or, without a message id, that less
    /// its 16 bytes: the limit is one of payloads.
    pub(crate) fn new(max_frame_bytes: u32) -> Self {
        Self {
            max_frame_bytes,
            head: [0; DATA_HEAD_BYTES],
            head_len: 0,
            carry: BytesMut::new(),
            carry_target: 0,
            skip: 0,
            lent: false,
        }
    }

    /// Takes the next bytes of the stream. Every ACK goes to `on_ack`; the messages are in the answer. After an error
    /// the connection is to be closed; messages of the same input before the offending frame are not reported.
    ///
    /// Not to be called while the carry is lent.
    pub(crate) fn feed(&mut self, data: &[u8], mut on_ack: impl FnMut(MsgId)) -> Result<Scan, FrameError> {
        assert!(!self.lent, "the frame in progress is being received elsewhere");
        let mut scan = Scan::default();
        let mut at = 0;
        if self.head_len > 0 {
            at = self.continue_frame(data, &mut scan, &mut on_ack)?;
        }
        let start = at;
        // One frame per round, at least four bytes of `data` each.
        let partial = loop {
            let rest = &data[at..];
            let Some(head) = rest.first_chunk::<DATA_HEAD_BYTES>() else {
                if frame::length(rest) == Some(0) {
                    at += LENGTH_BYTES;
                }
                break &data[at..];
            };
            let announced = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            if announced > self.max_frame_bytes.saturating_sub(MSG_ID_BYTES as u32)
                && self.is_too_long(announced, head[4])
            {
                return Err(self.too_long(announced));
            }
            let length = announced as usize;
            if length > rest.len() - LENGTH_BYTES {
                break rest;
            }
            let frame_bytes = LENGTH_BYTES + length;
            at += frame_bytes;
            // Frames of one type and length often follow each other: where the next one lies is then known without waiting for its head.
            let mut alike = || {
                let next = data.get(at..at + frame_bytes).filter(|frame| frame.starts_with(head))?;
                at += frame_bytes;
                Some(next)
            };
            let has_id = length >= MSG_ID_LENGTH;
            match head[4] {
                kind::DATA if length > 0 => {
                    scan.messages += 1;
                    while alike().is_some() {
                        scan.messages += 1;
                    }
                }
                kind::DATA_REQ if has_id => {
                    scan.messages += 1;
                    scan.needs_ack = true;
                    while alike().is_some() {
                        scan.messages += 1;
                    }
                }
                kind::ACK if has_id => {
                    frame::msg_id_of(rest).into_iter().for_each(&mut on_ack);
                    while let Some(next) = alike() {
                        frame::msg_id_of(next).into_iter().for_each(&mut on_ack);
                    }
                }
                _ => {}
            }
        };
        scan.run = start..at;
        if !partial.is_empty() {
            let used = self.continue_frame(partial, &mut scan, &mut on_ack)?;
            debug_assert_eq!(used, partial.len(), "a frame that is not whole takes all that there is");
        }
        Ok(scan)
    }

    /// Bytes that the message in progress still misses, once its LENGTH and TYPE are known. `None` between messages,
    /// within frames of other types, and while the carry is lent.
    #[inline]
    pub(crate) fn missing(&self) -> Option<usize> {
        let carries_message = self.carry_target > 0 && self.head[4] != kind::ACK && !self.lent;
        carries_message.then(|| self.carry_target - self.carry.len())
    }

    /// Gives the message in progress away so that its next bytes are received behind it, straight into place. The spare
    /// capacity is never more than the message misses, and at least the smallest of that, the bytes that are there, and
    /// 64 KiB if those are fewer. To be given back with [`restore`](Self::restore) before the next [`feed`](Self::feed).
    ///
    /// Only while [`missing`](Self::missing) has an answer.
    pub(crate) fn lend(&mut self) -> BytesMut {
        let missing = self.missing();
        debug_assert!(missing.is_some(), "no message is in progress");
        let missing = missing.unwrap_or(0);
        let spare = missing.min(self.carry.len().max(AHEAD_MIN));
        self.carry.reserve(spare);
        if self.carry.capacity() - self.carry.len() > missing {
            // The allocation may be larger, what is lent must end where the message ends: the rest of the connection's
            // bytes belongs elsewhere. This splits the capacity off, no bytes.
            drop(self.carry.split_off(self.carry_target));
        }
        self.lent = true;
        std::mem::take(&mut self.carry)
    }

    /// Takes the lent carry back, with what was received behind it. Returns the whole frame when it is complete.
    pub(crate) fn restore(&mut self, buffer: BytesMut) -> Option<Bytes> {
        assert!(self.lent && buffer.len() <= self.carry_target, "not the buffer that was lent");
        self.lent = false;
        self.carry = buffer;
        (self.carry.len() == self.carry_target).then(|| self.end_frame().freeze())
    }

    /// Brings the frame in progress forward, from wherever it is, with the start of `data`. Returns how much it took:
    /// all of it, unless the frame has become whole.
    fn continue_frame(
        &mut self,
        data: &[u8],
        scan: &mut Scan,
        on_ack: &mut impl FnMut(MsgId),
    ) -> Result<usize, FrameError> {
        let mut at = 0;
        while usize::from(self.head_len) < DATA_HEAD_BYTES {
            let Some(&byte) = data.get(at) else { return Ok(at) };
            self.head[usize::from(self.head_len)] = byte;
            self.head_len += 1;
            at += 1;
            match usize::from(self.head_len) {
                LENGTH_BYTES if self.announced() > self.max_frame_bytes => return Err(self.too_long(self.announced())),
                LENGTH_BYTES if self.announced() == 0 => {
                    self.head_len = 0;
                    return Ok(at);
                }
                DATA_HEAD_BYTES if self.is_too_long(self.announced(), self.head[4]) => {
                    return Err(self.too_long(self.announced()));
                }
                DATA_HEAD_BYTES => self.judge_head(),
                _ => {}
            }
        }
        if self.carry.len() < self.carry_target {
            let take = (self.carry_target - self.carry.len()).min(data.len() - at);
            self.carry_more(&data[at..at + take]);
            at += take;
            if self.carry.len() < self.carry_target {
                return Ok(at);
            }
        }
        let take = self.skip.min(data.len() - at);
        self.skip -= take;
        at += take;
        if self.skip == 0 {
            let kind = self.head[4];
            let frame = self.end_frame();
            match kind {
                _ if frame.is_empty() => {}
                kind::ACK => frame::msg_id_of(&frame).into_iter().for_each(on_ack),
                _ => {
                    scan.messages += 1;
                    scan.needs_ack |= kind == kind::DATA_REQ;
                    scan.assembled = Some(frame.freeze());
                }
            }
        }
        Ok(at)
    }

    /// The head is complete: decides what of the frame is kept.
    fn judge_head(&mut self) {
        let length = self.announced() as usize;
        // LENGTH counts TYPE, which has arrived.
        let kept_length = match self.head[4] {
            kind::DATA => length,
            kind::DATA_REQ if length >= MSG_ID_LENGTH => length,
            kind::ACK if length >= MSG_ID_LENGTH => MSG_ID_LENGTH,
            _ => 0,
        };
        if kept_length == 0 {
            self.skip = length - 1;
            return;
        }
        self.carry_target = LENGTH_BYTES.saturating_add(kept_length);
        self.skip = length - kept_length;
        let head = self.head;
        self.carry_more(&head);
    }

    fn carry_more(&mut self, bytes: &[u8]) {
        let wanted = self.carry.len() + bytes.len();
        if wanted > self.carry.capacity() {
            let capacity = self.carry_target.min(CARRY_MIN.max(2 * wanted));
            if self.carry.capacity() == 0 {
                self.carry = BytesMut::with_capacity(capacity);
            } else {
                self.carry.reserve(capacity - self.carry.len());
            }
        }
        copy::extend(&mut self.carry, bytes);
    }

    /// Forgets the frame in progress and returns what was kept of it.
    fn end_frame(&mut self) -> BytesMut {
        self.head_len = 0;
        self.carry_target = 0;
        self.skip = 0;
        std::mem::take(&mut self.carry)
    }

    /// The limit is that of the longest head: a payload without a message id must not be longer for it.
    #[cold]
    fn is_too_long(&self, announced: u32, kind: u8) -> bool {
        let id_bytes = if kind == kind::DATA { MSG_ID_BYTES as u32 } else { 0 };
        announced > self.max_frame_bytes.saturating_sub(id_bytes)
    }

    fn announced(&self) -> u32 {
        let [a, b, c, d, _] = self.head;
        u32::from_be_bytes([a, b, c, d])
    }

    #[cold]
    fn too_long(&self, len: u32) -> FrameError {
        FrameError::TooLong { len, max: self.max_frame_bytes }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the application and the delivery layer must see, in order.
    #[derive(Debug, PartialEq, Clone)]
    enum Seen {
        Message(Vec<u8>, Option<MsgId>),
        Ack(MsgId),
    }

    /// An independent reader of a whole stream, as simple as the protocol's text.
    fn naive(stream: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut rest = stream.to_vec();
        while rest.len() >= 4 {
            let length = usize::from(rest[0]) << 24
                | usize::from(rest[1]) << 16
                | usize::from(rest[2]) << 8
                | usize::from(rest[3]);
            if rest.len() < 4 + length {
                break;
            }
            let after = rest.split_off(4 + length);
            let envelope = &rest[4..];
            match envelope.first() {
                Some(3) => seen.push(Seen::Message(envelope[1..].to_vec(), None)),
                Some(4) if length >= 17 => {
                    let id = MsgId(envelope[1..17].try_into().unwrap());
                    seen.push(Seen::Message(envelope[17..].to_vec(), Some(id)));
                }
                Some(5) if length >= 17 => seen.push(Seen::Ack(MsgId(envelope[1..17].try_into().unwrap()))),
                _ => {}
            }
            rest = after;
        }
        seen
    }

    fn frame_of(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 1).to_be_bytes();
        [&length[..], &[kind], body].concat()
    }

    fn walk(run: &[u8], messages: &mut Vec<Seen>) {
        let mut at = 0;
        while let Some(found) = frame::next_message(run, &mut at) {
            messages.push(Seen::Message(run[found.payload].to_vec(), found.msg_id));
        }
        assert_eq!(at, run.len(), "a run consists of whole frames");
    }

    /// Feeds `stream` in pieces of the given lengths, again and again; while a message misses at least `lend_from`
    /// bytes, its pieces are received into the lent carry. Returns messages and ACKs, each in order.
    fn chunked(stream: &[u8], pieces: &[usize], lend_from: usize) -> (Vec<Seen>, Vec<Seen>) {
        let (mut messages, mut acks) = (Vec::new(), Vec::new());
        let mut deframer = Deframer::new(u32::MAX);
        let mut rest = stream;
        for &piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let piece = piece.min(rest.len());
            let before = messages.len();
            if let Some(missing) = deframer.missing().filter(|&missing| missing >= lend_from) {
                let mut buffer = deframer.lend();
                assert_eq!(deframer.missing(), None);
                let spare = buffer.capacity() - buffer.len();
                assert!(spare <= missing && spare >= missing.min(buffer.len().max(AHEAD_MIN)));
                let (now, later) = rest.split_at(piece.min(spare));
                buffer.extend_from_slice(now);
                rest = later;
                let whole = deframer.restore(buffer);
                assert_eq!(whole.is_some(), now.len() == missing);
                whole.into_iter().for_each(|frame| walk(&frame, &mut messages));
            } else {
                let (now, later) = rest.split_at(piece);
                rest = later;
                let scan = deframer.feed(now, |id| acks.push(Seen::Ack(id))).unwrap();
                scan.assembled.iter().for_each(|frame| walk(frame, &mut messages));
                walk(&now[scan.run], &mut messages);
                let new = &messages[before..];
                assert_eq!(scan.messages as usize, new.len());
                assert_eq!(scan.needs_ack, new.iter().any(|seen| matches!(seen, Seen::Message(_, Some(_)))));
                assert!(deframer.carry.capacity() <= (4 * deframer.carry.len()).max(CARRY_MIN));
            }
            if deframer.head_len == 0 {
                assert_eq!(
                    (deframer.carry.capacity(), deframer.missing()),
                    (0, None),
                    "an idle deframer holds nothing"
                );
            }
        }
        (messages, acks)
    }

    fn check(stream: &[u8], pieces: &[usize], lend_from: usize) {
        let (acks, messages): (Vec<_>, Vec<_>) =
            naive(stream).into_iter().partition(|seen| matches!(seen, Seen::Ack(_)));
        assert_eq!(chunked(stream, pieces, lend_from), (messages, acks));
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let body = prop_oneof![
            8 => prop::collection::vec(any::<u8>(), 0..40),
            1 => (0usize..20_000).prop_map(|len| vec![3; len]),
            1 => (100_000usize..300_000).prop_map(|len| (0..len).map(|at| at as u8).collect()),
        ];
        let kind =
            prop_oneof![6 => Just(3u8), 4 => Just(4), 2 => Just(5), 1 => Just(1), 1 => Just(2), 1 => any::<u8>()];
        prop_oneof![
            10 => (kind, body).prop_map(|(kind, body)| frame_of(kind, &body)),
            1 => Just(vec![0, 0, 0, 0]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_chunking_gives_what_a_naive_reader_sees(
            frames in prop::collection::vec(any_frame(), 0..20),
            cut in 0usize..30,
            pieces in prop::collection::vec(prop_oneof![4 => 1usize..30, 2 => 1usize..2_000, 1 => 1usize..200_000], 1..20),
            lend_from in prop_oneof![Just(1), Just(1_000), Just(usize::MAX)],
        ) {
            let mut stream = frames.concat();
            stream.truncate(stream.len().saturating_sub(cut));
            // A stream of large frames in tiny pieces takes long and shows nothing more.
            let average = pieces.iter().sum::<usize>() / pieces.len();
            let scale = stream.len() / average / 20_000 + 1;
            let pieces: Vec<usize> = pieces.iter().map(|piece| piece * scale).collect();
            check(&stream, &pieces, lend_from);
        }

        #[test]
        fn any_bytes_are_read_without_panic(
            inputs in prop::collection::vec(prop::collection::vec(prop_oneof![Just(0u8), 0u8..20, any::<u8>()], 0..100), 0..20),
            max in prop_oneof![Just(0u32), 0u32..100, any::<u32>()],
        ) {
            let mut deframer = Deframer::new(max);
            for input in inputs {
                match deframer.feed(&input, |_| ()) {
                    Ok(scan) => assert!(scan.run.end <= input.len()),
                    Err(FrameError::TooLong { len, max: limit }) => {
                        assert!(limit == max && len > max.saturating_sub(16));
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn every_split_of_every_kind() {
        let stream = [
            frame_of(3, b"first"),
            frame_of(2, b""),
            frame_of(4, &[8; 20]),
            vec![0, 0, 0, 0],
            frame_of(5, &[9; 16]),
            frame_of(5, &[10; 30]),
            frame_of(5, &[11; 15]),
            frame_of(4, &[12; 15]),
            frame_of(4, &[13; 16]),
            frame_of(1, &[1; 17]),
            frame_of(0xE0, &[3; 40]),
            frame_of(3, b""),
            vec![0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(naive(&stream).len(), 6);
        for lend_from in [1, usize::MAX] {
            for first in 1..=stream.len() {
                for second in [1, 2, 3, 4, 5, 7, 21, stream.len()] {
                    check(&stream, &[first, second], lend_from);
                }
            }
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused_as_soon_as_its_length_is_known() {
        let error = Err(FrameError::TooLong { len: 101, max: 100 });
        let stream = [&frame_of(3, b"good")[..], &[0, 0, 0, 101]].concat();
        assert_eq!(Deframer::new(100).feed(&[&stream[..], &[3]].concat(), |_| ()), error);
        for cut in 0..stream.len() {
            let mut deframer = Deframer::new(100);
            assert!(deframer.feed(&stream[..cut], |_| ()).is_ok());
            assert_eq!(deframer.feed(&stream[cut..], |_| ()), error, "cut at {cut}");
        }
        let full = frame_of(3, &[0; 84]);
        let error = Err(FrameError::TooLong { len: 85, max: 100 });
        assert_eq!(Deframer::new(100).feed(&full, |_| ()), error, "without an id 16 bytes less");
        assert_eq!(Deframer::new(100).feed(&full[..5], |_| ()), error);
        let full = frame_of(3, &[0; 83]);
        assert_eq!(Deframer::new(100).feed(&full, |_| ()).unwrap().messages, 1);
    }

    #[test]
    fn nothing_is_reserved_on_a_peers_word() {
        let mut deframer = Deframer::new(u32::MAX);
        deframer.feed(&[0x7f, 0xff, 0xff, 0xff, 3], |_| ()).unwrap();
        assert_eq!(deframer.missing(), Some(0x7fff_fffe));
        assert!(deframer.carry.capacity() <= CARRY_MIN);
        let buffer = deframer.lend();
        assert!(buffer.capacity() <= 2 * AHEAD_MIN);
        assert_eq!(deframer.restore(buffer), None);
        // A frame that nobody will look at is not kept at all.
        let mut deframer = Deframer::new(u32::MAX);
        deframer.feed(&[0x7f, 0xff, 0xff, 0xff, 0xE0, 1, 2, 3], |_| ()).unwrap();
        assert_eq!((deframer.carry.capacity(), deframer.missing()), (0, None));
        // Of an ACK that goes on and on, only the msg_id is.
        let mut deframer = Deframer::new(u32::MAX);
        deframer.feed(&[&[0x7f, 0xff, 0xff, 0xff, 5][..], &[0; 100_000]].concat(), |_| ()).unwrap();
        assert!(deframer.carry.capacity() <= frame::ACK_BYTES);
    }

    #[test]
    fn an_empty_envelope_takes_no_type_from_the_next_frame() {
        // The byte after LENGTH = 0 is the first of the next LENGTH, here 3, which is no TYPE.
        let scan = Deframer::new(u32::MAX).feed(&[0, 0, 0, 0, 3, 0, 0, 0, 3, 1], |_| ()).unwrap();
        assert_eq!((scan.run, scan.messages), (0..4, 0));
    }

    #[test]
    fn a_large_frame_doubles_its_buffer() {
        let body: Vec<u8> = (0..1_000_000u32).map(|at| at as u8).collect();
        let stream = frame_of(3, &body);
        let mut deframer = Deframer::new(u32::MAX);
        deframer.feed(&stream[..100], |_| ()).unwrap();
        let mut at = 100;
        for rounds in 1.. {
            let mut buffer = deframer.lend();
            let spare = buffer.capacity() - buffer.len();
            buffer.extend_from_slice(&stream[at..at + spare]);
            at += spare;
            if let Some(frame) = deframer.restore(buffer) {
                assert_eq!(frame, stream);
                assert!(rounds <= 6, "{rounds} receives");
                break;
            }
        }
    }
}
