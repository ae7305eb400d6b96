//! The producers' end of a socket: what is sent to whom becomes finished frames in logs, once, under a lock that no shard takes.
//!
//! Messages for whoever the send mode says go into the socket's log. A message for one peer goes into the **mail** of the shard where
//! that peer's link lives, as a record that says to whom and after which message of the socket's log it was sent:
//!
//! ```text
//!   | LENGTH (4) | identity (16) | position (8) | messages (8) | frame, as it goes on the wire |
//! ```
//!
//! so that links that are not addressed have no work with it, and the one that is keeps the order of the `send` calls.

use bytes::Bytes;

use crate::log::{Appender, Cursor, Frame, Full};
use crate::protocol::{self, Identity, MsgIds};

/// Bytes of a mail record before its frame.
const ADDRESS_BYTES: usize = 36;
const DATA_HEAD: usize = 5;
const DATA_REQ_HEAD: usize = 21;

/// See the module's documentation.
pub(crate) struct Outlet {
    log: Appender,
    /// One per shard.
    mail: Vec<Appender>,
    /// Under AT_LEAST_ONCE: where message ids come from.
    ids: Option<MsgIds>,
}

/// What could not be appended now.
pub(crate) type Refused = (Full, Bytes);

impl Outlet {
    pub(crate) fn new(log: Appender, mail: Vec<Appender>, ids: Option<MsgIds>) -> Outlet {
        Outlet { log, mail, ids }
    }

    /// Appends a message for whoever the send mode says.
    #[inline]
    pub(crate) fn put(&mut self, payload: &[u8]) -> Result<(), Full> {
        match &mut self.ids {
            None => self.log.append(&protocol::data_head(payload.len()), payload),
            Some(ids) => self.log.append(&protocol::data_req_head(ids.next(), payload.len()), payload),
        }
    }

    /// As [`put`](Self::put); large payloads are kept by reference.
    pub(crate) fn put_bytes(&mut self, payload: Bytes) -> Result<(), Refused> {
        match &mut self.ids {
            None => self.log.append_bytes(&protocol::data_head(payload.len()), payload),
            Some(ids) => self.log.append_bytes(&protocol::data_req_head(ids.next(), payload.len()), payload),
        }
    }

    /// Appends a message for one peer, to the mail of `shard`.
    pub(crate) fn put_to(&mut self, shard: usize, identity: &Identity, payload: &[u8]) -> Result<(), Full> {
        let after = (self.log.position(), self.log.messages());
        match &mut self.ids {
            None => {
                let head: [u8; ADDRESS_BYTES + DATA_HEAD] =
                    record_head(identity, after, &protocol::data_head(payload.len()), payload.len());
                self.mail[shard].append(&head, payload)
            }
            Some(ids) => {
                let frame_head = protocol::data_req_head(ids.next(), payload.len());
                let head: [u8; ADDRESS_BYTES + DATA_REQ_HEAD] =
                    record_head(identity, after, &frame_head, payload.len());
                self.mail[shard].append(&head, payload)
            }
        }
    }

    /// As [`put_to`](Self::put_to); large payloads are kept by reference.
    pub(crate) fn put_bytes_to(&mut self, shard: usize, identity: &Identity, payload: Bytes) -> Result<(), Refused> {
        let after = (self.log.position(), self.log.messages());
        match &mut self.ids {
            None => {
                let head: [u8; ADDRESS_BYTES + DATA_HEAD] =
                    record_head(identity, after, &protocol::data_head(payload.len()), payload.len());
                self.mail[shard].append_bytes(&head, payload)
            }
            Some(ids) => {
                let frame_head = protocol::data_req_head(ids.next(), payload.len());
                let head: [u8; ADDRESS_BYTES + DATA_REQ_HEAD] =
                    record_head(identity, after, &frame_head, payload.len());
                self.mail[shard].append_bytes(&head, payload)
            }
        }
    }
}

/// Everything of a record before its payload.
fn record_head<const H: usize>(identity: &Identity, after: (u64, u64), frame_head: &[u8], payload: usize) -> [u8; H] {
    let mut head = [0; H];
    let length = (H - 4 + payload) as u32;
    head[..4].copy_from_slice(&length.to_be_bytes());
    head[4..20].copy_from_slice(identity.as_bytes());
    head[20..28].copy_from_slice(&after.0.to_be_bytes());
    head[28..36].copy_from_slice(&after.1.to_be_bytes());
    head[36..].copy_from_slice(frame_head);
    head
}

/// A mail record, taken apart.
pub(super) struct Letter<'a> {
    pub(super) identity: Identity,
    /// How far the socket's log was when it was sent.
    pub(super) after: Cursor,
    pub(super) frame: Frame<'a>,
}

impl<'a> Letter<'a> {
    /// `None` only if the log gave something that no [`Outlet`] has written.
    pub(super) fn open(record: Frame<'a>) -> Option<Letter<'a>> {
        let (head, frame) = match record {
            Frame::Whole(record) => {
                let (head, frame) = record.split_at_checked(ADDRESS_BYTES)?;
                (head, Frame::Whole(frame))
            }
            Frame::Split { head, payload } => {
                let (address, head) = head.split_at_checked(ADDRESS_BYTES)?;
                (address, Frame::Split { head, payload })
            }
        };
        let number = |at: usize| head.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        Some(Letter {
            identity: Identity::from_bytes(head.get(4..20)?.try_into().ok()?),
            after: Cursor::boundary(number(20)?, number(28)?),
            frame,
        })
    }
}

/// Bytes of a frame on the wire.
pub(super) fn frame_len(frame: &Frame<'_>) -> usize {
    frame.len()
}
