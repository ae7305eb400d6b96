//! The options that every command with sockets shares (where, as whom, how, on what), and the socket that they
//! describe: blocking, on reactor threads. What happens to its connections is told on standard error by a thread of its
//! own: without that, a mistyped port looks like a quiet market.

use std::time::{Duration, Instant};

use aiomsg_uring::{
    DeliveryGuarantee, DisconnectReason, Endpoint, Engine, Event, Identity, Metrics, SendMode, Socket, SocketBuilder,
    blocking,
};
use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::endpoint::BackendChoice;
use crate::metrics::{self, At, Served};
use crate::terminal::note;

/// Events of one kind that are told without --verbose: neither a port scanner nor a slow peer must fill a terminal. The
/// report at the end has all of them.
const TOLD_MAX: u32 = 3;

/// Where the socket is. At least one place is needed, and any number and mix may be given.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = true)]
pub(crate) struct Places {
    /// Listen here: HOST:PORT (IPv6 in brackets), *:PORT or unix:PATH; port 0 takes a free one and tells it. Repeatable
    #[arg(long, short, value_name = "ENDPOINT")]
    pub(crate) bind: Vec<Endpoint>,
    /// Connect to this, again and again until it is there. Repeatable
    #[arg(long, short, value_name = "ENDPOINT")]
    pub(crate) connect: Vec<Endpoint>,
}

/// What the socket is, whatever it is used for.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// What the socket stands on; auto takes io_uring where it works
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub(crate) backend: BackendChoice,
    /// Serve the counters as Prometheus text at unix:PATH or HOST:PORT, for `aiomsg top`, Prometheus and curl
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<At>,
    /// Say nothing on standard error but errors
    #[arg(long, short, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Tell on standard error who connects and leaves
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

/// The parser of `--mode`.
pub(crate) fn mode() -> impl TypedValueParser<Value = SendMode> {
    PossibleValuesParser::new(["publish", "roundrobin"]).try_map(|name| name.parse::<SendMode>())
}

/// The parser of `--guarantee`.
pub(crate) fn guarantee() -> impl TypedValueParser<Value = DeliveryGuarantee> {
    PossibleValuesParser::new(["at-most-once", "at-least-once"]).try_map(|name| name.parse::<DeliveryGuarantee>())
}

/// Seconds, with a fraction if need be.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a number of seconds is needed, such as 10 or 0.5".to_owned())
}

impl Common {
    /// The engine that the options ask for.
    pub(crate) fn engine(&self) -> Result<Engine> {
        Ok(Engine::builder().backend(self.backend.into()).build()?)
    }

    /// Serves the counters of these sockets, if that is asked for.
    pub(crate) fn serve_metrics(
        &self,
        engine: &Engine,
        sockets: &[(&'static str, &blocking::Socket)],
    ) -> Result<Option<Served>> {
        let Some(at) = &self.metrics else { return Ok(None) };
        let (engine, sockets) = (engine.clone(), sockets.iter().map(|(name, socket)| (*name, (*socket).clone())));
        let sockets: Vec<_> = sockets.collect();
        metrics::serve(at, self.quiet, move || {
            let all = sockets
                .iter()
                .fold(Metrics::new(), |all, (name, socket)| all.socket(*name, socket.stats(), socket.peer_stats()));
            all.shards(engine.stats()).to_string()
        })
        .map(Some)
    }

    /// A socket at all its places, its events told. `label`: what goes before its address where there are several.
    pub(crate) fn open(
        &self,
        engine: &Engine,
        places: &Places,
        settings: SocketBuilder,
        label: &str,
    ) -> Result<blocking::Socket> {
        let socket = settings.engine(engine).build_blocking()?;
        for place in &places.bind {
            let address = socket.bind(place.clone())?;
            // The port that was asked for is no news.
            if self.verbose || (!self.quiet && place.to_string() != address.to_string()) {
                note(format!("{label}listening on {address}"));
            }
        }
        for place in &places.connect {
            socket.connect(place.clone())?;
        }
        if !self.quiet {
            let (events, verbose) = (Socket::from(socket.clone()), self.verbose);
            let tell = move || tell_events(&blocking::Socket::from(events), verbose);
            std::thread::Builder::new().name("events".into()).spawn(tell).context("cannot start a thread")?;
        }
        Ok(socket)
    }
}

/// Waits until `peer` is connected; false when it was not in time.
pub(crate) fn wait_for(socket: &blocking::Socket, peer: Identity, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while !socket.peers().contains(&peer) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Says that an address has not been reached for a while. Not at once: programs that are started together may begin in any order.
pub(crate) fn tell_in_vain(event: &Event) {
    if let Event::Reconnecting { endpoint, error, attempt: 3 | 20, .. } = event {
        note(format!("not connected to {endpoint}: {error}; trying on"));
    }
}

/// Until the socket is closed.
fn tell_events(socket: &blocking::Socket, verbose: bool) {
    let (mut rejects_left, mut losses_left) = (TOLD_MAX, TOLD_MAX);
    while let Some(event) = socket.event_timeout(Duration::MAX) {
        if verbose {
            note(event);
            continue;
        }
        match event {
            Event::Reconnecting { .. } => tell_in_vain(&event),
            Event::Rejected { .. } if rejects_left > 0 => {
                rejects_left -= 1;
                note(event);
            }
            Event::Disconnected { ref reason, .. }
                if !matches!(reason, DisconnectReason::ClosedByPeer | DisconnectReason::ClosedHere) =>
            {
                note(event);
            }
            Event::Slow { .. } | Event::Dropped { .. } | Event::Expired { .. } if losses_left > 0 => {
                losses_left -= 1;
                note(event);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_fractions_and_must_be_possible() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["-1", "inf", "NaN", "1e30", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
