//! What is on its way in the [`Network`], and what becomes of it: bytes that arrive or are held up, ends and resets, SYNs and their
//! answers.

use std::io::ErrorKind;
use std::net::SocketAddr;

use super::places::is_file;
use super::{Arrival, Event, Fault, Host, Id, MS, Mark, Network, Phase, S, Thing};

/// A SYN that finds no way is not sent again after this.
const SYN_GIVES_UP_NS: u64 = 120 * S;

impl Network {
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(id) => self.arrive(id),
            Event::Knock { from, to } => self.knock(from, to),
            Event::Answer { to, result } => self.answer(to, result),
            Event::Reset(id) => self.reset(id),
            Event::Ready(id) => self.notify(id),
            Event::Resolved { seat, token, result } => self.seats[seat.0].resolved.push_back((token, result)),
            Event::Poke(seat) => self.seats[seat.0].backlog = true,
        }
    }

    fn arrive(&mut self, id: Id) {
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
        end.pipe.armed = false;
        let (host, seat, twin) = (end.host, end.seat, end.twin);
        let local = self.is_local(id);
        let from = twin.and_then(|twin| self.end(twin)).map(|end| end.host);
        // Bounded: each round takes an arrival or ends.
        loop {
            let now_ns = self.now_ns;
            let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
            let Some(head) = end.pipe.arrivals.front() else { return };
            let mut not_before_ns = head.at_ns.max(end.pipe.stalled_until_ns);
            if local {
                // Nothing is in the way.
            } else if let Some(until_ns) = from.and_then(|from| self.cut_until_ns(from, host)) {
                // Sent again some time after the way is open.
                not_before_ns = not_before_ns.max(until_ns + self.dice.pick(0, 400 * MS));
            } else if not_before_ns <= now_ns && self.strikes(Fault::Stall, 300) {
                not_before_ns = now_ns + self.dice.pick(100 * MS, 10 * S);
            }
            let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
            if not_before_ns > now_ns {
                end.pipe.stalled_until_ns = not_before_ns;
                end.pipe.armed = true;
                return self.schedule(not_before_ns, Event::Arrive(id));
            }
            let Some(Arrival { mark, .. }) = end.pipe.arrivals.pop_front() else { return };
            if end.closed {
                end.pipe.bytes.clear();
                end.pipe.readable = 0;
                if let (Mark::Bytes(_), Some(twin), false) = (mark, twin, self.seats[seat.0].down && !local) {
                    let at_ns = now_ns + self.latency(id);
                    self.schedule(at_ns, Event::Reset(twin));
                }
                continue;
            }
            if end.error.is_some() {
                // After a reset nothing more is taken in: what came before it may have been cut off.
                end.pipe.bytes.truncate(end.pipe.readable);
                continue;
            }
            match mark {
                Mark::Bytes(len) => self.deliver(id, len),
                Mark::End => {
                    end.pipe.ended = true;
                    self.notify(id);
                }
                Mark::Reset => self.reset(id),
            }
        }
    }

    /// Bytes reach an end, unless something happens to the connection in the middle of them.
    fn deliver(&mut self, id: Id, len: usize) {
        let cuts = [(Fault::Reset, 400), (Fault::EndOfStream, 600), (Fault::HalfOpen, 1500)];
        let cuts = if self.is_local(id) { &[][..] } else { &cuts };
        let fate = cuts.iter().find(|&&(fault, one_in)| self.strikes(fault, one_in)).map(|&(fault, _)| fault);
        let arrived = if fate.is_some() { self.dice.pick(0, len as u64) as usize } else { len };
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
        end.pipe.readable += arrived;
        let twin = end.twin;
        self.note("arrive", u64::from(id.0), arrived as u64);
        match fate {
            Some(Fault::Reset) => self.reset_both(id),
            Some(Fault::EndOfStream) => [Some(id), twin].into_iter().flatten().for_each(|id| self.cut_off(id)),
            Some(_) => {
                for id in [Some(id), twin].into_iter().flatten() {
                    if let Thing::End(end) = &mut self.things[id.0 as usize] {
                        end.pipe.dead = true;
                        end.pipe.arrivals.clear();
                    }
                }
            }
            None => {}
        }
        self.notify(id);
    }

    /// The stream towards an end is over, and what it writes is answered with a reset.
    fn cut_off(&mut self, id: Id) {
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
        end.twin = None;
        end.pipe.ended = true;
        end.pipe.arrivals.clear();
        end.pipe.bytes.truncate(end.pipe.readable);
        self.notify(id);
    }

    pub(super) fn reset_both(&mut self, id: Id) {
        let twin = self.end(id).and_then(|end| end.twin);
        self.reset(id);
        if let Some(twin) = twin {
            let at_ns = self.now_ns + self.latency(id);
            self.schedule(at_ns, Event::Reset(twin));
        }
    }

    /// A reset reaches an end.
    fn reset(&mut self, id: Id) {
        let destroys = !self.is_local(id) && self.strikes(Fault::ResetDestroysUnread, 2);
        let Thing::End(end) = &mut self.things[id.0 as usize] else { return };
        if end.closed || end.error.is_some() {
            return;
        }
        end.error = Some(ErrorKind::ConnectionReset);
        if destroys {
            end.pipe.readable = 0;
        }
        end.pipe.arrivals.clear();
        end.pipe.bytes.truncate(end.pipe.readable);
        self.note("reset", u64::from(id.0), 0);
        self.notify(id);
    }

    /// A SYN arrives.
    fn knock(&mut self, from: Id, to: SocketAddr) {
        let Some(end) = self.end(from).filter(|end| !end.closed) else { return };
        let (host, target, local) = (end.host, Host::of(to), is_file(to));
        let name = if local { host.file(0) } else { SocketAddr::new(host.ip(), 1024 + from.0 as u16) };
        let cut_until_ns = |network: &Network, from, to| network.cut_until_ns(from, to).filter(|_| !local);
        if let Some(until_ns) = cut_until_ns(self, host, target) {
            if until_ns - self.now_ns < SYN_GIVES_UP_NS {
                let at_ns = until_ns + self.dice.pick(0, S);
                self.schedule(at_ns, Event::Knock { from, to });
            }
            return;
        }
        let listener = self.listeners.get(&to).copied();
        let down = self.seats.iter().any(|seat| seat.host == target && seat.down);
        if !local && listener.is_none() && (down || !self.seats.iter().any(|seat| seat.host == target)) {
            return;
        }
        let mut result = Err(ErrorKind::ConnectionRefused);
        if !local && self.strikes(Fault::ConnectUnreachable, 8) {
            result = Err(ErrorKind::HostUnreachable);
        } else if let Some(listener) = listener
            && (local || !self.strikes(Fault::ConnectRefused, 8))
            && let Thing::Listener { seat, .. } = &self.things[listener.0 as usize]
        {
            let seat = *seat;
            let conn = self.insert_end(seat, target, name, Phase::Open);
            if let Thing::End(end) = &mut self.things[conn.0 as usize] {
                end.twin = Some(from);
            }
            if let Thing::End(end) = &mut self.things[from.0 as usize] {
                end.twin = Some(conn);
            }
            if let Thing::Listener { pending, .. } = &mut self.things[listener.0 as usize] {
                pending.push_back(conn);
            }
            self.notify(listener);
            result = Ok(conn);
        }
        let mut at_ns = self.now_ns + self.latency(from);
        if let Some(until_ns) = cut_until_ns(self, target, host) {
            at_ns = until_ns + self.dice.pick(0, S);
        }
        if let Thing::End(end) = &mut self.things[from.0 as usize] {
            end.pipe.last_ns = end.pipe.last_ns.max(at_ns);
        }
        self.schedule(at_ns, Event::Answer { to: from, result });
    }

    fn answer(&mut self, to: Id, result: Result<Id, ErrorKind>) {
        let Thing::End(end) = &mut self.things[to.0 as usize] else { return };
        if end.closed {
            // Nobody waits for it any more: the other end learns by a reset.
            if let Ok(conn) = result {
                self.schedule(self.now_ns, Event::Reset(conn));
            }
            return;
        }
        end.state = match result {
            Ok(_) => Phase::Open,
            Err(kind) => Phase::Failed(kind),
        };
        self.note("answer", u64::from(to.0), u64::from(result.is_ok()));
        self.notify(to);
    }
}
