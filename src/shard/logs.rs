//! What is logged of events, at most so many lines of a kind a second: a peer that connects a thousand times a second to be refused must
//! not fill a disk. What was suppressed is counted, and said with the first line after that second. Payloads are never logged.

use std::sync::{Mutex, PoisonError};

use super::event::{DisconnectReason, Event};
use crate::protocol::Identity;

/// Lines of a kind of event in a second, for a socket.
const LINES_MAX: u64 = 10;
const SECOND_NS: u64 = 1_000_000_000;
/// As many as [`kind_of`] tells apart.
const KINDS: usize = 8;

/// How much a socket has logged of late.
#[derive(Default)]
pub(crate) struct LogLimit {
    /// Of each kind; held for a moment, for nothing that happens per message.
    seconds: Mutex<[Second; KINDS]>,
}

#[derive(Clone, Copy, Default)]
struct Second {
    began_ns: u64,
    lines: u64,
}

/// The kind of an event with its name, and whether somebody should see it.
fn kind_of(event: &Event) -> (usize, &'static str, bool) {
    match event {
        Event::Connected { .. } | Event::Recovered { .. } | Event::CaughtUp { .. } => (0, "connected", false),
        Event::Reconnecting { .. } => (1, "reconnecting", false),
        Event::Disconnected { reason, .. } => match reason {
            DisconnectReason::ClosedHere | DisconnectReason::DisconnectedHere | DisconnectReason::ClosedByPeer => {
                (2, "disconnected", false)
            }
            _ => (3, "disconnected", true),
        },
        Event::Rejected { .. } => (4, "rejected", true),
        Event::Conflated { .. } => (5, "conflated", false),
        Event::Dropped { .. } | Event::Expired { .. } => (6, "dropped", true),
        _ => (7, "slow", true),
    }
}

impl LogLimit {
    /// Logs an event, or counts it as suppressed.
    pub(super) fn log(&self, socket: Identity, event: &Event, now_ns: u64) {
        let (kind, name, is_warning) = kind_of(event);
        let Some(suppressed) = self.admit(kind, now_ns) else { return };
        if is_warning {
            tracing::warn!(%socket, "{event}");
        } else {
            tracing::debug!(%socket, "{event}");
        }
        if suppressed > 0 && is_warning {
            tracing::warn!(%socket, "suppressed {suppressed} lines before this: {name}");
        } else if suppressed > 0 {
            tracing::debug!(%socket, "suppressed {suppressed} lines before this: {name}");
        }
    }

    /// Whether a line of this kind may be logged now; with how many before it were not.
    fn admit(&self, kind: usize, now_ns: u64) -> Option<u64> {
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let second = &mut seconds[kind];
        second.lines += 1;
        if second.lines > 1 && now_ns.saturating_sub(second.began_ns) < SECOND_NS {
            return (second.lines <= LINES_MAX).then_some(0);
        }
        let suppressed = (second.lines - 1).saturating_sub(LINES_MAX);
        *second = Second { began_ns: now_ns, lines: 1 };
        Some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_count() {
        let limit = LogLimit::default();
        let begun_ns = 5 * SECOND_NS;
        let lines = (0..1000).filter(|ms| limit.admit(4, begun_ns + ms * 1_000_000).is_some()).count();
        assert_eq!(lines as u64, LINES_MAX);
        assert_eq!(limit.admit(6, begun_ns + 1), Some(0), "other kinds have lines of their own");
        assert_eq!(limit.admit(4, begun_ns + SECOND_NS), Some(1000 - LINES_MAX));
        assert_eq!(limit.admit(4, begun_ns + SECOND_NS + 1), Some(0));
        assert_eq!(limit.admit(4, begun_ns + 2 * SECOND_NS), Some(0));
    }
}
