//! Peers of other make, as they are (`docs/interop.md`): connections that speak the protocol well and have the habits of the stock
//! libraries. They are ends of the simulated network without an engine behind them. What they send and receive is in the journal
//! like everybody else's; what they spoil (they send again under new ids, they forget ACKs, they swallow) is theirs alone.
//!
//! Which habit is which interop note (those that are not here need no peer of their own): 1 [`Fault::StockComesBack`], 2 [`Fault::StockSwallows`], 3 to 5 [`Fault::HostileUnknownFrames`],
//! 7 [`Fault::StockPipelines`], 8 [`Fault::StockOneThread`], 9 [`Fault::StockForgetsAcks`], 10 and 16
//! [`Fault::StockSendsAnew`], 11 [`Fault::MutualDial`], 14 [`Fault::ResolveStale`], 15 the `Hostile...` ones.

use std::net::SocketAddr;

use super::journal::{HEAD_BYTES, Life};
use super::node::Common;
use crate::backend::sim::{BackendId, Dice, Fault, Id};
use crate::protocol::Identity;

const MS: u64 = 1_000_000;
/// Less than the shortest interval of ours: nobody finds it suspect.
const BEAT_NS: u64 = 300 * MS;
const TICK_NS: u64 = 30 * MS;

/// What it may do, by the name of the fault.
pub(super) const HABITS: [Fault; 5] = [
    Fault::StockComesBack,
    Fault::StockPipelines,
    Fault::StockOneThread,
    Fault::StockForgetsAcks,
    Fault::StockSendsAnew,
];

/// One stock peer that dials.
pub(super) struct Stock {
    pub(super) common: Common,
    pub(super) seat: BackendId,
    pub(super) to: SocketAddr,
    pub(super) identity: Identity,
    pub(super) life: Life,
    pub(super) dice: Dice,
    /// Its habits, drawn when it was made.
    pub(super) habits: Vec<Fault>,
}

/// A connection of it.
struct Line {
    id: Id,
    /// What was received and is no whole frame yet.
    received: Vec<u8>,
    /// What is to be sent.
    unsent: Vec<u8>,
    /// Who is at the other end, once it has said so.
    peer: Option<Identity>,
}

impl Stock {
    /// Dials, talks for a while, and goes; some come back at once, a few times.
    pub(super) async fn live(mut self) {
        let lives = if self.has(Fault::StockComesBack) { self.dice.pick(2, 30) } else { 1 };
        for _ in 0..lives {
            let connected = self.common.network.borrow_mut().connect(self.seat, self.to);
            let Ok(id) = connected else { continue };
            for _ in 0..50 {
                self.common.sleep(TICK_NS).await;
                if self.common.network.borrow().connected(id).is_some() {
                    break;
                }
            }
            self.talk(Line { id, received: Vec::new(), unsent: frame(1, &hello(self.identity)), peer: None }).await;
            self.common.network.borrow_mut().close(id);
        }
    }

    fn has(&self, habit: Fault) -> bool {
        self.habits.contains(&habit)
    }

    /// Until the other end closes, or it has had enough.
    async fn talk(&mut self, mut line: Line) {
        let ticks = self.dice.pick(10, 400);
        let mut beaten_ns = self.common.now_ns();
        // What it has sent and saw no ACK for, to be sent again under another id.
        let mut again: Vec<Vec<u8>> = Vec::new();
        if self.has(Fault::StockPipelines) {
            self.say(&mut line, &mut again);
        }
        for tick in 0..ticks {
            let writes = self.write(&mut line);
            // Whoever has one thread for both does not read while it writes.
            let stuck = !line.unsent.is_empty() && self.has(Fault::StockOneThread);
            if !writes || (!stuck && !self.read(&mut line)) {
                return;
            }
            if line.peer.is_some() && line.unsent.len() < 4096 {
                if self.dice.once_in(8) {
                    self.say(&mut line, &mut again);
                }
                if tick % 100 == 99 && self.has(Fault::StockSendsAnew) {
                    for message in std::mem::take(&mut again) {
                        self.put(&mut line, &message);
                    }
                }
                let now_ns = self.common.now_ns();
                if now_ns >= beaten_ns + BEAT_NS {
                    beaten_ns = now_ns;
                    line.unsent.extend_from_slice(&frame(2, &[]));
                }
            }
            self.common.sleep(TICK_NS).await;
        }
    }

    /// A message of its own.
    fn say(&mut self, line: &mut Line, again: &mut Vec<Vec<u8>>) {
        let len = self.dice.pick(HEAD_BYTES as u64, 600) as usize;
        let mut journal = self.common.journal.borrow_mut();
        let message = journal.compose(self.life, len);
        journal.accepted(self.life, len, None, None);
        drop(journal);
        self.put(line, &message);
        again.push(message);
    }

    /// With an id that was never used before, or without.
    fn put(&mut self, line: &mut Line, message: &[u8]) {
        if self.has(Fault::StockSendsAnew) {
            let mut body = [self.dice.next().to_be_bytes(), self.dice.next().to_be_bytes()].concat();
            body.extend_from_slice(message);
            line.unsent.extend_from_slice(&frame(4, &body));
        } else {
            line.unsent.extend_from_slice(&frame(3, message));
        }
    }

    /// False when the connection is gone.
    fn write(&mut self, line: &mut Line) -> bool {
        if line.unsent.is_empty() {
            return true;
        }
        let written = self.common.network.borrow_mut().write(line.id, std::iter::once(&line.unsent[..]));
        match written {
            Ok(len) => drop(line.unsent.drain(..len)),
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
        true
    }

    /// False when the connection is gone.
    fn read(&mut self, line: &mut Line) -> bool {
        let mut bytes = [0; 4096];
        for _ in 0..64 {
            let read = self.common.network.borrow_mut().read(line.id, &mut bytes);
            match read {
                Ok(0) => return false,
                Ok(len) => line.received.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        let mut at = 0;
        while let Some((kind, body, len)) = parse(&line.received[at..]) {
            at += len;
            match kind {
                1 => line.peer = body.get(1..17).and_then(|id| id.try_into().ok()).map(Identity::from_bytes),
                3 => self.took(line.peer, body),
                4 if body.len() >= 16 => {
                    let (id, message) = body.split_at(16);
                    if !self.has(Fault::StockForgetsAcks) || !self.dice.once_in(4) {
                        self.took(line.peer, message);
                        line.unsent.extend_from_slice(&frame(5, id));
                    }
                }
                _ => {}
            }
        }
        line.received.drain(..at);
        true
    }

    fn took(&self, from: Option<Identity>, message: &[u8]) {
        let Some(from) = from else { return };
        let result = self.common.journal.borrow_mut().received(self.life, from, message);
        if let Err(violation) = result {
            self.common.fail(violation);
        }
    }
}

/// A binding end that takes every connection for a peer, and drops all that comes (interop note 2).
pub(super) async fn swallow(common: Common, seat: BackendId, at: SocketAddr, identity: Identity) {
    let Ok((listener, _)) = common.network.borrow_mut().listen(seat, at) else { return };
    let mut lines: Vec<(Id, bool)> = Vec::new();
    loop {
        common.sleep(TICK_NS).await;
        let accepted = common.network.borrow_mut().accept(listener);
        lines.extend(accepted.map(|(id, _)| (id, false)));
        for (id, greeted) in &mut lines {
            let mut bytes = [0; 4096];
            loop {
                let read = common.network.borrow_mut().read(*id, &mut bytes);
                if !matches!(read, Ok(1..)) {
                    break;
                }
                if !std::mem::replace(greeted, true) {
                    let answer = frame(1, &hello(identity));
                    let _ = common.network.borrow_mut().write(*id, std::iter::once(&answer[..]));
                    common.network.borrow_mut().faults.note(Fault::StockSwallows);
                }
            }
        }
    }
}

/// The body of a HELLO: version and identity.
fn hello(identity: Identity) -> Vec<u8> {
    [&[1][..], identity.as_bytes()].concat()
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32 + 1).to_be_bytes().to_vec();
    bytes.push(kind);
    bytes.extend_from_slice(body);
    bytes
}

/// Type and body of the first frame, and how long it is; nothing if it is not all there.
fn parse(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let length = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
    let body = bytes.get(4..4 + length)?;
    let (kind, body) = body.split_first()?;
    Some((*kind, body, 4 + length))
}
