//! The options of who publishes, `pub` and `relay`: what is done about peers that do not keep up or come late, and what
//! the key of a message is. They end in settings of the socket; nothing is kept here.

use std::str::FromStr;
use std::time::Duration;

use aiomsg_uring::{LagLimit, Replay, Retention, SendError, SlowPolicy, SocketBuilder, Stats, Unkeyed, blocking};
use bytes::Bytes;
use clap::{Args, ValueEnum};

use crate::connection::seconds;
use crate::terminal::{grouped, note};

/// How long a subscriber may hold a publisher, whose log is full, before it is disconnected: people pause `less` for
/// longer than the library's default of 1 s.
const STALL_MAX: Duration = Duration::from_secs(10);
/// What is kept for those who come late where no option says how much: half of the log, in bytes.
const RETAINED_BYTES: usize = 16 << 20;

/// What of messages goes to whom, and when.
#[derive(Args, Clone, Debug)]
pub(crate) struct Publishing {
    /// When a peer does not keep up: wait for it, 10 s at most, then disconnect it; drop its oldest or its newest messages; disconnect it after a second; or conflate: give it the newest message of each key, see --key. Publish mode only
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = SlowChoice::Wait)]
    slow_peers: SlowChoice,
    /// How many messages a peer may be behind before that [default: what half of the log holds, 16 MiB; to wait, all of it]
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u64).range(1..))]
    lag_max: Option<u64>,
    /// What the key of a message is: its first word (up to white space or a comma), or its first so many bytes
    #[arg(long, value_name = "word|BYTES")]
    key: Option<KeyRule>,
    /// How many keys there may be
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    keys_max: usize,
    /// Where a peer begins: with what is sent next; with the oldest message that is retained; or with the newest of each key, see --key. Publish mode only
    #[arg(long, value_enum, value_name = "FROM", default_value_t = ReplayChoice::Live)]
    replay: ReplayChoice,
    /// How many messages are retained for --replay oldest [default: what half of the log holds, 16 MiB]
    #[arg(long, value_name = "MESSAGES")]
    retain: Option<u64>,
    /// For how long they are
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    retain_age: Option<Duration>,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum SlowChoice {
    Wait,
    DropOldest,
    DropNewest,
    Disconnect,
    Conflate,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum ReplayChoice {
    Live,
    Oldest,
    Snapshot,
}

impl Publishing {
    /// The settings with this in them.
    pub(crate) fn apply(&self, settings: SocketBuilder) -> SocketBuilder {
        let policy = match self.slow_peers {
            SlowChoice::Wait => SlowPolicy::Block { max_wait: STALL_MAX },
            SlowChoice::DropOldest => SlowPolicy::DropOldest,
            SlowChoice::DropNewest => SlowPolicy::DropNewest,
            SlowChoice::Disconnect => SlowPolicy::Disconnect { after: Duration::from_secs(1) },
            SlowChoice::Conflate => SlowPolicy::Conflate { unkeyed: Unkeyed::Block { max_wait: STALL_MAX } },
        };
        let (replay, retention) = match self.replay {
            ReplayChoice::Live => (Replay::Live, Retention::default()),
            ReplayChoice::Snapshot => (Replay::Snapshot, Retention::default()),
            ReplayChoice::Oldest => {
                let bytes = (self.retain.is_none() && self.retain_age.is_none()).then_some(RETAINED_BYTES);
                (Replay::Oldest, Retention { bytes, messages: self.retain, age: self.retain_age })
            }
        };
        settings
            .slow_policy(policy)
            .lag_limit(LagLimit { messages: self.lag_max, ..LagLimit::default() })
            .keys_max(self.keys_max)
            .replay(replay)
            .retain(retention)
    }

    /// What has no effect as it is given, and what to do about it. `keyed`: messages may bring keys of their own.
    pub(crate) fn check(&self, keyed: bool) -> Result<(), String> {
        let option = match (self.slow_peers, self.replay) {
            (SlowChoice::Conflate, _) => Some("--slow-peers conflate"),
            (_, ReplayChoice::Snapshot) => Some("--replay snapshot"),
            _ => None,
        };
        if let Some(option) = option.filter(|_| self.key.is_none() && !keyed) {
            return Err(format!("{option} goes by the keys of messages: say with --key what they are"));
        }
        if self.replay != ReplayChoice::Oldest && (self.retain.is_some() || self.retain_age.is_some()) {
            return Err(
                "what is retained is for --replay oldest: add that, or leave --retain and --retain-age out".into()
            );
        }
        Ok(())
    }

    /// What the key of this message is, by its content.
    pub(crate) fn key_of<'a>(&self, payload: &'a [u8]) -> Option<&'a [u8]> {
        self.key.map(|rule| rule.of(payload))
    }

    /// Publishes it, under its key if it has one.
    pub(crate) fn send(&self, socket: &blocking::Socket, message: Bytes) -> Result<(), SendError> {
        match self.key {
            Some(rule) => socket.send_keyed(rule.of(&message.clone()), message),
            None => socket.send(message),
        }
    }
}

/// After a signal: says what the program does not end for yet, if there is anything.
pub(crate) fn tell_rest(stats: &Stats, linger: Duration) {
    let rest = stats.messages_queued + stats.messages_pending;
    if rest > 0 {
        let seconds = linger.as_secs_f64();
        let rest = grouped(rest);
        note(format!(
            "{rest} messages are still to be sent, for {seconds} s at most; a second signal ends this at once"
        ));
    }
}

/// How a message tells its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyRule {
    FirstWord,
    FirstBytes(usize),
}

impl KeyRule {
    fn of(self, payload: &[u8]) -> &[u8] {
        let len = match self {
            Self::FirstWord => payload.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b','),
            Self::FirstBytes(len) => Some(len),
        };
        &payload[..len.unwrap_or(usize::MAX).min(payload.len())]
    }
}

impl FromStr for KeyRule {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(len @ 1..) => Ok(Self::FirstBytes(len)),
            _ if text == "word" => Ok(Self::FirstWord),
            _ => Err("`word` is needed, or a number of bytes from 1 on"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_tells_its_key() {
        let cases: [(&str, &[u8], &[u8]); 6] = [
            ("word", b"EURUSD 1.1", b"EURUSD"),
            ("word", b"EURUSD,1.1 x", b"EURUSD"),
            ("word", b"EURUSD", b"EURUSD"),
            ("word", b"", b""),
            ("3", b"EURUSD", b"EUR"),
            ("3", b"EU", b"EU"),
        ];
        for (rule, payload, key) in cases {
            assert_eq!(rule.parse::<KeyRule>().unwrap().of(payload), key, "{rule}");
        }
        for bad in ["0", "-1", "words", ""] {
            assert!(bad.parse::<KeyRule>().is_err(), "{bad}");
        }
    }
}
