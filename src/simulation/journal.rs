//! The reference model: what every socket sent, and what every socket received, as the applications saw it. It shares no code
//! with the engine.
//!
//! A message says who sent it and which of the sender's it is, and the rest of it follows from these two; so nothing can be
//! invented, altered, swapped or doubled without being seen. Messages too short for that are counted by length.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::SocketPlan;
use super::report::Violation;
use crate::protocol::Identity;
use crate::shard::{AckMode, DeliveryGuarantee, Replay, SendMode};

/// One life of a socket: a socket that comes back after its process died is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Life(pub(super) u32);

/// Bytes that say who and which.
pub(super) const HEAD_BYTES: usize = 12;

/// What a life did.
pub(super) struct Record {
    pub(super) identity: Identity,
    pub(super) mode: SendMode,
    pub(super) delivery: DeliveryGuarantee,
    pub(super) ack_mode: AckMode,
    /// The messages that were accepted, by number.
    pub(super) sent: Vec<Sent>,
    /// Of those without an addressee, blanks included.
    pub(super) undirected: u64,
    /// Messages too short to be told apart, by length.
    pub(super) blanks: [u64; HEAD_BYTES],
    /// What it received, by sender, in the order of arrival.
    pub(super) received: BTreeMap<Life, Vec<u32>>,
    pub(super) blanks_received: BTreeMap<Identity, [u64; HEAD_BYTES]>,
    /// Its links, as its events told of them: with whom, and between which of its messages.
    pub(super) sessions: Vec<Session>,
    pub(super) disconnects: u64,
    /// Messages that its events told of as dropped, and as expired.
    pub(super) dropped: u64,
    pub(super) expired: u64,
    /// Whether messages may expire.
    pub(super) expires: bool,
    /// Whether it skips messages for peers that are slow, and tells of them now and then.
    pub(super) skips: bool,
    /// Where peers that come late begin, and how much from before they get at most.
    pub(super) replay: (Replay, u64),
    /// Bytes that it may keep.
    pub(super) log_bytes: usize,
    /// PUBLISH: what is to be accounted for, per message and peer, of links that have ended.
    pub(super) owed: u64,
    /// PUBLISH, while nobody is connected: from which of its messages on the next link, or the last one before it, is served.
    pub(super) next_from: u64,
    /// The same as the number of a message.
    next_floor: u32,
    /// Messages sent again before the last round.
    pub(super) resent_before: u64,
    /// The messages that it sent just before it was closed, and the peers it had.
    pub(super) farewell: Option<(u32, Vec<Life>)>,
    /// What its close has left undelivered.
    pub(super) undelivered: Option<u64>,
    /// Number of the first message of the last round.
    pub(super) last_round: Option<u32>,
    /// Links that had ended before it.
    pub(super) disconnects_before: u64,
    /// It is of other make: it knows no duplicates, and makes some.
    pub(super) stock: bool,
    /// It was closed or its process died.
    pub(super) over: bool,
}

/// A message that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) len: u32,
    /// Whom alone it was for.
    pub(super) to: Option<Identity>,
    /// What it is the newest value of.
    pub(super) key: Option<u32>,
}

impl Record {
    /// Whether a peer is one that a message is meant to reach: under ROUNDROBIN perhaps.
    pub(super) fn is_for(&self, number: u32, peer: Identity) -> bool {
        self.sent.get(number as usize).is_some_and(|sent| sent.to.is_none_or(|to| to == peer))
    }

    /// Whether a peer that lags may go without it: a newer message has its key.
    pub(super) fn is_replaced(&self, number: u32) -> bool {
        let Some(key) = self.sent.get(number as usize).and_then(|sent| sent.key) else { return false };
        self.sent[number as usize + 1..].iter().any(|later| later.key == Some(key))
    }

    /// The messages from `first` on that a peer is meant to have, whatever happens to others with their keys, and has not.
    pub(super) fn missing(&self, first: u32, peer: Identity, received: Option<&Vec<u32>>) -> Option<u32> {
        let has: BTreeSet<u32> = received.into_iter().flatten().copied().collect();
        let wanted = |number: &u32| self.is_for(*number, peer) && !has.contains(number) && !self.is_replaced(*number);
        (first..self.sent.len() as u32).find(wanted)
    }

    /// Its links to a peer, those that have ended included.
    pub(super) fn sessions_with(&self, peer: Identity) -> impl Iterator<Item = &Session> {
        self.sessions.iter().filter(move |session| session.peer == peer)
    }

    /// Whether a newer message than `number`, and older than `until`, has its key.
    pub(super) fn is_replaced_before(&self, number: u32, until: u32) -> bool {
        let later = self.sent.get(number as usize + 1..until as usize).unwrap_or_default();
        later.iter().any(|later| later.key == self.sent[number as usize].key)
    }

    /// Whether a peer that came late may be given a message from before.
    pub(super) fn may_replay(&self, session: &Session, number: u32) -> bool {
        match self.replay {
            (Replay::Live, _) => false,
            (Replay::Snapshot, _) => {
                self.sent[number as usize].key.is_some() && !self.is_replaced_before(number, session.floor)
            }
            (_, messages) => {
                let newer = self.sent.get(number as usize..session.from as usize).unwrap_or_default();
                newer.iter().filter(|sent| sent.to.is_none()).count() as u64 <= messages
            }
        }
    }

    /// The messages from before that a peer that came late is to be given, whatever else happened.
    pub(super) fn replayed(&self, session: &Session) -> Vec<u32> {
        let before = 0..session.from;
        match self.replay {
            (Replay::Live, _) => Vec::new(),
            (Replay::Snapshot, _) => {
                before.filter(|at| self.sent[*at as usize].key.is_some() && !self.is_replaced(*at)).collect()
            }
            (_, messages) => {
                // Only where it is certain that there was room for all; those without a number may be among them.
                let blanks: u64 = self.blanks.iter().sum();
                let bytes: u64 = self.sent.iter().map(|sent| u64::from(sent.len) + 64).sum::<u64>() + blanks * 64;
                let count = if bytes < self.log_bytes as u64 / 4 { messages.saturating_sub(blanks) } else { 0 };
                before.rev().filter(|at| self.sent[*at as usize].to.is_none()).take(count as usize).collect()
            }
        }
    }

    /// Under AT_MOST_ONCE order and uniqueness are promised even so.
    pub(super) fn has_sessions(&self) -> bool {
        self.sessions.iter().any(|session| session.to.is_none())
    }

    /// PUBLISH: messages to be accounted for by now, per message and peer, as long as somebody is connected.
    pub(super) fn due(&self) -> u64 {
        let open = self.sessions.iter().filter(|session| session.to.is_none());
        self.owed + open.map(|session| self.undirected - session.served_from).sum::<u64>()
    }

    pub(super) fn is_at_least_once(&self) -> bool {
        self.delivery == DeliveryGuarantee::AtLeastOnce
    }
}

/// A link, as one end saw it.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) peer: Identity,
    /// Messages that this end had sent when it began.
    pub(super) from: u32,
    /// The first of them that it may get by itself: earlier than `from` if nobody was there.
    pub(super) floor: u32,
    /// The same as `from`, counting all that was sent to everybody.
    served_from: u64,
    /// And when it ended, if it has.
    pub(super) to: Option<u32>,
    /// Messages sent before, while nobody was there, that it begins with.
    pub(super) backlog: u64,
    /// Messages that its policy for slow peers has skipped, as far as was told.
    pub(super) skipped: u64,
}

/// Everybody's records.
#[derive(Default)]
pub(super) struct Journal {
    pub(super) lives: Vec<Record>,
    pub(super) messages_received: u64,
    /// Messages from before that peers that came late were given: as snapshots, and of what was kept.
    pub(super) replayed: (u64, u64),
    /// Identities that somebody else has claimed: what was sent to them may have come to him.
    pub(super) stolen: Vec<Identity>,
}

impl Journal {
    pub(super) fn born(&mut self, identity: Identity, plan: &SocketPlan) -> Life {
        self.lives.push(Record {
            identity,
            mode: plan.mode,
            delivery: plan.delivery,
            ack_mode: plan.ack_mode,
            sent: Vec::new(),
            undirected: 0,
            blanks: [0; HEAD_BYTES],
            received: BTreeMap::new(),
            blanks_received: BTreeMap::new(),
            sessions: Vec::new(),
            disconnects: 0,
            dropped: 0,
            expired: 0,
            expires: plan.expires,
            skips: plan.lag.is_some(),
            replay: plan.replay,
            log_bytes: plan.log_bytes(),
            owed: 0,
            next_from: 0,
            next_floor: 0,
            resent_before: 0,
            farewell: None,
            undelivered: None,
            last_round: None,
            disconnects_before: 0,
            stock: false,
            over: false,
        });
        Life(self.lives.len() as u32 - 1)
    }

    /// A peer of other make: what it sends is nobody's loss.
    pub(super) fn born_elsewhere(&mut self, identity: Identity, plan: &SocketPlan) -> Life {
        let life = self.born(identity, plan);
        let record = self.record(life);
        (record.mode, record.delivery) = (SendMode::RoundRobin, DeliveryGuarantee::AtLeastOnce);
        (record.ack_mode, record.stock, record.over) = (AckMode::Manual, true, true);
        life
    }

    pub(super) fn record(&mut self, life: Life) -> &mut Record {
        &mut self.lives[life.0 as usize]
    }

    /// The next message of a life, of about this length.
    pub(super) fn compose(&self, life: Life, len: usize) -> Vec<u8> {
        if len < HEAD_BYTES {
            return vec![0xB0 | len as u8; len];
        }
        payload(life, self.lives[life.0 as usize].sent.len() as u32, len)
    }

    /// It was accepted.
    pub(super) fn accepted(&mut self, life: Life, len: usize, to: Option<Identity>, key: Option<u32>) {
        let record = self.record(life);
        record.undirected += u64::from(to.is_none());
        match record.blanks.get_mut(len) {
            Some(count) => *count += 1,
            None => record.sent.push(Sent { len: len as u32, to, key }),
        }
    }

    /// The key of a life's next message, if it is of this length and goes to everybody: every third has none.
    pub(super) fn key(&self, life: Life, len: usize, keys: u32) -> Option<u32> {
        let number = self.lives[life.0 as usize].sent.len() as u32;
        (keys > 0 && len >= HEAD_BYTES && !number.is_multiple_of(3)).then(|| number.wrapping_mul(7) % keys)
    }

    /// A life received a message: is it one that was sent, by the one who is said to have sent it?
    pub(super) fn received(&mut self, life: Life, from: Identity, message: &[u8]) -> Result<(), Violation> {
        let broken = |text| Err(Violation { invariant: "I2", text });
        self.messages_received += 1;
        if message.len() < HEAD_BYTES {
            if message.iter().any(|&byte| byte != 0xB0 | message.len() as u8) {
                return broken(format!("{life:?} received a short message of other bytes"));
            }
            self.record(life).blanks_received.entry(from).or_default()[message.len()] += 1;
            return Ok(());
        }
        let word = |at: usize| u32::from_be_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
        let (sender, number) = (Life(word(0)), word(4));
        let Some(record) = self.lives.get(sender.0 as usize) else {
            return broken(format!("{life:?} received a message of nobody: {sender:?}, {} bytes", message.len()));
        };
        if record.identity != from {
            return broken(format!("{life:?} received a message of {sender:?} from {from}"));
        }
        let sent = record.sent.get(number as usize);
        if sent.is_none_or(|sent| sent.len != message.len() as u32) {
            let text = format!("{life:?} received message {number} of {sender:?}, {} bytes, never sent", message.len());
            return broken(text);
        }
        if !record.is_for(number, self.lives[life.0 as usize].identity) {
            let mode = (record.mode, record.delivery);
            let text = format!("{life:?} received message {number} of {sender:?} {mode:?}, which was for {sent:?}");
            return Err(Violation { invariant: "I7", text });
        }
        if payload(sender, number, message.len()) != message {
            return broken(format!("{life:?} received message {number} of {sender:?} altered"));
        }
        let receiver = self.lives[life.0 as usize].identity;
        let late = record.sessions_with(receiver).last().is_some_and(|session| number < session.floor);
        match record.replay.0 {
            Replay::Snapshot => self.replayed.0 += u64::from(late),
            Replay::Oldest => self.replayed.1 += u64::from(late),
            Replay::Live => {}
        }
        self.record(life).received.entry(sender).or_default().push(number);
        Ok(())
    }

    pub(super) fn connected(&mut self, life: Life, peer: Identity) -> Result<(), Violation> {
        let record = self.record(life);
        if record.sessions.iter().any(|session| session.peer == peer && session.to.is_none()) {
            return Err(Violation { invariant: "I8", text: format!("{life:?} has two links to {peer}") });
        }
        // What was sent before anybody came is kept for the first.
        let from = if record.sessions.is_empty() { 0 } else { record.sent.len() as u32 };
        // Who comes when nobody is there goes on where the last one stopped.
        let served_from = if record.has_sessions() { record.undirected } else { record.next_from };
        let backlog = record.undirected - served_from;
        let floor = if record.has_sessions() { from } else { record.next_floor };
        record.sessions.push(Session { peer, from, floor, served_from, to: None, backlog, skipped: 0 });
        Ok(())
    }

    pub(super) fn disconnected(&mut self, life: Life, peer: Identity) -> Result<(), Violation> {
        let record = self.record(life);
        let to = record.sent.len() as u32;
        record.disconnects += 1;
        match record.sessions.iter().position(|session| session.peer == peer && session.to.is_none()) {
            Some(at) => {
                record.sessions[at].to = Some(to);
                let session = &record.sessions[at];
                let (served_from, mut floor) = (session.served_from, session.floor);
                // What it was given from before may have gone to nobody yet.
                while record.replay.0 == Replay::Oldest && floor > 0 && record.may_replay(session, floor - 1) {
                    floor -= 1;
                }
                if record.has_sessions() {
                    record.owed += record.undirected - served_from;
                } else {
                    (record.next_from, record.next_floor) = (served_from, floor);
                }
            }
            None => {
                return Err(Violation {
                    invariant: "I8",
                    text: format!("{life:?} lost {peer}, which it did not have"),
                });
            }
        }
        Ok(())
    }

    /// The life that goes by this identity now.
    pub(super) fn living(&self, identity: Identity) -> Option<Life> {
        let at = self.lives.iter().rposition(|record| record.identity == identity && !record.over)?;
        Some(Life(at as u32))
    }

    /// How many messages of a life applications have taken.
    pub(super) fn taken(&self, sender: Life) -> u64 {
        let identity = self.lives[sender.0 as usize].identity;
        let of = |life: &Record| {
            let blanks = life.blanks_received.get(&identity).map_or(0, |blanks| blanks.iter().sum());
            life.received.get(&sender).map_or(0, |numbers| numbers.len() as u64) + blanks
        };
        self.lives.iter().map(of).sum()
    }

    pub(super) fn messages_sent(&self) -> u64 {
        self.lives.iter().map(|record| record.sent.len() as u64 + record.blanks.iter().sum::<u64>()).sum()
    }
}

/// The message that these three determine.
fn payload(life: Life, number: u32, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    bytes.extend_from_slice(&life.0.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(len as u32).to_be_bytes());
    let mut word = (u64::from(life.0) << 32 | u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while bytes.len() < len {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
