//! `aiomsg echo`: each message goes back to the peer that it came from. The other end of `aiomsg bench latency`, so the
//! default is the engine with the shortest path: this thread drives, and looks for signals in between.

use std::time::{Duration, Instant};

use aiomsg_uring::{SendError, Socket};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use crate::connection::{Places, tell_in_vain};
use crate::endpoint::{Cores, Drive, Endpoint};
use crate::exit::Exit;
use crate::metrics::{At, Board};
use crate::terminal::{grouped, note, report};
use crate::work::{is_interrupted, on_interrupt};

/// The longest time without a look at whether a signal has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The options of `aiomsg echo`.
#[derive(Args, Clone, Debug)]
#[command(after_help = crate::exit::HELP)]
pub(crate) struct Options {
    #[command(flatten)]
    places: Places,
    /// Stop after this many messages
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    drive: Drive,
    #[command(flatten)]
    cores: Cores,
    /// Serve the counters as Prometheus text at unix:PATH or HOST:PORT, for `aiomsg top`, Prometheus and curl
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<At>,
    /// End with a JSON object on standard error
    #[arg(long)]
    json: bool,
    /// Say nothing on standard error but errors
    #[arg(long, short)]
    quiet: bool,
}

/// Runs until Ctrl-C, or until there were enough messages.
pub(crate) fn run(options: &Options) -> Result<Exit> {
    on_interrupt(|| {})?;
    let mut endpoint = options.cores.open(options.drive, 0, Socket::builder())?;
    for place in &options.places.bind {
        let address = endpoint.bind(place.clone())?;
        if !options.quiet && place.to_string() != address.to_string() {
            note(format!("listening on {address}"));
        }
    }
    for place in &options.places.connect {
        endpoint.connect(place.clone())?;
    }
    let mut board = match &options.metrics {
        Some(at) => Some(Board::open(at, options.quiet, &endpoint.metrics("echo"))?),
        None => None,
    };
    let started = Instant::now();
    let mut counts = Counts::default();
    let count_max = options.count.unwrap_or(u64::MAX);
    while counts.received < count_max && !is_interrupted() {
        let before = counts.received;
        answer(&mut endpoint, &mut counts, count_max)?;
        // Who is busy has been found.
        if counts.received == before && !options.quiet {
            std::iter::from_fn(|| endpoint.try_event()).for_each(|event| tell_in_vain(&event));
        }
        if let Some(board) = &mut board {
            board.put(|| endpoint.metrics("echo"));
        }
    }
    counts.lost += endpoint.close();
    if options.json {
        let seconds = started.elapsed().as_secs_f64();
        report(json!({ "received": counts.received, "lost": counts.lost, "seconds": seconds }));
    } else if !options.quiet {
        note(format!("{} messages, {} of them not sent back", grouped(counts.received), grouped(counts.lost)));
    }
    Ok(match counts {
        Counts { received, .. } if options.count.is_some_and(|count| received < count) => Exit::Interrupted,
        Counts { lost: 1.., .. } => Exit::Undelivered,
        _ => Exit::Done,
    })
}

/// What went through.
#[derive(Default)]
pub(crate) struct Counts {
    /// Messages that came.
    pub(crate) received: u64,
    /// Those whose sender was gone.
    pub(crate) lost: u64,
}

/// Sends back what has come, up to `count_max` in all; waits a moment if nothing has.
pub(crate) fn answer(endpoint: &mut Endpoint, counts: &mut Counts, count_max: u64) -> Result<()> {
    let Some(batch) = endpoint.recv_batch_timeout(LOOK_INTERVAL)? else { return Ok(()) };
    for message in batch.iter().take(usize::try_from(count_max - counts.received).unwrap_or(usize::MAX)) {
        counts.received += 1;
        match endpoint.send_to(batch.identity(), message) {
            Ok(()) => {}
            Err(SendError::PeerGone(_) | SendError::UnknownPeer(_)) => counts.lost += 1,
            Err(error) => return Err(error).context("cannot send back"),
        }
    }
    endpoint.flush()
}
