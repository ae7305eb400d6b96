//! Counters as metrics: one table of names, from which the text that Prometheus reads is made and, with the feature `metrics`, what
//! the `metrics` facade is told. Plain data in, text out: it asks no socket anything and knows no server.

use std::fmt;
use std::time::Duration;

use crate::shard::{Drops, PeerStats, RoundTrips, ShardStats, Stats};

/// Peers listed one by one unless [`Metrics::peers_max`] says otherwise.
const PEERS_MAX: usize = 100;

/// Snapshots of sockets and shards, as metrics. Its `Display` is Prometheus' text format, version 0.0.4
/// (`Content-Type: text/plain; version=0.0.4`). The [names](crate::manual::metrics) are in the manual.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use aiomsg_uring::{Engine, Metrics, Socket};
///
/// let engine = Engine::new()?;
/// let quotes = Socket::builder().engine(&engine).build()?;
/// let text = Metrics::new()
///     .socket("quotes", quotes.stats(), quotes.peer_stats())
///     .shards(engine.stats())
///     .to_string();
/// assert!(text.contains("aiomsg_peers{socket=\"quotes\"} 0"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Metrics {
    sockets: Vec<(String, Stats)>,
    /// With the socket's name.
    peers: Vec<(String, PeerStats)>,
    shards: Vec<ShardStats>,
    peers_max: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics { sockets: Vec::new(), peers: Vec::new(), shards: Vec::new(), peers_max: PEERS_MAX }
    }
}

impl Metrics {
    /// Nothing yet.
    pub fn new() -> Metrics {
        Metrics::default()
    }

    /// Adds a socket under a name of the application's choice (label `socket`), with its peers.
    pub fn socket(mut self, name: impl Into<String>, stats: Stats, peers: Vec<PeerStats>) -> Metrics {
        let name = name.into();
        self.peers.extend(peers.into_iter().map(|peer| (name.clone(), peer)));
        self.sockets.push((name, stats));
        self
    }

    /// Adds the shards of an engine (label `shard`, numbered from 0).
    pub fn shards(mut self, shards: impl IntoIterator<Item = ShardStats>) -> Metrics {
        self.shards.extend(shards);
        self
    }

    /// Lists this many peers at most, those that are furthest behind: each is dozens of lines. 100 unless set; all count in their
    /// socket's metrics whether they are listed or not.
    pub fn peers_max(mut self, peers_max: usize) -> Metrics {
        self.peers_max = peers_max;
        self
    }

    /// Tells the `metrics` facade's recorder the same names and values. To be called now and then, every few seconds, say.
    #[cfg(feature = "metrics")]
    pub fn record(&self) {
        self.visit(&mut Facade);
    }

    fn visit(&self, out: &mut impl Output) {
        let mut peers: Vec<&(String, PeerStats)> = self.peers.iter().collect();
        peers.sort_by_key(|(_, peer)| std::cmp::Reverse((peer.lag.messages, peer.lag.bytes)));
        peers.truncate(self.peers_max);
        let socket_label = |name: &String| vec![("socket", name.clone())];
        let peer_labels =
            |name: &String, peer: &PeerStats| vec![("socket", name.clone()), ("peer", peer.identity.to_string())];
        for metric in SOCKET {
            metric.tell(out, self.sockets.iter().map(|(name, stats)| (socket_label(name), stats)));
        }
        for metric in PEER {
            metric.tell(out, peers.iter().map(|(name, peer)| (peer_labels(name, peer), peer)));
        }
        for metric in SHARD {
            let shards = self.shards.iter().enumerate();
            metric.tell(out, shards.map(|(number, stats)| (vec![("shard", number.to_string())], stats)));
        }
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Text { out: f, result: Ok(()) };
        self.visit(&mut text);
        text.result
    }
}

/// One row of the tables: a name, what it means, and how it is read from a snapshot.
struct Metric<T: 'static> {
    name: &'static str,
    help: &'static str,
    read: Read<T>,
}

enum Read<T> {
    /// Only grows.
    Count(fn(&T) -> u64),
    /// Goes up and down.
    Level(fn(&T) -> u64),
    Seconds(fn(&T) -> Duration),
    /// Counts with the label `cause`.
    Causes(fn(&T) -> Drops),
    /// A histogram.
    Times(fn(&T) -> RoundTrips),
}

type Labels = Vec<(&'static str, String)>;

/// Where metrics go.
trait Output {
    /// The values that follow are of this metric.
    fn begin(&mut self, name: &'static str, help: &'static str, kind: &'static str);
    fn count(&mut self, name: &'static str, labels: &Labels, value: u64);
    fn level(&mut self, name: &'static str, labels: &Labels, value: f64);
    fn times(&mut self, name: &'static str, labels: &Labels, times: &RoundTrips);
}

impl<T> Metric<T> {
    fn tell<'a>(&self, out: &mut impl Output, all: impl ExactSizeIterator<Item = (Labels, &'a T)>) {
        if all.len() == 0 {
            return;
        }
        out.begin(self.name, self.help, self.kind());
        for (mut labels, stats) in all {
            match self.read {
                Read::Count(read) => out.count(self.name, &labels, read(stats)),
                Read::Level(read) => out.level(self.name, &labels, read(stats) as f64),
                Read::Seconds(read) => out.level(self.name, &labels, read(stats).as_secs_f64()),
                Read::Times(read) => out.times(self.name, &labels, &read(stats)),
                Read::Causes(read) => {
                    for (cause, messages) in read(stats).iter() {
                        labels.push(("cause", cause.name().to_owned()));
                        out.count(self.name, &labels, messages);
                        labels.pop();
                    }
                }
            }
        }
    }

    fn kind(&self) -> &'static str {
        match self.read {
            Read::Count(_) | Read::Causes(_) => "counter",
            Read::Level(_) | Read::Seconds(_) => "gauge",
            Read::Times(_) => "histogram",
        }
    }
}

/// Prometheus' text.
struct Text<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    result: fmt::Result,
}

impl Text<'_, '_> {
    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &Labels,
        more: Option<(&str, &str)>,
        value: impl fmt::Display,
    ) {
        let mut text = format!("{name}{suffix}{{");
        let own = labels.iter().map(|(label, value)| (*label, value.as_str()));
        for (at, (label, value)) in own.chain(more).enumerate() {
            let comma = if at > 0 { "," } else { "" };
            text += &format!("{comma}{label}=\"{}\"", escaped(value));
        }
        self.result = self.result.and_then(|()| writeln!(self.out, "{text}}} {value}"));
    }
}

/// As the format has it within quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Output for Text<'_, '_> {
    fn begin(&mut self, name: &'static str, help: &'static str, kind: &'static str) {
        self.result = self.result.and_then(|()| writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn count(&mut self, name: &'static str, labels: &Labels, value: u64) {
        self.line(name, "", labels, None, value);
    }

    fn level(&mut self, name: &'static str, labels: &Labels, value: f64) {
        self.line(name, "", labels, None, value);
    }

    fn times(&mut self, name: &'static str, labels: &Labels, times: &RoundTrips) {
        let mut so_far = 0;
        for (bound, count) in times.buckets() {
            so_far += count;
            self.line(name, "_bucket", labels, Some(("le", &bound.as_secs_f64().to_string())), so_far);
        }
        self.line(name, "_bucket", labels, Some(("le", "+Inf")), times.count);
        self.line(name, "_sum", labels, None, times.total.as_secs_f64());
        self.line(name, "_count", labels, None, times.count);
    }
}

/// The facade. It takes no finished histogram: of that it is told the count and the sum.
#[cfg(feature = "metrics")]
struct Facade;

#[cfg(feature = "metrics")]
impl Output for Facade {
    fn begin(&mut self, name: &'static str, help: &'static str, kind: &'static str) {
        match kind {
            "counter" => ::metrics::describe_counter!(name, help),
            "gauge" => ::metrics::describe_gauge!(name, help),
            _ => {
                ::metrics::describe_counter!(format!("{name}_count"), help);
                ::metrics::describe_gauge!(format!("{name}_sum"), help);
            }
        }
    }

    fn count(&mut self, name: &'static str, labels: &Labels, value: u64) {
        ::metrics::counter!(name, labels).absolute(value);
    }

    fn level(&mut self, name: &'static str, labels: &Labels, value: f64) {
        ::metrics::gauge!(name, labels).set(value);
    }

    fn times(&mut self, name: &'static str, labels: &Labels, times: &RoundTrips) {
        ::metrics::counter!(format!("{name}_count"), labels).absolute(times.count);
        ::metrics::gauge!(format!("{name}_sum"), labels).set(times.total.as_secs_f64());
    }
}

macro_rules! metrics {
    ($table:ident, $of:ty: $($name:literal $kind:ident $help:literal |$stats:ident| $value:expr;)+) => {
        const $table: &[Metric<$of>] = &[$(
            Metric { name: $name, help: $help, read: Read::$kind(|$stats: &$of| $value) },
        )+];
    };
}

metrics! { SOCKET, Stats:
    "aiomsg_peers" Level "Peers connected now." |s| s.peers;
    "aiomsg_messages_sent_total" Count "Messages accepted, each once." |s| s.messages_sent;
    "aiomsg_messages_addressed_total" Count "Messages accepted, once for each peer that they are for." |s| s.messages_addressed;
    "aiomsg_messages_delivered_total" Count "Messages handed to the kernel, or acknowledged (AT_LEAST_ONCE), per peer." |s| s.messages_delivered;
    "aiomsg_messages_dropped_total" Causes "Messages dropped, per peer that misses them, by cause." |s| s.drops;
    "aiomsg_messages_conflated_total" Count "Messages replaced by a newer one with the same key, per peer." |s| s.messages_conflated;
    "aiomsg_messages_expired_total" Count "Messages that expired without an acknowledgement." |s| s.messages_expired;
    "aiomsg_messages_queued" Level "Messages that wait here to be handed to the kernel, per peer." |s| s.messages_queued;
    "aiomsg_messages_pending" Level "Messages that wait for their acknowledgement." |s| s.messages_pending;
    "aiomsg_messages_acknowledged_total" Count "Messages acknowledged by their receivers." |s| s.messages_acknowledged;
    "aiomsg_messages_resent_total" Count "Messages sent again for want of an acknowledgement." |s| s.messages_resent;
    "aiomsg_duplicates_removed_total" Count "Messages received twice and not delivered the second time." |s| s.duplicates_removed;
    "aiomsg_messages_received_total" Count "Messages received." |s| s.messages_received;
    "aiomsg_accepted_bytes_total" Count "Bytes of accepted messages, each once, framing included." |s| s.bytes_accepted;
    "aiomsg_sent_bytes_total" Count "Bytes handed to the kernel, framing and control included." |s| s.bytes_sent;
    "aiomsg_received_bytes_total" Count "Bytes received from the kernel, framing and control included." |s| s.bytes_received;
    "aiomsg_queued_bytes" Level "Bytes that wait here to be handed to the kernel, per peer." |s| s.bytes_queued;
    "aiomsg_pending_bytes" Level "Bytes that wait for an acknowledgement." |s| s.bytes_pending;
    "aiomsg_log_bytes" Level "Bytes of outbound log in use." |s| s.log_bytes;
    "aiomsg_keys" Level "Keys that have a last value." |s| s.keys;
    "aiomsg_keyed_bytes" Level "Bytes of keys and their last values, tables included." |s| s.keyed_bytes;
    "aiomsg_receive_queue_bytes" Level "Bytes received and not yet taken by the application." |s| s.receive_bytes;
    "aiomsg_lag_messages" Level "Messages that the hindmost peer is behind." |s| s.lag.messages;
    "aiomsg_lag_bytes" Level "Bytes that the hindmost peer is behind." |s| s.lag.bytes;
    "aiomsg_lag_seconds" Seconds "For how long the oldest message has waited." |s| s.lag.age;
    "aiomsg_skew_messages" Level "Messages between the foremost and the hindmost peer." |s| s.skew.messages;
    "aiomsg_skew_bytes" Level "Bytes between the foremost and the hindmost peer." |s| s.skew.bytes;
    "aiomsg_skew_seconds" Seconds "Time between the foremost and the hindmost peer." |s| s.skew.age;
    "aiomsg_round_trip_seconds" Times "From the handing over of a message to its acknowledgement." |s| s.round_trips;
    "aiomsg_connects_total" Count "Links that became peers." |s| s.connects;
    "aiomsg_reconnects_total" Count "Among them, of peers that had been connected before." |s| s.reconnects;
    "aiomsg_disconnects_total" Count "Links of peers that ended." |s| s.disconnects;
    "aiomsg_rejects_total" Count "Connections refused before they became peers." |s| s.rejects;
    "aiomsg_receive_pauses_total" Count "Times that a full receive queue stopped the reading of a link." |s| s.receive_pauses;
    "aiomsg_send_waits_total" Count "Times that a sender found the log full." |s| s.send_waits;
    "aiomsg_events_missed_total" Count "Events that nobody read in time." |s| s.events_missed;
}

metrics! { PEER, PeerStats:
    "aiomsg_peer_addressed_total" Count "Messages for this peer since it connected, as all that follows." |p| p.messages_addressed;
    "aiomsg_peer_delivered_total" Count "Messages handed to the kernel for it, or acknowledged by it (AT_LEAST_ONCE)." |p| p.messages_delivered;
    "aiomsg_peer_dropped_total" Causes "Messages that it will never get, by cause." |p| p.drops;
    "aiomsg_peer_conflated_total" Count "Messages for it replaced by a newer one with the same key." |p| p.messages_conflated;
    "aiomsg_peer_expired_total" Count "Messages for it that expired without an acknowledgement." |p| p.messages_expired;
    "aiomsg_peer_pending" Level "Messages that wait for its acknowledgement." |p| p.messages_pending;
    "aiomsg_peer_resent_total" Count "Messages sent to it again for want of an acknowledgement." |p| p.messages_resent;
    "aiomsg_peer_duplicates_removed_total" Count "Messages received from it twice and not delivered the second time." |p| p.duplicates_removed;
    "aiomsg_peer_received_total" Count "Messages received from it." |p| p.messages_received;
    "aiomsg_peer_sent_bytes_total" Count "Bytes handed to the kernel for it, framing and control included." |p| p.bytes_sent;
    "aiomsg_peer_received_bytes_total" Count "Bytes received from it, framing and control included." |p| p.bytes_received;
    "aiomsg_peer_lag_messages" Level "Messages that wait here for it." |p| p.lag.messages;
    "aiomsg_peer_lag_bytes" Level "Bytes that wait here for it." |p| p.lag.bytes;
    "aiomsg_peer_lag_seconds" Seconds "For how long the oldest of them has waited." |p| p.lag.age;
    "aiomsg_peer_suspect" Level "1 while it is silent for longer than its heartbeats allow." |p| u64::from(p.suspect);
    "aiomsg_peer_slow" Level "1 while it is over its lag limit, or holds up a publisher." |p| u64::from(p.slow);
    "aiomsg_peer_connected_seconds" Seconds "How long it has been connected." |p| p.connected_for;
    "aiomsg_peer_reconnects_total" Count "How often it was connected before." |p| p.reconnects;
    "aiomsg_peer_round_trip_seconds" Seconds "How long its acknowledgements take, a moving average." |p| p.round_trips.recent;
}

metrics! { SHARD, ShardStats:
    "aiomsg_shard_turns_total" Count "Passes of the reactor." |s| s.turns;
    "aiomsg_shard_waits_total" Count "Passes that waited for something to happen." |s| s.waits;
    "aiomsg_shard_spins_total" Count "Passes that found nothing to do and did not wait." |s| s.spins;
    "aiomsg_shard_syscalls_total" Count "System calls of the backend." |s| s.syscalls;
    "aiomsg_shard_submissions_total" Count "Operations given to the backend." |s| s.submissions;
    "aiomsg_shard_completions_total" Count "What came back from it." |s| s.completions;
    "aiomsg_shard_doorbells_rung_total" Count "Times that somebody woke the shard from its wait." |s| s.doorbells_rung;
    "aiomsg_shard_doorbells_heard_total" Count "Waits that ended because of that and nothing else." |s| s.doorbells_heard;
    "aiomsg_shard_buffers_exhausted_total" Count "Receives that found no free buffer." |s| s.buffers_exhausted;
    "aiomsg_shard_overflows_total" Count "Times that the kernel had more completions than room for them." |s| s.overflows;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names() -> Vec<&'static str> {
        let (socket, peer) = (SOCKET.iter().map(|metric| metric.name), PEER.iter().map(|metric| metric.name));
        socket.chain(peer).chain(SHARD.iter().map(|metric| metric.name)).collect()
    }

    #[test]
    fn the_manual_has_every_name_once_and_no_other() {
        let manual = include_str!("../docs/metrics.md");
        let rows = manual.lines().filter_map(|line| line.strip_prefix("| `aiomsg_")?.split(['`', '{']).next());
        let documented: Vec<String> = rows.map(|name| format!("aiomsg_{name}")).collect();
        assert_eq!(documented, names());
        assert_eq!(names().iter().collect::<BTreeSet<_>>().len(), names().len());
    }

    #[test]
    fn counters_say_so_in_their_names() {
        let kinds = SOCKET.iter().map(|metric| (metric.name, metric.kind()));
        let kinds = kinds.chain(PEER.iter().map(|metric| (metric.name, metric.kind())));
        for (name, kind) in kinds.chain(SHARD.iter().map(|metric| (metric.name, metric.kind()))) {
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        }
    }

    #[test]
    fn the_text_is_as_prometheus_reads_it() {
        let mut stats = Stats { peers: 3, messages_sent: u64::MAX, ..Stats::default() };
        stats.lag.age = Duration::from_millis(1500);
        stats.drops.0[1] = 7;
        stats.round_trips.count = 2;
        stats.round_trips.buckets[1] = 1;
        let text = Metrics::new()
            .socket("a \"name\"\nof \\ two", stats, Vec::new())
            .socket("other", Stats::default(), Vec::new())
            .to_string();
        let label = r#"socket="a \"name\"\nof \\ two""#;
        for line in [
            "# TYPE aiomsg_peers gauge".to_owned(),
            format!("aiomsg_peers{{{label}}} 3"),
            "aiomsg_peers{socket=\"other\"} 0".to_owned(),
            format!("aiomsg_messages_sent_total{{{label}}} 18446744073709551615"),
            format!("aiomsg_messages_dropped_total{{{label},cause=\"stalled\"}} 7"),
            format!("aiomsg_lag_seconds{{{label}}} 1.5"),
            "# TYPE aiomsg_round_trip_seconds histogram".to_owned(),
            format!("aiomsg_round_trip_seconds_bucket{{{label},le=\"0.000001024\"}} 0"),
            format!("aiomsg_round_trip_seconds_bucket{{{label},le=\"0.000002048\"}} 1"),
            format!("aiomsg_round_trip_seconds_bucket{{{label},le=\"+Inf\"}} 2"),
            format!("aiomsg_round_trip_seconds_count{{{label}}} 2"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        // No sample without its metric's head before it, and each head once.
        let heads: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert_eq!(heads.len(), heads.iter().collect::<BTreeSet<_>>().len());
        assert!(!text.contains("aiomsg_shard"), "nothing is said of what is not there");
    }
}
