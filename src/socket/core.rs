//! What all three kinds of socket handle do alike: put a message into the log, take the next one out of the receive queue, say what
//! ended. The kinds differ in who waits and how.

use super::error::{RecvError, SendError, TryRecvError, TrySendError};
use super::payload::{Batch, Payload};
use crate::log::{Appender, Full};
use crate::protocol;
use crate::shard::{Message, Phase, SocketShared, Walker};

/// Appends a message to the socket's log, or gives it back.
#[inline]
pub(super) fn offer<'a>(
    shared: &SocketShared,
    appender: &mut Appender,
    payload: Payload<'a>,
) -> Result<(), TrySendError<'a>> {
    let len = payload.len();
    if len > shared.config.message_bytes_max {
        let bytes_max = shared.config.message_bytes_max;
        return Err(TrySendError::Never(SendError::TooLong { bytes: len, bytes_max }));
    }
    let head = protocol::data_head(len);
    match payload {
        Payload::Borrowed(bytes) => {
            appender.append(&head, bytes).map_err(|Full| TrySendError::Full(Payload::Borrowed(bytes)))
        }
        Payload::Owned(bytes) => {
            appender.append_bytes(&head, bytes).map_err(|(Full, bytes)| TrySendError::Full(Payload::Owned(bytes)))
        }
    }
}

/// Whether the socket still takes messages.
#[inline]
pub(super) fn check_open(shared: &SocketShared) -> Result<(), SendError> {
    match shared.phase() {
        Phase::Open => Ok(()),
        Phase::EngineStopped => Err(SendError::EngineStopped),
        _ => Err(SendError::Closed),
    }
}

/// The next message, if one is there.
#[inline]
pub(super) fn try_next(shared: &SocketShared, walker: &mut Walker) -> Result<Message, TryRecvError> {
    match walker.next(&shared.inbox, || shared.resume_reading()) {
        Some(message) => Ok(message),
        None => Err(none_left(shared)),
    }
}

/// The messages that arrived together, if some are there.
#[inline]
pub(super) fn try_next_batch(shared: &SocketShared, walker: &mut Walker) -> Result<Batch, TryRecvError> {
    match walker.next_run(&shared.inbox, || shared.resume_reading()) {
        Some((run, from)) => Ok(Batch::new(run.identity, run.frames, from)),
        None => Err(none_left(shared)),
    }
}

#[cold]
fn none_left(shared: &SocketShared) -> TryRecvError {
    // The phase first: what arrived before it changed is in the queue.
    match shared.phase() {
        Phase::Open => TryRecvError::Empty,
        _ if !shared.inbox.is_empty() => TryRecvError::Empty,
        Phase::EngineStopped => TryRecvError::Never(RecvError::EngineStopped),
        _ => TryRecvError::Never(RecvError::Closed),
    }
}
