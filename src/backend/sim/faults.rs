//! The faults: each has a name, a meaning and a count. A run switches a random subset on (swarm testing: Groce et al., 2012);
//! what is off in one run lets others get further. After the heal nothing fires any more.

use super::Dice;

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Something that goes wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Fault { $($(#[doc = $doc])+ $name,)+ }

        /// All of them, in order.
        pub(crate) const FAULTS: &[Fault] = &[$(Fault::$name,)+];
    };
}

faults! {
    /// A receive gets fewer bytes than there are, down to one.
    ShortRead,
    /// A send hands over fewer bytes than there is room for, down to one.
    ShortWrite,
    /// A segment takes up to two seconds.
    LongDelay,
    /// A connection delivers nothing in one direction for a while, then everything.
    Stall,
    /// Two hosts cannot reach each other, in either direction.
    PartitionBothWays,
    /// A host reaches nobody, and nobody it: its cable is pulled.
    Isolated,
    /// One host's packets do not reach another; the way back works.
    PartitionOneWay,
    /// A connection is reset between any two bytes; what had not arrived is lost.
    Reset,
    /// A reset also destroys what had arrived and was not read.
    ResetDestroysUnread,
    /// All connections of a process are reset at once: its host got another address, or a firewall forgot them.
    HostReset,
    /// A connection's bytes vanish in both directions for good, and nobody is told.
    HalfOpen,
    /// A middlebox ends a connection in good order, between any two bytes.
    EndOfStream,
    /// A process is killed: its sockets are reset.
    Kill,
    /// A host loses power: its connections know nothing until the host is up again.
    PowerLoss,
    /// A process comes back under the identity that it had.
    RestartSameIdentity,
    /// A process comes back as somebody else.
    RestartNewIdentity,
    /// A process does not run for up to twenty seconds, then goes on.
    Pause,
    /// A connect is refused though somebody listens.
    ConnectRefused,
    /// A connect finds no route.
    ConnectUnreachable,
    /// No descriptor is left for a connect.
    ConnectEmfile,
    /// No descriptor is left for an accept.
    AcceptEmfile,
    /// No memory is left for a connect.
    ConnectEnomem,
    /// No memory is left for an accept.
    AcceptEnomem,
    /// A connection is aborted while it waits to be accepted.
    AcceptAborted,
    /// A name does not resolve.
    ResolveFails,
    /// A name resolves to an address where nobody is, first.
    ResolveStale,
    /// The pool has two to eight small receive slabs.
    FewSlabs,
    /// The log of a socket is as small as it can be.
    SmallLog,
    /// The receive queue of a socket is as small as it can be.
    SmallReceiveQueue,
    /// The kernel's buffers of connections hold a few hundred bytes.
    SmallWindow,
    /// A socket has room for no more peers than dial it: strangers keep them out for a while.
    FewPeers,
    /// Messages of hundreds of kilobytes, up to one megabyte.
    LargeMessages,
    /// At least once: messages expire after a second without an acknowledgement.
    ShortPatience,
    /// An application sends to a peer that is gone.
    SentToTheGone,
    /// An application takes its messages late.
    SlowConsumer,
    /// A publisher skips messages for peers that are over a small lag limit.
    LagLimit,
    /// A publisher begins with its last values for a peer that comes late.
    Snapshot,
    /// A publisher begins with the last messages that it keeps for a peer that comes late.
    Retained,
    /// Completions are reported piecemeal, over many turns.
    PiecemealCompletions,
    /// A shard is stepped though nothing has happened.
    IdleTurns,
    /// A call is given up in the middle.
    FutureDropped,
    /// A socket is closed in the middle of everything.
    SocketClosed,
    /// An application stops listening, and listens again.
    Unbound,
    /// An application stops connecting to an endpoint, and connects again.
    Undialled,
    /// An application parts from a peer.
    SentAway,
    /// A connection that sends random bytes.
    HostileJunk,
    /// A connection that sends nothing, or a byte now and then.
    HostileSlow,
    /// A HELLO of another version.
    HostileVersion,
    /// A HELLO cut short.
    HostileTruncatedHello,
    /// A valid HELLO and then the announcement of an enormous frame.
    HostileLength,
    /// The identity of somebody who is connected already.
    HostileStolenIdentity,
    /// Valid HELLO, then frames that must be skipped: unknown types, empty envelopes, a second HELLO, short bodies.
    HostileUnknownFrames,
    /// Valid HELLO, then a flood of heartbeats and acknowledgements that nobody asked for.
    HostileFlood,
    /// Two sockets dial each other.
    MutualDial,
    /// A peer of other make comes, talks and goes.
    StockPeer,
    /// It comes back without a delay, again and again.
    StockComesBack,
    /// It sends messages in one piece with its HELLO.
    StockPipelines,
    /// It does not read while it writes.
    StockOneThread,
    /// It forgets some ACKs.
    StockForgetsAcks,
    /// It sends messages again under new ids, though they were acknowledged.
    StockSendsAnew,
    /// A peer of other make that is dialled takes every connection for a peer and drops all that comes.
    StockSwallows,
    /// io_uring: a submission queue of four to eight entries.
    RingSmallQueue,
    /// io_uring: completions wait because the completion queue is full.
    RingOverflow,
    /// io_uring: a multishot request ends with a good result.
    RingMultishotEnds,
    /// io_uring: a receive finds no buffer though there are some.
    RingNoBuffers,
    /// io_uring: a request ends with EINTR or EAGAIN.
    RingNotNow,
    /// io_uring: a completion comes later than its work.
    RingLateCompletion,
    /// io_uring: a cancellation comes too late, or takes its time.
    RingLateCancel,
    /// io_uring: a send that was to be whole ends in part.
    RingShortSend,
    /// io_uring: buffers are used up by one receive each.
    RingPlainBuffers,
    /// Applications drive their engine themselves: it is inline.
    InlineEngine,
    /// A socket listens at a path: what lies on the way cannot harm its connections, and nobody is at another machine.
    UnixEndpoint,
    /// The socket file that somebody connects to is not there.
    UnixMissing,
    /// A process that was killed has left its socket file: somebody connects, or binds again.
    UnixStale,
    /// io_uring: a cancellation does not find its request, which is just being tried again.
    RingCancelMissed,
}

/// What the network is like when nothing goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Nanoseconds that a segment takes: at least, at most.
    pub(crate) latency_ns: (u64, u64),
    /// Bytes that a connection holds in one direction, sender's and receiver's kernel together.
    pub(crate) window_bytes: usize,
}

/// Which faults are on, and how often each has happened.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    on: Vec<bool>,
    /// Times that each has happened.
    pub(crate) fired: Vec<u64>,
    /// Nothing goes wrong any more.
    healed: bool,
}

impl Faults {
    /// A random subset.
    pub(crate) fn draw(dice: &mut Dice) -> Faults {
        // From nothing at all to everything at once.
        let share = dice.pick(0, 4);
        // What is newer than the first seeds is drawn apart, so that these keep their meaning.
        let mut apart = Dice::new(dice.clone().next());
        let is_on = |fault: &Fault| match fault {
            fault if *fault < Fault::InlineEngine => dice.pick(0, 3) < share,
            fault if *fault < Fault::RingCancelMissed => apart.pick(0, 3) < share,
            // In half of the runs, so that it does not stand in the way of the others.
            _ => apart.pick(0, 7) % 4 > 1 && apart.pick(0, 3) < share,
        };
        let on = FAULTS.iter().map(is_on).collect();
        Faults { on, fired: vec![0; FAULTS.len()], healed: false }
    }

    /// Leaves faults out of this run, by name.
    pub(crate) fn leave_out(&mut self, names: &[String]) {
        for (on, fault) in self.on.iter_mut().zip(FAULTS) {
            *on &= !names.contains(&format!("{fault:?}"));
        }
    }

    /// Whether a fault is part of this run.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.on[fault as usize] && !self.healed
    }

    /// Whether a fault was part of this run before the heal.
    pub(crate) fn had(&self, fault: Fault) -> bool {
        self.on[fault as usize]
    }

    /// Whether it happens here: once in `one_in` times, if it is on.
    pub(crate) fn strikes(&mut self, fault: Fault, one_in: u64, dice: &mut Dice) -> bool {
        let strikes = self.has(fault) && dice.once_in(one_in);
        self.fired[fault as usize] += u64::from(strikes);
        strikes
    }

    /// Counts a fault that was decided elsewhere.
    pub(crate) fn note(&mut self, fault: Fault) {
        self.fired[fault as usize] += 1;
    }

    /// Switches everything off.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
    }
}
