//! One real shard on a simulated network without faults, where the world is too much: whoever asks about a single socket plays its
//! peers and lets time pass.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::backend::sim::{BackendId, Dice, Faults, Host, Network, SharedNetwork, SimBackend, Weather, open_ring};
use crate::backend::{Backend, PoolOptions};
use crate::engine::Engine;
use crate::shard::{Port, Shard, Wait};

/// Turns in which no time passes, before the shard counts as spinning.
const TURNS_MAX: usize = 10_000;

/// A shard, its place in the network, and whether it waits there.
pub(crate) struct LoneShard {
    pub(crate) network: SharedNetwork,
    shard: Shard,
    port: Arc<Port>,
    seat: BackendId,
    asleep: bool,
}

impl LoneShard {
    /// On a simulated ring or on the plain simulated backend, with the engine that sockets are built on. Connections take 0.1 to 1 ms
    /// and hold `window_bytes`.
    pub(crate) fn new(ring: bool, window_bytes: usize, slab_count: usize) -> (LoneShard, Engine) {
        let mut faults = Faults::draw(&mut Dice::new(7));
        faults.heal();
        let weather = Weather { latency_ns: (100_000, 1_000_000), window_bytes };
        let network = Rc::new(RefCell::new(Network::new(7, faults, weather)));
        let pool = PoolOptions { slab_count, slab_bytes: 4096 };
        let made: std::io::Result<(Box<dyn Backend>, _)> = if ring {
            open_ring(Rc::clone(&network), Host(0), pool)
        } else {
            SimBackend::new(Rc::clone(&network), Host(0), pool).map(|(plain, seat)| (Box::new(plain) as _, seat))
        };
        let (backend, seat) = made.expect("a pool of legal sizes");
        let port = Arc::new(Port::new(64, 8));
        let ports: Arc<[Arc<Port>]> = [Arc::clone(&port)].into();
        let shard = Shard::new(backend, Arc::clone(&ports), 0, 7);
        (LoneShard { network, shard, port, seat, asleep: false }, Engine::over(ports, 8, 7))
    }

    /// When it wants to be turned again though nothing arrives, in nanoseconds.
    pub(crate) fn waits_until_ns(&self) -> u64 {
        self.network.borrow().waiting_until_ns(self.seat)
    }

    /// Turns it until it has nothing to do.
    pub(crate) fn turns(&mut self) {
        for _ in 0..TURNS_MAX {
            let network = self.network.borrow();
            if self.asleep && !network.has_work(self.seat) && network.waiting_until_ns(self.seat) > network.now_ns() {
                return;
            }
            drop(network);
            if std::mem::take(&mut self.asleep) {
                self.port.doorbell().awake();
                self.shard.waited();
            }
            self.network.borrow_mut().begin_turn(self.seat);
            self.shard.turn(Wait::Until(u64::MAX)).expect("a simulated backend does not break");
            if self.waits_until_ns() > 0 {
                self.asleep = true;
                self.port.doorbell().prepare_sleep();
            }
        }
        panic!("the shard spins");
    }
}
