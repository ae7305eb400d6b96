//! What the world does to the [`Network`]: it moves the time, cuts ways and heals them, ends processes, and looks who has something
//! to do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::places::is_file;
use super::{BackendId, Event, Host, Id, Mark, Network, SimStream, Thing};

impl Network {
    /// When the next thing happens by itself; `u64::MAX` if nothing will.
    pub(crate) fn next_event_ns(&self) -> u64 {
        self.events.first_key_value().map_or(u64::MAX, |((at_ns, _), _)| *at_ns)
    }

    /// Moves the clock, and lets happen what is due.
    pub(crate) fn advance(&mut self, to_ns: u64) {
        self.now_ns = self.now_ns.max(to_ns);
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now_ns {
                break;
            }
            let event = entry.remove();
            self.events_done += 1;
            self.happen(event);
        }
    }

    /// Closes the ends that were dropped on the way from one driver to another.
    pub(crate) fn close_dropped(&mut self) {
        let dropped: Vec<Id> =
            self.transit.iter().filter(|(_, alive)| alive.strong_count() == 0).map(|(id, _)| *id).collect();
        self.transit.retain(|(_, alive)| alive.strong_count() > 0);
        dropped.into_iter().for_each(|id| self.close(id));
    }

    /// A driver gives an end away.
    pub(crate) fn give(&mut self, id: Id) -> SimStream {
        let alive = Arc::new(());
        self.transit.push((id, Arc::downgrade(&alive)));
        SimStream { id, _alive: alive }
    }

    /// Another one takes it, and learns who is at the other end.
    pub(crate) fn take(&mut self, seat: BackendId, stream: &SimStream) -> (Id, SocketAddr) {
        self.transit.retain(|(id, _)| *id != stream.id);
        let mut remote = SocketAddr::new(Host(0).ip(), 0);
        if let Thing::End(end) = &mut self.things[stream.id.0 as usize] {
            (end.seat, end.queued, remote) = (seat, false, end.remote);
        }
        self.note("moved", u64::from(stream.id.0), seat.0 as u64);
        (stream.id, remote)
    }

    /// Whether a driver has something to do now.
    pub(crate) fn has_work(&self, seat: BackendId) -> bool {
        let seat = &self.seats[seat.0];
        seat.backlog || !seat.ready.is_empty() || !seat.resolved.is_empty() || seat.bell.0.load(Ordering::SeqCst)
    }

    /// Until when a driver waits; 0 if it does not.
    pub(crate) fn waiting_until_ns(&self, seat: BackendId) -> u64 {
        self.seats[seat.0].waiting_until_ns
    }

    /// Listeners and connections that a driver holds.
    pub(crate) fn open_things(&self, seat: BackendId) -> usize {
        let open = |thing: &&Thing| match thing {
            Thing::Listener { seat: owner, .. } => *owner == seat,
            Thing::End(end) => end.seat == seat && !end.closed,
            Thing::Closed => false,
        };
        self.things.iter().filter(open).count()
    }

    /// Packets from one host do not reach another until then.
    pub(crate) fn cut(&mut self, from: Host, to: Host, until_ns: u64) {
        self.note("cut", u64::from(from.0) << 8 | u64::from(to.0), until_ns);
        self.cuts.insert((from, to), until_ns);
    }

    /// All ways are open again, and what was stalled goes on.
    pub(crate) fn heal(&mut self) {
        self.note("heal", 0, 0);
        self.faults.heal();
        self.cuts.clear();
        for at in 0..self.things.len() {
            if let Thing::End(end) = &mut self.things[at] {
                end.pipe.stalled_until_ns = 0;
                let (id, now_ns) = (Id(at as u32), self.now_ns);
                self.schedule(now_ns, Event::Arrive(id));
            }
        }
    }

    /// All connections of a driver are reset.
    pub(crate) fn reset_all(&mut self, seat: BackendId) {
        for at in 0..self.things.len() {
            if matches!(&self.things[at], Thing::End(end) if end.seat == seat && !end.closed && end.twin.is_some())
                && !self.is_local(Id(at as u32))
            {
                self.reset_both(Id(at as u32));
            }
        }
    }

    /// A process ends without a word: its peers get resets, or (a power loss) nothing until the host is up again.
    pub(crate) fn kill(&mut self, seat: BackendId, power_loss: bool) {
        self.note("kill", seat.0 as u64, u64::from(power_loss));
        self.seats[seat.0].down = power_loss;
        for at in 0..self.things.len() {
            match &mut self.things[at] {
                Thing::Listener { address, seat: owner, .. } if *owner == seat => {
                    let address = *address;
                    self.listeners.remove(&address);
                    self.things[at] = Thing::Closed;
                }
                Thing::End(end) if end.seat == seat && !end.closed => {
                    end.closed = true;
                    let twin = end.twin;
                    // Whoever is on the same machine learns of it.
                    let silent = power_loss && !is_file(end.remote);
                    if let (false, Some(twin)) = (silent, twin) {
                        self.mark(twin, Mark::Reset);
                    }
                }
                _ => {}
            }
        }
    }

    /// A host is up again: what still arrives for its old connections is answered with resets.
    pub(crate) fn power_on(&mut self, seat: BackendId) {
        self.seats[seat.0].down = false;
    }
}
