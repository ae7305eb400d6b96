//! `aiomsg top`: the counters that a running program serves, again and again: who is connected, how fast messages go,
//! who is behind, what was dropped. Any program will do that serves the library's `Metrics`; `--metrics` makes this
//! one do it. Reads the text that Prometheus reads, and knows the names in it only to lay them out.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::connection::seconds;
use crate::exit::Exit;
use crate::metrics::{At, fetch};
use crate::terminal::{Colour, colours_on_stdout, grouped, is_reader_gone, note, paint};
use crate::work::on_interrupt;

/// Peers that a screen shows.
const PEERS_SHOWN: usize = 30;

/// The options of `aiomsg top`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  aiomsg relay --in-bind '*:25000' --out-bind '*:25001' --metrics unix:/run/relay.metrics
  aiomsg top unix:/run/relay.metrics
  curl --unix-socket /run/relay.metrics http://localhost/metrics

Exit codes: 0 done, 1 nobody answers there, 2 wrong usage")]
pub(crate) struct Options {
    /// Where the counters are: unix:PATH or HOST:PORT
    #[arg(value_name = "ADDRESS")]
    at: At,
    /// How often to look
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    interval: Duration,
    /// Show the counters once, without rates, and end
    #[arg(long)]
    once: bool,
    /// Print one JSON object at each look
    #[arg(long)]
    json: bool,
}

/// The values of one socket, peer or shard, by name without prefix.
type Values = BTreeMap<String, f64>;

/// All values of one look.
#[derive(Clone, Debug, Default, PartialEq)]
struct Look {
    sockets: BTreeMap<String, Values>,
    /// By socket and identity.
    peers: BTreeMap<(String, String), Values>,
    shards: BTreeMap<String, Values>,
}

/// Looks until Ctrl-C, or once.
pub(crate) fn run(options: &Options) -> Result<Exit> {
    let mut before: Option<(Instant, Look)> = None;
    let on_terminal = io::stdout().is_terminal();
    let (interrupted, end) = channel();
    on_interrupt(move || _ = interrupted.send(()))?;
    loop {
        let look = match fetch(&options.at) {
            Ok(text) => Some(parse(&text)),
            // One that never answered is a mistake; one that went may come back.
            Err(error) if options.once || before.is_none() => return Err(error),
            Err(error) => {
                note(format!("{error:#}"));
                None
            }
        };
        if let Some(look) = look {
            let now = Instant::now();
            let rates = before.as_ref().map(|(at, old)| Rates { old, seconds: (now - *at).as_secs_f64().max(1e-6) });
            let text = if options.json {
                format!("{}\n", json(&options.at, &look, rates.as_ref()))
            } else {
                let clear = if on_terminal && !options.once { "\x1b[H\x1b[2J" } else { "" };
                format!("{clear}{}", screen(&options.at, &look, rates.as_ref(), colours_on_stdout()))
            };
            match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
                Err(error) if is_reader_gone(&error) => return Ok(Exit::Done),
                written => written.context("cannot write")?,
            }
            before = Some((now, look));
        }
        if options.once {
            return Ok(Exit::Done);
        }
        // A look without end is done when it is no longer wanted.
        if end.recv_timeout(options.interval).is_ok() {
            return Ok(Exit::Done);
        }
    }
}

/// What a count was at the look before, and how long ago that is.
struct Rates<'a> {
    old: &'a Look,
    seconds: f64,
}

impl Rates<'_> {
    fn of(&self, old: Option<&Values>, name: &str, now: f64) -> f64 {
        let before = old.and_then(|values| values.get(name)).copied().unwrap_or(0.0);
        // A program that was started anew counts from 0.
        (now - before).max(0.0) / self.seconds
    }
}

/// Reads the text format; lines that are none of ours are passed over.
fn parse(text: &str) -> Look {
    let mut look = Look::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (Some(name), Ok(value)) = (series.strip_prefix("aiomsg_"), value.parse::<f64>()) else { continue };
        let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
        if name.ends_with("_bucket") {
            continue;
        }
        let label = |wanted: &str| {
            let start = labels.find(&format!("{wanted}=\""))? + wanted.len() + 2;
            labels[start..].split('"').next().map(str::to_owned)
        };
        let socket = label("socket").unwrap_or_default();
        let (name, values) = if let Some(name) = name.strip_prefix("peer_") {
            (name, look.peers.entry((socket, label("peer").unwrap_or_default())).or_default())
        } else if let Some(name) = name.strip_prefix("shard_") {
            (name, look.shards.entry(label("shard").unwrap_or_default()).or_default())
        } else {
            (name, look.sockets.entry(socket).or_default())
        };
        *values.entry(name.to_owned()).or_default() += value;
        if let Some(cause) = label("cause") {
            values.insert(format!("{name}.{cause}"), value);
        }
    }
    look
}

fn json(at: &At, look: &Look, rates: Option<&Rates>) -> Value {
    let object = |names: &[(&str, &str)], values: &Values, old: Option<&Values>| {
        let mut object: Map<String, Value> = names.iter().map(|&(key, name)| (key.to_owned(), json!(name))).collect();
        for (name, &value) in values {
            object.insert(name.clone(), json!(value));
            if let (Some(rates), Some(stem)) = (rates, name.strip_suffix("_total")) {
                object.insert(format!("{stem}_per_s"), json!(rates.of(old, name, value)));
            }
        }
        Value::Object(object)
    };
    let sockets = look
        .sockets
        .iter()
        .map(|(name, values)| object(&[("socket", name)], values, rates.and_then(|rates| rates.old.sockets.get(name))));
    let peers = look.peers.iter().map(|(key, values)| {
        object(&[("socket", &key.0), ("peer", &key.1)], values, rates.and_then(|rates| rates.old.peers.get(key)))
    });
    let shards = look
        .shards
        .iter()
        .map(|(name, values)| object(&[("shard", name)], values, rates.and_then(|rates| rates.old.shards.get(name))));
    json!({
        "address": at.to_string(),
        "sockets": sockets.collect::<Vec<_>>(),
        "peers": peers.collect::<Vec<_>>(),
        "shards": shards.collect::<Vec<_>>(),
    })
}

fn screen(at: &At, look: &Look, rates: Option<&Rates>, coloured: bool) -> String {
    let mut text = format!("aiomsg top {at}\n");
    // A count with its rate, once there is one.
    let counted = |values: &Values, old: Option<&Values>, name: &str| {
        let now = values.get(name).copied().unwrap_or(0.0);
        match rates {
            Some(rates) => format!("{}/s", grouped(rates.of(old, name, now) as u64)),
            None => grouped(now as u64),
        }
    };
    let level = |values: &Values, name: &str| values.get(name).copied().unwrap_or(0.0);
    for (name, values) in &look.sockets {
        let old = rates.and_then(|rates| rates.old.sockets.get(name));
        let count = |name| counted(values, old, name);
        let bytes = |name| match &rates {
            Some(rates) => format!("{}/s", size(rates.of(old, name, level(values, name)))),
            None => size(level(values, name)),
        };
        text += &format!(
            "\nsocket {name}: {} peers; sent {}, delivered {}, received {}; {} out, {} in\n",
            grouped(level(values, "peers") as u64),
            count("messages_sent_total"),
            count("messages_delivered_total"),
            count("messages_received_total"),
            bytes("sent_bytes_total"),
            bytes("received_bytes_total"),
        );
        text += &format!(
            "  queued {}, pending {}, lag {} messages, {:.3} s; send waits {}, receive pauses {}\n",
            grouped(level(values, "messages_queued") as u64),
            grouped(level(values, "messages_pending") as u64),
            grouped(level(values, "lag_messages") as u64),
            level(values, "lag_seconds"),
            count("send_waits_total"),
            count("receive_pauses_total"),
        );
        let lost = ["messages_dropped_total", "messages_expired_total", "rejects_total"];
        if lost.iter().any(|name| level(values, name) > 0.0) {
            let causes = values.iter().filter(|(_, count)| **count > 0.0);
            let causes = causes.filter_map(|(name, count)| {
                Some(format!("{} {}", grouped(*count as u64), name.strip_prefix("messages_dropped_total.")?))
            });
            let line = format!(
                "  dropped {} ({}), expired {}, connections refused {}",
                grouped(level(values, lost[0]) as u64),
                causes.collect::<Vec<_>>().join(", "),
                grouped(level(values, lost[1]) as u64),
                grouped(level(values, lost[2]) as u64),
            );
            text += &format!("{}\n", paint(&line, Colour::Yellow, coloured));
        }
        let mut peers: Vec<_> = look.peers.iter().filter(|((socket, _), _)| socket == name).collect();
        peers.sort_by(|(_, one), (_, other)| level(other, "lag_messages").total_cmp(&level(one, "lag_messages")));
        if !peers.is_empty() {
            let head = ["delivered", "received", "lag", "lag s", "dropped", "connected s"];
            let head: String = head.iter().map(|name| format!(" {name:>13}")).collect();
            text += &format!("{}\n", paint(&format!("  {:<32}{head}", "peer"), Colour::Grey, coloured));
        }
        for (key, values) in peers.iter().take(PEERS_SHOWN) {
            let old = rates.and_then(|rates| rates.old.peers.get(*key));
            let cells = [
                counted(values, old, "delivered_total"),
                counted(values, old, "received_total"),
                grouped(level(values, "lag_messages") as u64),
                format!("{:.3}", level(values, "lag_seconds")),
                grouped(level(values, "dropped_total") as u64),
                grouped(level(values, "connected_seconds") as u64),
            ];
            let cells: String = cells.iter().map(|cell| format!(" {cell:>13}")).collect();
            let state = match (level(values, "suspect") > 0.0, level(values, "slow") > 0.0) {
                (true, _) => paint(" silent", Colour::Red, coloured),
                (_, true) => paint(" slow", Colour::Yellow, coloured),
                _ => String::new(),
            };
            text += &format!("  {:<32}{cells}{state}\n", key.1);
        }
        if peers.len() > PEERS_SHOWN {
            text += &format!("  and {} more\n", peers.len() - PEERS_SHOWN);
        }
    }
    for (name, values) in &look.shards {
        let old = rates.and_then(|rates| rates.old.shards.get(name));
        let count = |name| counted(values, old, name);
        text += &format!(
            "\nshard {name}: {} turns, {} waits, {} system calls, {} completions\n",
            count("turns_total"),
            count("waits_total"),
            count("syscalls_total"),
            count("completions_total"),
        );
    }
    text
}

/// Bytes in the unit that suits them.
fn size(bytes: f64) -> String {
    match bytes {
        1e9.. => format!("{:.1} GB", bytes / 1e9),
        1e6.. => format!("{:.1} MB", bytes / 1e6),
        1e3.. => format!("{:.1} kB", bytes / 1e3),
        _ => format!("{bytes:.0} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP aiomsg_peers Peers connected now\n# TYPE aiomsg_peers gauge\naiomsg_peers{socket=\"feed\"} 2\n\
        aiomsg_messages_sent_total{socket=\"feed\"} 100\nprocess_cpu_seconds_total 3\n\
        aiomsg_messages_dropped_total{socket=\"feed\",cause=\"stalled\"} 3\n\
        aiomsg_messages_dropped_total{socket=\"feed\",cause=\"closed\"} 0\n\
        aiomsg_peer_delivered_total{socket=\"feed\",peer=\"aa\"} 50\naiomsg_peer_lag_messages{socket=\"feed\",peer=\"aa\"} 7\n\
        aiomsg_peer_slow{socket=\"feed\",peer=\"aa\"} 1\naiomsg_round_trip_seconds_bucket{socket=\"feed\",le=\"1\"} 9\n\
        aiomsg_shard_turns_total{shard=\"0\"} 12\n";

    #[test]
    fn the_text_is_read_and_the_rest_passed_over() {
        let look = parse(TEXT);
        assert_eq!(look.sockets["feed"]["messages_dropped_total"], 3.0);
        assert_eq!(look.sockets["feed"].len(), 5);
        assert_eq!(look.peers[&("feed".to_owned(), "aa".to_owned())]["lag_messages"], 7.0);
        assert_eq!(look.shards["0"]["turns_total"], 12.0);
    }

    #[test]
    fn rates_are_of_the_time_in_between() {
        let (old, mut look) = (parse(TEXT), parse(TEXT));
        look.sockets.get_mut("feed").unwrap().insert("messages_sent_total".to_owned(), 500.0);
        let rates = Rates { old: &old, seconds: 2.0 };
        let at = "h:1".parse().unwrap();
        assert_eq!(json(&at, &look, Some(&rates))["sockets"][0]["messages_sent_per_s"], 200.0);
        let shown = screen(&at, &look, Some(&rates), false);
        for part in
            ["socket feed: 2 peers; sent 200/s", "0 B/s out", "dropped 3 (3 stalled)", " slow\n", "shard 0: 0/s turns"]
        {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        assert!(screen(&at, &look, None, false).contains("sent 500,"));
    }
}
