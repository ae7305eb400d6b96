//! What all three kinds of socket handle do alike: put a message into the log, take the next one out of the receive queue, say what
//! ended. The kinds differ in who waits and how.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::error::{RecvError, SendError, TryRecvError, TrySendError};
use super::key::Key;
use super::payload::{Batch, Payload};
use crate::copy;
use crate::log::Full;
use crate::protocol::Identity;
use crate::sabotage::{Bug, planted};
use crate::shard::{
    DeliveryGuarantee, KIB, LastValues, Message, Outlet, Phase, Refusal, SendMode, SocketShared, Walker,
};

/// The usual case of [`offer`]: a borrowed message for which there is room goes into the log of an open socket. Nothing is moved but
/// the message. False: not sent; `offer` says why, or sends it after all.
// Inlined, so that the payload's variant is known where it was made.
#[inline(always)]
pub(super) fn put_at_once(shared: &SocketShared, outlet: &mut Outlet, payload: &Payload<'_>) -> bool {
    match payload {
        Payload::Borrowed(bytes) => takes(shared, bytes.len()) && outlet.put(bytes).is_ok(),
        Payload::Owned(_) => false,
    }
}

/// As [`put_at_once`], for a message of `bytes` bytes that `fill` writes where it goes out from. If that is nowhere yet `fill` comes
/// back, and [`filled`] makes a message that is sent like any other.
#[inline(always)]
pub(super) fn put_with_at_once<F>(shared: &SocketShared, outlet: &mut Outlet, bytes: usize, fill: F) -> Result<(), F>
where
    F: FnOnce(&mut [u8]),
{
    if takes(shared, bytes) { outlet.put_with(bytes, fill) } else { Err(fill) }
}

/// Whether an open socket takes a message of so many bytes, if there is room for it.
#[inline(always)]
fn takes(shared: &SocketShared, bytes: usize) -> bool {
    bytes <= shared.config.message_bytes_max && shared.phase() == Phase::Open && !shared.is_gated()
}

/// A message of `bytes` bytes that `fill` has written into memory of its own; refused before that if it is too long.
#[cold]
pub(super) fn filled(
    shared: &SocketShared,
    bytes: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Result<Payload<'static>, SendError> {
    check_open(shared)?;
    check_bytes(shared, bytes)?;
    let mut message = vec![0; bytes];
    fill(&mut message);
    Ok(message.into())
}

/// Borrowed values of at least so many bytes are copied once, for the log and the table of last values.
const KEYED_SHARE_FROM_BYTES: usize = 16 * KIB;

/// Appends a message to the socket's log, or gives it back.
#[inline]
pub(super) fn offer<'a>(
    shared: &SocketShared,
    outlet: &mut Outlet,
    payload: Payload<'a>,
) -> Result<(), TrySendError<'a>> {
    check_length(shared, &payload)?;
    if shared.is_gated() {
        return Err(TrySendError::Full(payload));
    }
    match payload {
        Payload::Borrowed(bytes) => outlet.put(bytes).map_err(|Full| TrySendError::Full(Payload::Borrowed(bytes))),
        Payload::Owned(bytes) => {
            outlet.put_bytes(bytes).map_err(|(Full, bytes)| TrySendError::Full(Payload::Owned(bytes)))
        }
    }
}

/// Appends a message that is the newest value of a key, or gives it back.
pub(super) fn offer_keyed<'a>(
    shared: &SocketShared,
    outlet: &mut Outlet,
    key: Key<'_>,
    payload: Payload<'a>,
) -> Result<(), TrySendError<'a>> {
    if shared.config.send_mode == SendMode::RoundRobin {
        return offer(shared, outlet, payload);
    }
    check_length(shared, &payload)?;
    if shared.is_gated() {
        return Err(TrySendError::Full(payload));
    }
    let (values, key) = (&shared.values, key.as_ref());
    let result = match payload {
        Payload::Borrowed(bytes) if bytes.len() < KEYED_SHARE_FROM_BYTES => {
            outlet.put_keyed(values, key, bytes).map_err(|refusal| (refusal, Payload::Borrowed(bytes)))
        }
        // One copy for both, the log and the table.
        Payload::Borrowed(bytes) => put_shared(outlet, values, key, copy::owned(bytes)),
        Payload::Owned(bytes) => put_shared(outlet, values, key, bytes),
    };
    result.map_err(|(refusal, payload)| match refusal {
        Refusal::Full => TrySendError::Full(payload),
        Refusal::Keys => {
            let (keys_max, bytes_max) = (values.options.keys_max, values.options.bytes_max);
            TrySendError::Never(SendError::KeysFull { keys_max, bytes_max })
        }
    })
}

fn put_shared<'a>(
    outlet: &mut Outlet,
    values: &LastValues,
    key: &[u8],
    payload: Bytes,
) -> Result<(), (Refusal, Payload<'a>)> {
    outlet.put_bytes_keyed(values, key, payload).map_err(|(refusal, bytes)| (refusal, Payload::Owned(bytes)))
}

/// Appends a message for one peer, or gives it back. Answers with the shard whose mail has grown.
pub(super) fn offer_to<'a>(
    shared: &SocketShared,
    outlet: &mut Outlet,
    identity: &Identity,
    payload: Payload<'a>,
) -> Result<usize, TrySendError<'a>> {
    check_length(shared, &payload)?;
    let never = |error| Err(TrySendError::Never(error));
    let Some(peer) = shared.peers.find(identity) else {
        return never(SendError::UnknownPeer(*identity));
    };
    if !peer.connected && shared.config.delivery == DeliveryGuarantee::AtMostOnce {
        return never(SendError::PeerGone(*identity));
    }
    let shard = shared.shard_of(identity);
    let bytes = payload.len() + shared.config.head_bytes();
    if peer.queued.load(Ordering::Relaxed) + bytes > shared.config.directed_bytes_max() {
        return Err(TrySendError::Full(payload));
    }
    // Before the append: the shard may have sent it before this thread goes on.
    peer.queued.fetch_add(bytes, Ordering::Relaxed);
    let result = match payload {
        Payload::Borrowed(bytes) => {
            outlet.put_to(shard, identity, bytes).map_err(|Full| TrySendError::Full(Payload::Borrowed(bytes)))
        }
        Payload::Owned(bytes) => outlet
            .put_bytes_to(shard, identity, bytes)
            .map_err(|(Full, bytes)| TrySendError::Full(Payload::Owned(bytes))),
    };
    match result {
        Ok(()) => {
            shared.directed.fetch_add(1, Ordering::Relaxed);
            shared.directed_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Err(_) => {
            peer.queued.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
    result.map(|()| shard)
}

fn check_length<'a>(shared: &SocketShared, payload: &Payload<'_>) -> Result<(), TrySendError<'a>> {
    check_bytes(shared, payload.len()).map_err(TrySendError::Never)
}

fn check_bytes(shared: &SocketShared, bytes: usize) -> Result<(), SendError> {
    let bytes_max = shared.config.message_bytes_max;
    if bytes > bytes_max + usize::from(planted(Bug::ByteTooLong)) {
        return Err(SendError::TooLong { bytes, bytes_max });
    }
    Ok(())
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

/// What a consumer can take out of the receive queue. An `Option` and not a `Result`: why there is nothing is asked only when there is
/// nothing ([`none_left`]).
// A trait and not a closure, so that it is inlined into whoever receives: each call on the way would move the message through memory.
pub(super) trait Take: Sized {
    /// The next one, if one is there.
    fn take(walker: &mut Walker, shared: &SocketShared) -> Option<Self>;
}

impl Take for Bytes {
    #[inline(always)]
    fn take(walker: &mut Walker, shared: &SocketShared) -> Option<Bytes> {
        walker.next_payload(shared)
    }
}

impl Take for Message {
    #[inline(always)]
    fn take(walker: &mut Walker, shared: &SocketShared) -> Option<Message> {
        walker.next(shared)
    }
}

impl Take for (Identity, Bytes) {
    #[inline(always)]
    fn take(walker: &mut Walker, shared: &SocketShared) -> Option<(Identity, Bytes)> {
        walker.next(shared).map(|message| (message.identity, message.payload))
    }
}

impl Take for Batch {
    fn take(walker: &mut Walker, shared: &SocketShared) -> Option<Batch> {
        walker.next_run(shared).map(|(run, from)| Batch::new(run.identity, run.frames, from))
    }
}

/// Why a consumer got nothing. `Empty` also if there is something by now.
#[cold]
pub(super) fn none_left(shared: &SocketShared, walker: &Walker) -> TryRecvError {
    // The phase first: what arrived before it changed is in the queue, or another consumer has begun with it.
    match shared.phase() {
        Phase::Open => TryRecvError::Empty,
        _ if walker.is_midway() || !shared.inbox.is_empty() => TryRecvError::Empty,
        Phase::EngineStopped => TryRecvError::Never(RecvError::EngineStopped),
        _ => TryRecvError::Never(RecvError::Closed),
    }
}
