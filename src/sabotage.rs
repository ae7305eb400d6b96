//! Planted bugs: places where the engine does wrong on purpose when it is told to, so that the simulation can show that it would
//! notice (`tests/planted.rs`). Every layer may ask `planted`; it is `false` at compile time, and costs nothing, unless the feature
//! `sabotage` is on, which is for the simulation only, and even then nothing is wrong until a test plants a bug.
//!
//! No feature brings `sabotage` along, and an optimised build refuses it unless the environment says that it is meant, so that none
//! ships by accident (`tests/architecture.rs` has a compiler say so).

#[cfg(feature = "sabotage")]
const _: () = assert!(
    cfg!(debug_assertions) || option_env!("AIOMSG_SABOTAGE").is_some(),
    "the feature `sabotage` is for tests/planted.rs, which sets AIOMSG_SABOTAGE; no release has it"
);

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What goes wrong, one at a time.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($(#[doc = $doc])+ $name,)+ }

        /// All of them.
        #[cfg(feature = "sabotage")]
        pub const BUGS: &[Bug] = &[$(Bug::$name,)+];

        #[cfg(feature = "sabotage")]
        impl Bug {
            /// In words.
            pub const fn text(self) -> &'static str {
                match self { $(Bug::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

bugs! {
    /// Every other turn goes to the same peer again.
    CircleSkew,
    /// What a peer sends does not count as a sign of life.
    HeartbeatDeaf,
    /// A message that was received before counts as fresh.
    WindowForgets,
    /// An acknowledgement is not sent.
    ForgetAck,
    /// Every message is acknowledged when it arrives.
    AckOnArrival,
    /// A resend of what the application still has is acknowledged.
    AckInHand,
    /// A link that was paused is not read again.
    NoResume,
    /// A full queue is not tried again after the mark.
    NoSecondPush,
    /// A copy that is sent again is kept like a new message.
    KeepCopies,
    /// What was for one peer goes to anybody when its link dies.
    LoseAddressee,
    /// Unacknowledged messages are forgotten with their link.
    PendingLost,
    /// A message is sent again under another id.
    ResendNewId,
    /// What a dead link had not sent is forgotten.
    ReturnedLost,
    /// What was kept for a peer does not go out when it returns.
    NoUnpark,
    /// What is kept for a peer expires at once.
    ExpiresEarly,
    /// A message by identity overtakes what was sent before it.
    OvertakeMail,
    /// A send that failed counts as whole.
    SentTooFar,
    /// After a send that failed the cursor stands where the send began.
    CursorBehind,
    /// A frame of which a part was sent begins again.
    FrameRestarted,
    /// A control frame goes out inside another frame.
    ControlInside,
    /// Other shards do not learn that the log has grown.
    OthersNotTold,
    /// Senders are not told of room in the log.
    NoRoomNotice,
    /// Heartbeats are not sent.
    NoHeartbeat,
    /// A silent peer is never given up.
    NeverDead,
    /// A second link of the same identity is taken.
    DuplicateWelcome,
    /// A link is judged once only.
    LinkTimerOnce,
    /// What a dead link could not send is not counted.
    DropUncounted,
    /// A dialer whose link dies in the handshake does not dial again.
    DialerGivesUp,
    /// A message that is one byte too long is taken.
    ByteTooLong,
    /// One connection more than allowed is let in.
    PeersOneMore,
    /// A listener that ran out of descriptors does not go on.
    ListenerRests,
    /// A connection that moves to another shard gets lost.
    MoveLost,
    /// A connection that has moved forgets who dialled it.
    AdoptForgets,
    /// A closing socket does not send what it has.
    CloseForgetsLog,
    /// A chunk is let go while its last frames are still to be sent.
    ChunkEarly,
    /// A backlog begins behind what a peer has had.
    BacklogBehind,
    /// What was sent while nobody was there is given up.
    BacklogSkipped,
    /// The log exceeds its limit by a chunk.
    LogLimitLate,
    /// A cursor inside a chunk counts one frame too many.
    CursorAhead,
    /// The receive queue has no limit.
    NoReceiveLimit,
    /// The doorbell wakes nobody.
    DoorbellLost,
    /// A slab does not come back.
    SlabLost,
    /// A slab is returned twice.
    SlabTwice,
    /// A buffer that the kernel still writes to is used again.
    SlabReusedEarly,
    /// A multishot receive that ended is not armed again.
    MultishotNotRearmed,
    /// A receive that found no buffer is not fed.
    HungryForgotten,
    /// A send that ended in part counts as whole.
    ShortSendIsWhole,
    /// A peer that comes late does not get the last values.
    SnapshotForgotten,
    /// A peer that comes late gets more from before than is to be kept for it.
    RetainedTooLong,
    /// A descriptor is closed under a request.
    CloseUnderRequest,
    /// A cancellation is not submitted.
    CancelForgotten,
    /// A cancellation that did not find its request is not tried again.
    CancelOnce,
    /// An operation has the serial number of its predecessor: late completions are taken for its own.
    SerialReused,
    /// An inline engine that is driven does not send what was appended.
    InlineUnsent,
}

#[cfg(feature = "sabotage")]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in what this thread does from here on, or takes it out.
#[cfg(feature = "sabotage")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether to do wrong here.
#[cfg(feature = "sabotage")]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Never.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
