//! The bytes of each frame, and the walk over a run of whole frames (protocol, "Frames"; drawing in the parent module).
//!
//! Writers hand a head to the log and the payload after it. The walk is what `recv` does in place, on received memory:
//! one big-endian load, one byte, two compares per message. All readers here are total: they accept any bytes, never
//! panic and never look outside of what they were given. Called by `socket`, `shard` and [`super::deframe`].

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;

use super::identity::Identity;

/// Bytes of LENGTH.
pub(crate) const LENGTH_BYTES: usize = 4;
/// Bytes before the payload of a DATA frame: LENGTH and TYPE.
pub(crate) const DATA_HEAD_BYTES: usize = LENGTH_BYTES + 1;
/// Bytes of a msg_id.
pub(crate) const MSG_ID_BYTES: usize = 16;
/// Bytes before the payload of a DATA_REQ frame: LENGTH, TYPE and msg_id.
pub(crate) const DATA_REQ_HEAD_BYTES: usize = DATA_HEAD_BYTES + MSG_ID_BYTES;
/// Bytes of a whole ACK frame.
pub(crate) const ACK_BYTES: usize = DATA_REQ_HEAD_BYTES;
/// Bytes of a whole HELLO frame.
pub(crate) const HELLO_BYTES: usize = DATA_HEAD_BYTES + 1 + 16;
/// The version that HELLO carries.
pub(crate) const VERSION: u8 = 1;
/// LENGTH of the shortest DATA_REQ and of an ACK: TYPE and msg_id.
pub(crate) const MSG_ID_LENGTH: usize = 1 + MSG_ID_BYTES;

/// The values of TYPE.
pub(crate) mod kind {
    /// First frame of each end: version and identity.
    pub(crate) const HELLO: u8 = 1;
    /// Says only that the sender lives.
    pub(crate) const HEARTBEAT: u8 = 2;
    /// A payload, delivered at most once.
    pub(crate) const DATA: u8 = 3;
    /// A payload with a msg_id that is to be acknowledged.
    pub(crate) const DATA_REQ: u8 = 4;
    /// The acknowledgement of a msg_id.
    pub(crate) const ACK: u8 = 5;
}

/// The id under which a message is acknowledged, resent and recognised when it comes twice.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MsgId(pub(crate) [u8; MSG_ID_BYTES]);

impl Hash for MsgId {
    // As derived, but without the length that arrays put first: it is always the same.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl fmt::Debug for MsgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// One message found in received bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Where its payload lies in the bytes that were walked; may be empty.
    pub(crate) payload: Range<usize>,
    /// Present when the sender wants an ACK.
    pub(crate) msg_id: Option<MsgId>,
}

/// A whole HEARTBEAT frame.
pub(crate) const HEARTBEAT: [u8; DATA_HEAD_BYTES] = [0, 0, 0, 1, kind::HEARTBEAT];

/// What precedes a payload of `payload_len` bytes (less than `u32::MAX`) in a DATA frame.
#[inline]
pub(crate) fn data_head(payload_len: usize) -> [u8; DATA_HEAD_BYTES] {
    debug_assert!(payload_len < u32::MAX as usize);
    let [a, b, c, d] = (payload_len as u32 + 1).to_be_bytes();
    [a, b, c, d, kind::DATA]
}

/// What precedes a payload of `payload_len` bytes (at most `u32::MAX - 17`) in a DATA_REQ frame.
#[inline]
pub(crate) fn data_req_head(msg_id: MsgId, payload_len: usize) -> [u8; DATA_REQ_HEAD_BYTES] {
    debug_assert!(payload_len <= u32::MAX as usize - MSG_ID_LENGTH);
    with_msg_id(payload_len as u32 + MSG_ID_LENGTH as u32, kind::DATA_REQ, msg_id)
}

/// A whole ACK frame.
#[inline]
pub(crate) fn ack(msg_id: MsgId) -> [u8; ACK_BYTES] {
    with_msg_id(MSG_ID_LENGTH as u32, kind::ACK, msg_id)
}

/// A whole HELLO frame.
pub(crate) fn hello(identity: &Identity) -> [u8; HELLO_BYTES] {
    let mut frame = [0; HELLO_BYTES];
    frame[..LENGTH_BYTES].copy_from_slice(&((HELLO_BYTES - LENGTH_BYTES) as u32).to_be_bytes());
    frame[4] = kind::HELLO;
    frame[5] = VERSION;
    frame[6..].copy_from_slice(identity.as_bytes());
    frame
}

fn with_msg_id(length: u32, kind: u8, msg_id: MsgId) -> [u8; DATA_REQ_HEAD_BYTES] {
    let mut head = [0; DATA_REQ_HEAD_BYTES];
    head[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    head[LENGTH_BYTES] = kind;
    head[DATA_HEAD_BYTES..].copy_from_slice(&msg_id.0);
    head
}

/// LENGTH, if `bytes` start with all of it.
#[inline]
pub(crate) fn length(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|length| u32::from_be_bytes(*length))
}

/// Bytes of the whole frame that `bytes` start with, LENGTH included; `None` while LENGTH is incomplete.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn frame_len(bytes: &[u8]) -> Option<usize> {
    // Saturates where usize has 32 bits: such a frame fits in no memory, and no limit lets it through.
    length(bytes).map(|length| (length as usize).saturating_add(LENGTH_BYTES))
}

/// The msg_id and the place of the payload in `frame`, which is one whole frame; `None` when it carries no payload: any
/// other type, or a body that is too short.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn payload_of(frame: &[u8]) -> Option<(Option<MsgId>, Range<usize>)> {
    let mut at = 0;
    let message = next_message(frame.get(..frame_len(frame)?)?, &mut at)?;
    Some((message.msg_id, message.payload))
}

/// The next message at or after `*at` in `run`, a run of whole frames; moves `*at` behind it. Skips every frame that
/// carries no payload. At the end of the run it returns `None` and leaves `*at` there; a run that ends within a frame
/// ends, for this walk, before that frame.
#[inline]
pub(crate) fn next_message(run: &[u8], at: &mut usize) -> Option<Message> {
    loop {
        let start = *at;
        let rest = run.get(start..)?;
        let head: &[u8; DATA_HEAD_BYTES] = match rest.first_chunk() {
            Some(head) => head,
            None => return end_of_run(run, at),
        };
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        // No overflow: `rest` holds at least a head.
        if length > rest.len() - LENGTH_BYTES {
            return None;
        }
        let end = start + LENGTH_BYTES + length;
        *at = end;
        if head[4] == kind::DATA && length != 0 {
            return Some(Message { payload: start + DATA_HEAD_BYTES..end, msg_id: None });
        }
        if head[4] == kind::DATA_REQ && length >= MSG_ID_LENGTH {
            let msg_id = msg_id_of(rest)?;
            return Some(Message { payload: start + DATA_REQ_HEAD_BYTES..end, msg_id: Some(msg_id) });
        }
    }
}

/// The msg_id of a frame that starts `bytes`, if that much is there.
#[inline]
pub(crate) fn msg_id_of(bytes: &[u8]) -> Option<MsgId> {
    bytes.get(DATA_HEAD_BYTES..)?.first_chunk().map(|id| MsgId(*id))
}

/// Fewer than five bytes are left: nothing, an empty envelope, or a part of a frame.
#[cold]
fn end_of_run(run: &[u8], at: &mut usize) -> Option<Message> {
    if run.get(*at..).and_then(length) == Some(0) {
        *at += LENGTH_BYTES;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MsgId = MsgId([7; 16]);

    fn data_req(payload: &[u8]) -> Vec<u8> {
        [&data_req_head(ID, payload.len())[..], payload].concat()
    }

    fn data(payload: &[u8]) -> Vec<u8> {
        [&data_head(payload.len())[..], payload].concat()
    }

    #[test]
    fn frames_have_the_bytes_of_the_protocol() {
        assert_eq!(HEARTBEAT, [0, 0, 0, 1, 2]);
        assert_eq!(data_head(0), [0, 0, 0, 1, 3]);
        assert_eq!(data_head(0x0102_0304), [1, 2, 3, 5, 3]);
        assert_eq!(data_head(u32::MAX as usize - 1), [255, 255, 255, 255, 3]);
        assert_eq!(data_req_head(ID, 1)[..6], [0, 0, 0, 18, 4, 7]);
        assert_eq!(ack(ID)[..6], [0, 0, 0, 17, 5, 7]);
        let hello = hello(&Identity::from_bytes([9; 16]));
        assert_eq!(hello[..7], [0, 0, 0, 18, 1, 1, 9]);
        assert_eq!(frame_len(&hello), Some(HELLO_BYTES));
    }

    #[test]
    fn payload_of_one_frame() {
        assert_eq!(payload_of(&data(b"abc")), Some((None, 5..8)));
        assert_eq!(payload_of(&data(b"")), Some((None, 5..5)));
        assert_eq!(payload_of(&data_req(b"abc")), Some((Some(ID), 21..24)));
        assert_eq!(payload_of(&data_req(b"")), Some((Some(ID), 21..21)));
        assert_eq!(payload_of(&HEARTBEAT), None);
        assert_eq!(payload_of(&ack(ID)), None);
        assert_eq!(payload_of(&[0, 0, 0, 0]), None);
        assert_eq!(payload_of(&[0, 0, 0, 2, 4, 1]), None);
        for cut in 0..8 {
            assert_eq!(payload_of(&data(b"abc")[..cut]), None);
        }
    }

    #[test]
    fn the_walk_skips_what_carries_no_payload() {
        let unknown = [0, 0, 0, 3, 0xE0, 1, 2];
        let short = [0, 0, 0, 16, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let run = [
            &HEARTBEAT[..],
            &[0, 0, 0, 0],
            &data(b"one"),
            &unknown,
            &data_req(b"two"),
            &hello(&Identity::from_bytes([0; 16])),
            &short,
            &data(b""),
            &ack(ID),
            &[0, 0, 0, 0],
        ]
        .concat();
        let mut at = 0;
        let mut found = Vec::new();
        while let Some(message) = next_message(&run, &mut at) {
            found.push((run[message.payload].to_vec(), message.msg_id));
        }
        assert_eq!(found, [(b"one".to_vec(), None), (b"two".to_vec(), Some(ID)), (b"".to_vec(), None)]);
        assert_eq!(at, run.len());
    }

    #[test]
    fn an_empty_envelope_takes_nothing_from_the_next_frame() {
        // The byte after LENGTH = 0 is the first of the next LENGTH, here 3, which is no TYPE.
        let run = [&[0u8, 0, 0, 0][..], &[3, 0, 0, 0]].concat();
        let mut at = 0;
        assert_eq!(next_message(&run, &mut at), None);
        assert_eq!(at, 4);
    }

    #[test]
    fn a_cut_run_ends_before_the_cut_frame() {
        let run = [data(b"abc"), data_req(b"defg")].concat();
        for cut in 0..run.len() {
            let mut at = 0;
            let mut count = 0;
            while next_message(&run[..cut], &mut at).is_some() {
                count += 1;
            }
            assert_eq!((count, at), if cut < 8 { (0, 0) } else { (1, 8) }, "cut at {cut}");
        }
    }
}
