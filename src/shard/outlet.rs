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
//!
//! A message with a key is an ordinary message in the log; its value goes into the table of last values as well.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use crate::log::{Appender, Cursor, Frame, Full, KeysFull, Latest, LatestOptions};
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
    /// From the first message with a key on: the last values. Locked while this one is.
    values: Option<Arc<Mutex<Latest>>>,
}

/// What could not be appended now.
pub(crate) type Refused = (Full, Bytes);

/// Why a message with a key was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No room in the log now.
    Full,
    /// No room for the key, or for its value.
    Keys,
}

impl From<Full> for Refusal {
    fn from(Full: Full) -> Refusal {
        Refusal::Full
    }
}

impl From<KeysFull> for Refusal {
    fn from(KeysFull: KeysFull) -> Refusal {
        Refusal::Keys
    }
}

/// The last values of a socket's keys, for its producers and its shards. There is no table before there is a key.
///
/// It is locked by producers around each append, after the outlet, so that whoever has it locked knows that the table covers all of
/// the log; and by shards while they take values out of it. Whoever holds it may lock the log's list, not the other way round.
pub(crate) struct LastValues {
    pub(crate) options: LatestOptions,
    table: OnceLock<Arc<Mutex<Latest>>>,
}

impl LastValues {
    pub(crate) fn new(options: LatestOptions) -> LastValues {
        LastValues { options, table: OnceLock::new() }
    }

    /// The table, if there is one.
    pub(crate) fn lock(&self) -> Option<MutexGuard<'_, Latest>> {
        self.table.get().map(|table| locked(table))
    }

    /// Shows the table while it is locked; where there is none, one that says that nothing has a key.
    pub(crate) fn read<R>(&self, read: impl FnOnce(&Latest) -> R) -> R {
        match self.lock() {
            Some(table) => read(&table),
            None => read(&Latest::new(self.options, Cursor::END)),
        }
    }
}

fn locked(table: &Mutex<Latest>) -> MutexGuard<'_, Latest> {
    // Each change to it is whole before the next begins.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outlet {
    pub(crate) fn new(log: Appender, mail: Vec<Appender>, ids: Option<MsgIds>) -> Outlet {
        Outlet { log, mail, ids, values: None }
    }

    /// Appends a message for whoever the send mode says.
    // Inlined for the usual case; the others are a call.
    #[inline(always)]
    pub(crate) fn put(&mut self, payload: &[u8]) -> Result<(), Full> {
        if self.ids.is_none() && self.values.is_none() {
            return self.log.append(&protocol::data_head(payload.len()), payload);
        }
        self.put_noted(payload)
    }

    #[inline(never)]
    fn put_noted(&mut self, payload: &[u8]) -> Result<(), Full> {
        match &mut self.ids {
            None => self.append_noted(|log| log.append(&protocol::data_head(payload.len()), payload)),
            Some(ids) => self.log.append(&protocol::data_req_head(ids.next(), payload.len()), payload),
        }
    }

    /// As [`put`](Self::put), with a payload of `bytes` bytes that `fill` writes in its place; `fill` back if it is to be made
    /// elsewhere.
    #[inline(always)]
    pub(crate) fn put_with<F: FnOnce(&mut [u8])>(&mut self, bytes: usize, fill: F) -> Result<(), F> {
        if self.ids.is_none() && self.values.is_none() {
            return self.log.append_with(|| protocol::data_head(bytes), bytes, fill);
        }
        self.put_noted_with(bytes, fill)
    }

    #[inline(never)]
    fn put_noted_with<F: FnOnce(&mut [u8])>(&mut self, bytes: usize, fill: F) -> Result<(), F> {
        match &mut self.ids {
            None => self.append_noted(|log| log.append_with(|| protocol::data_head(bytes), bytes, fill)),
            Some(ids) => self.log.append_with(|| protocol::data_req_head(ids.next(), bytes), bytes, fill),
        }
    }

    /// As [`put`](Self::put); large payloads are kept by reference.
    pub(crate) fn put_bytes(&mut self, payload: Bytes) -> Result<(), Refused> {
        match &mut self.ids {
            None => self.append_noted(|log| log.append_bytes(&protocol::data_head(payload.len()), payload)),
            Some(ids) => self.log.append_bytes(&protocol::data_req_head(ids.next(), payload.len()), payload),
        }
    }

    /// Appends a message without a key, and says so to the table of last values if there is one.
    #[inline]
    fn append_noted<E>(&mut self, append: impl FnOnce(&mut Appender) -> Result<(), E>) -> Result<(), E> {
        let Some(values) = &self.values else { return append(&mut self.log) };
        let mut table = locked(values);
        append(&mut self.log)?;
        table.pass(self.log.end());
        if table.is_long() {
            table.trim(self.log.oldest());
        }
        Ok(())
    }

    /// Appends a message that is the newest value of `key`.
    pub(crate) fn put_keyed(&mut self, values: &LastValues, key: &[u8], payload: &[u8]) -> Result<(), Refusal> {
        let head = protocol::data_head(payload.len());
        let mut table = locked(Self::table(&mut self.values, &self.log, values));
        table.check(key, head.len() + payload.len())?;
        self.log.append(&head, payload)?;
        table.update(key, &head, payload, self.log.end());
        Ok(())
    }

    /// As [`put_keyed`](Self::put_keyed); large payloads are kept by reference.
    pub(crate) fn put_bytes_keyed(
        &mut self,
        values: &LastValues,
        key: &[u8],
        payload: Bytes,
    ) -> Result<(), (Refusal, Bytes)> {
        let head = protocol::data_head(payload.len());
        let mut table = locked(Self::table(&mut self.values, &self.log, values));
        if let Err(full) = table.check(key, head.len() + payload.len()) {
            return Err((full.into(), payload));
        }
        self.log.append_bytes(&head, payload.clone()).map_err(|(full, payload)| (full.into(), payload))?;
        table.update_shared(key, &head, payload, self.log.end());
        Ok(())
    }

    /// The table, which the first key makes.
    fn table<'a>(
        own: &'a mut Option<Arc<Mutex<Latest>>>,
        log: &Appender,
        values: &LastValues,
    ) -> &'a Arc<Mutex<Latest>> {
        own.get_or_insert_with(|| {
            let new = || Arc::new(Mutex::new(Latest::new(values.options, log.end())));
            values.table.get_or_init(new).clone()
        })
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
