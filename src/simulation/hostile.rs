//! Connections that are no good: junk, silence, lies. They are ends of the simulated network without an engine behind them, and
//! must change nothing for anybody else: every other invariant is the checker of that (I17).

use std::net::SocketAddr;

use super::node::Common;
use crate::backend::sim::{BackendId, Dice, Fault, Id};
use crate::protocol::Identity;

/// The kinds, by the name of their fault.
pub(super) const KINDS: [Fault; 8] = [
    Fault::HostileJunk,
    Fault::HostileSlow,
    Fault::HostileVersion,
    Fault::HostileTruncatedHello,
    Fault::HostileLength,
    Fault::HostileStolenIdentity,
    Fault::HostileUnknownFrames,
    Fault::HostileFlood,
];

const MS: u64 = 1_000_000;

/// One connection.
pub(super) struct Hostile {
    pub(super) common: Common,
    pub(super) seat: BackendId,
    pub(super) to: SocketAddr,
    pub(super) kind: Fault,
    /// Somebody's, to be stolen.
    pub(super) victim: Identity,
    pub(super) dice: Dice,
}

impl Hostile {
    /// Connects, misbehaves, stays for a while, and goes.
    pub(super) async fn misbehave(mut self) {
        let connected = self.common.network.borrow_mut().connect(self.seat, self.to);
        let Ok(id) = connected else { return };
        for _ in 0..100 {
            self.common.sleep(30 * MS).await;
            if self.common.network.borrow().connected(id).is_some_and(|result| result.is_ok()) {
                break;
            }
        }
        for piece in self.pieces() {
            if !self.write(id, &piece).await {
                break;
            }
        }
        for _ in 0..self.dice.pick(0, 40) {
            self.read_away(id);
            self.common.sleep(self.dice.clone().pick(1, 500) * MS).await;
        }
        self.common.network.borrow_mut().close(id);
    }

    /// What it sends; it waits a little between the pieces.
    fn pieces(&mut self) -> Vec<Vec<u8>> {
        let own = Identity::from_seed(self.dice.next());
        let mut random = |len: u64| (0..len).map(|_| self.dice.next() as u8).collect::<Vec<u8>>();
        match self.kind {
            Fault::HostileJunk => {
                let len = random(1)[0];
                vec![random(u64::from(len) + 1), random(4000)]
            }
            Fault::HostileSlow => hello(own, 1)[..10].iter().map(|byte| vec![*byte]).collect(),
            Fault::HostileVersion => vec![hello(own, 2)],
            Fault::HostileTruncatedHello => vec![hello(own, 1)[..usize::from(random(1)[0]) % 22].to_vec()],
            Fault::HostileLength => {
                let mut bytes = hello(own, 1);
                let length = [0x8000_0000u32, u32::MAX, 64 << 20][usize::from(random(1)[0]) % 3];
                bytes.extend_from_slice(&length.to_be_bytes());
                bytes.push(3);
                vec![bytes, random(100)]
            }
            Fault::HostileStolenIdentity => vec![hello(self.victim, 1)],
            Fault::HostileUnknownFrames => {
                let mut bytes = hello(own, 1);
                bytes.extend_from_slice(&[0; 4]);
                bytes.extend_from_slice(&hello(own, 1));
                for kind in [0u8, 6, 0xE0, 4, 5, 1] {
                    let body = random(u64::from(kind) % 9);
                    bytes.extend_from_slice(&(body.len() as u32 + 1).to_be_bytes());
                    bytes.push(kind);
                    bytes.extend_from_slice(&body);
                }
                vec![bytes.clone(), bytes[22..].to_vec()]
            }
            _ => {
                let mut bytes = hello(own, 1);
                for _ in 0..200 {
                    bytes.extend_from_slice(&[0, 0, 0, 1, 2]);
                    bytes.extend_from_slice(&[0, 0, 0, 17, 5]);
                    bytes.extend_from_slice(&random(16));
                }
                vec![bytes]
            }
        }
    }

    /// False when the connection is gone.
    async fn write(&mut self, id: Id, bytes: &[u8]) -> bool {
        let mut at = 0;
        for _ in 0..200 {
            self.read_away(id);
            let written = self.common.network.borrow_mut().write(id, std::iter::once(&bytes[at..]));
            match written {
                Ok(len) => at += len,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
            if at == bytes.len() {
                let pause_ns = self.dice.magnitude(0, 800 * MS);
                self.common.sleep(pause_ns).await;
                return true;
            }
            self.common.sleep(20 * MS).await;
        }
        false
    }

    fn read_away(&mut self, id: Id) {
        let mut bytes = [0; 4096];
        // Bounded: what has arrived.
        while let Ok(1..) = self.common.network.borrow_mut().read(id, &mut bytes) {}
    }
}

fn hello(identity: Identity, version: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 18, 1, version];
    bytes.extend_from_slice(identity.as_bytes());
    bytes
}
