//! `aiomsg relay`: what arrives at one socket is sent by another, so that peers that cannot reach each other, or that
//! all connect, meet. Each socket binds and connects as it is told and has a send mode of its own. One way, both ways,
//! or as a go-between of clients and workers whose answers find the way back.

mod requests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aiomsg_uring::{DeliveryGuarantee, DropCause, Endpoint, SendError, SendMode, Socket, blocking};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use crate::connection::{Common, Places, guarantee, mode, seconds};
use crate::exit::Exit;
use crate::publishing::{Publishing, tell_rest};
use crate::terminal::{Live, grouped, note, report};
use crate::work::{Work, is_interrupted};

/// How often the counters are shown, on a terminal and else.
const SHOW_INTERVAL: Duration = Duration::from_millis(250);
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// How long, after Ctrl-C, what has arrived may take to be passed on.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The options of `aiomsg relay`.
#[derive(Args, Clone, Debug)]
#[command(after_help = crate::exit::HELP, after_long_help = LONG_HELP)]
#[command(
    override_usage = "aiomsg relay [OPTIONS] <--in-bind|--in-connect ENDPOINT>... <--out-bind|--out-connect ENDPOINT>..."
)]
pub(crate) struct Options {
    #[command(flatten)]
    inward: Inward,
    #[command(flatten)]
    outward: Outward,
    /// Also pass on what the peers of the out socket send, by --in-mode
    #[arg(long, conflicts_with = "replies")]
    both_ways: bool,
    /// Give each message to one out-peer in turn, and its answer to the in-peer that asked; out-peers answer each message once, in order
    #[arg(long, conflicts_with_all = ["out_mode", "out_guarantee"])]
    replies: bool,
    #[command(flatten)]
    publishing: Publishing,
    /// How long to wait at the end for messages to be sent
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    linger: Duration,
    /// End with a JSON object on standard error
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// The socket that messages come in by.
#[derive(Args, Clone, Debug)]
#[group(id = "in", required = true, multiple = true)]
struct Inward {
    /// Where the in socket listens. Repeatable
    #[arg(long, value_name = "ENDPOINT")]
    in_bind: Vec<Endpoint>,
    /// What the in socket connects to. Repeatable
    #[arg(long, value_name = "ENDPOINT")]
    in_connect: Vec<Endpoint>,
}

/// The socket that messages go out by.
#[derive(Args, Clone, Debug)]
struct Outward {
    #[command(flatten)]
    places: OutPlaces,
    /// Whether a message goes to every out-peer, or to one after the other
    #[arg(long, value_parser = mode(), default_value = "publish")]
    out_mode: SendMode,
    /// The same for messages that go back, with --both-ways
    #[arg(long, value_parser = mode(), default_value = "publish", requires = "both_ways")]
    in_mode: SendMode,
    /// Whether messages are kept until out-peers acknowledge them; needs --out-mode roundrobin
    #[arg(long, value_parser = guarantee(), default_value = "at-most-once")]
    out_guarantee: DeliveryGuarantee,
}

#[derive(Args, Clone, Debug)]
#[group(id = "out", required = true, multiple = true)]
struct OutPlaces {
    /// Where the out socket listens. Repeatable
    #[arg(long, value_name = "ENDPOINT")]
    out_bind: Vec<Endpoint>,
    /// What the out socket connects to. Repeatable
    #[arg(long, value_name = "ENDPOINT")]
    out_connect: Vec<Endpoint>,
}

const LONG_HELP: &str = "Examples:
  publishers and subscribers all connect here:
      aiomsg relay --in-bind '*:25000' --out-bind '*:25001'
  jobs of many producers are dealt to workers, and kept until a worker acknowledges them:
      aiomsg relay --in-bind '*:25000' --out-bind '*:25001' --out-mode roundrobin --out-guarantee at-least-once
  the newest value of each key, for those who come late:
      aiomsg relay --in-connect feed:25000 --out-bind '*:25001' --key word --replay snapshot
  clients ask, workers answer:
      aiomsg relay --in-bind '*:25000' --out-bind '*:25001' --replies

A message is acknowledged to its sender when the out socket has taken it; if the relay is killed after that, it is lost.

Exit codes:
  0    ended by Ctrl-C or SIGTERM, and everything was passed on
  1    failed; the reason is on standard error
  2    wrong usage
  3    some messages did not reach their peers: dropped, expired, or undelivered at the end";

/// Counters of one direction.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Messages taken by the sending socket.
    passed: AtomicU64,
    /// Messages for which there was no peer any more.
    lost: AtomicU64,
}

/// Runs until Ctrl-C.
pub(crate) fn run(options: &Options) -> Result<Exit> {
    if let Err(wrong) = options.publishing.check(false) {
        note(wrong);
        return Ok(Exit::Usage);
    }
    let work = Work::new()?;
    let engine = options.common.engine()?;
    let Outward { places: OutPlaces { out_bind, out_connect }, out_mode, in_mode, out_guarantee } = &options.outward;
    let settings = || options.publishing.apply(Socket::builder().linger(options.linger));
    let open = |bind: &[Endpoint], connect: &[Endpoint], settings, label| {
        options.common.open(&engine, &Places { bind: bind.to_vec(), connect: connect.to_vec() }, settings, label)
    };
    // The way out first: what comes in has somewhere to go.
    let outward =
        open(out_bind, out_connect, settings().send_mode(*out_mode).delivery_guarantee(*out_guarantee), "out: ")?;
    let inward = open(&options.inward.in_bind, &options.inward.in_connect, settings().send_mode(*in_mode), "in: ")?;
    let _served = options.common.serve_metrics(&engine, &[("in", &inward), ("out", &outward)])?;

    let (forth, back) = (Arc::new(Flow::default()), Arc::new(Flow::default()));
    if options.replies {
        let desk = Arc::new(requests::Desk::default());
        spawn(&work, &inward, &outward, &forth, {
            let desk = desk.clone();
            move |from, to, flow| desk.ask(from, to, flow)
        })?;
        spawn(&work, &outward, &inward, &back, move |from, to, flow| desk.answer(from, to, flow))?;
    } else {
        let pass = |publishing: Publishing| move |from: &_, to: &_, flow: &_| pass(from, to, flow, &publishing);
        spawn(&work, &inward, &outward, &forth, pass(options.publishing.clone()))?;
        if options.both_ways {
            spawn(&work, &outward, &inward, &back, pass(options.publishing.clone()))?;
        }
    }

    #[cfg(target_os = "linux")]
    crate::service::ready(&[&inward, &outward])?;
    let mut screen = Screen::new(options);
    let failed = loop {
        if let Some(end) = work.wait_timeout(SHOW_INTERVAL) {
            break end;
        }
        if is_interrupted() {
            break Ok(());
        }
        screen.show([(&forth, &inward), (&back, &outward)]);
    };
    #[cfg(target_os = "linux")]
    crate::service::stopping();
    // What has arrived is passed on before the way out is closed.
    let mut undelivered = inward.close().undelivered;
    if failed.is_ok() {
        work.wait_timeout(DRAIN_TIMEOUT);
    }
    if !options.common.quiet {
        tell_rest(&outward.stats(), options.linger);
    }
    undelivered += outward.close().undelivered;
    screen.end();
    failed?;

    let lost = [&inward, &outward].map(|socket| {
        let stats = socket.stats();
        // What is left at the end is told as undelivered.
        stats.messages_dropped - stats.drops.of(DropCause::Closed) + stats.messages_expired
    });
    let lost = lost.iter().sum::<u64>() + forth.lost.load(Relaxed) + back.lost.load(Relaxed);
    if options.json {
        report(json!({ "forth": forth.json(), "back": back.json(), "undelivered": undelivered, "lost": lost }));
    } else if !options.common.quiet {
        let [forth, back] = [&forth, &back].map(|flow| grouped(flow.passed.load(Relaxed)));
        note(format!(
            "{forth} messages passed on, {back} back, {} lost, {} undelivered",
            grouped(lost),
            grouped(undelivered)
        ));
    }
    Ok(if lost + undelivered > 0 { Exit::Undelivered } else { Exit::Done })
}

impl Flow {
    /// Counts a message that was offered to the sending socket; an error when nothing can be sent any more.
    fn note(&self, sent: Result<(), SendError>) -> Result<()> {
        match sent {
            Ok(()) => self.passed.fetch_add(1, Relaxed),
            Err(SendError::PeerGone(_) | SendError::UnknownPeer(_) | SendError::Closed) => {
                self.lost.fetch_add(1, Relaxed)
            }
            Err(error) => return Err(error).context("cannot pass a message on"),
        };
        Ok(())
    }

    fn json(&self) -> Value {
        json!({ "passed": self.passed.load(Relaxed), "lost": self.lost.load(Relaxed) })
    }
}

/// Runs one direction on a thread of its own.
fn spawn(
    work: &Work<Result<()>>,
    from: &blocking::Socket,
    to: &blocking::Socket,
    flow: &Arc<Flow>,
    run: impl FnOnce(&blocking::Socket, &blocking::Socket, &Flow) -> Result<()> + Send + 'static,
) -> Result<()> {
    let (from, to, flow) = (from.clone(), to.clone(), flow.clone());
    work.spawn(move || run(&from, &to, &flow))
}

/// Passes on until the receiving socket is closed and empty.
fn pass(from: &blocking::Socket, to: &blocking::Socket, flow: &Flow, publishing: &Publishing) -> Result<()> {
    while let Ok(batch) = from.recv_batch() {
        for message in batch.bytes() {
            flow.note(publishing.send(to, message))?;
        }
    }
    Ok(())
}

/// The live counters.
struct Screen {
    live: Option<Live>,
    shown: Instant,
    passed: [u64; 2],
}

impl Screen {
    fn new(options: &Options) -> Self {
        let live = (!options.common.quiet).then(|| Live::new(None, PLAIN_INTERVAL));
        Self { live, shown: Instant::now(), passed: [0; 2] }
    }

    /// Each direction with the socket that it comes from.
    fn show(&mut self, directions: [(&Flow, &blocking::Socket); 2]) {
        let Some(live) = &mut self.live else { return };
        let seconds = self.shown.elapsed().as_secs_f64();
        let passed = directions.map(|(flow, _)| flow.passed.load(Relaxed));
        let [forth, back] = [0, 1].map(|way| (passed[way] - self.passed[way]) as f64 / seconds);
        let [ins, outs] = directions.map(|(_, socket)| socket.stats().peers);
        live.show(0, || {
            format!(
                "{ins} in-peers, {outs} out-peers; {} passed on ({}/s), {} back ({}/s)",
                grouped(passed[0]),
                grouped(forth as u64),
                grouped(passed[1]),
                grouped(back as u64)
            )
        });
        (self.shown, self.passed) = (Instant::now(), passed);
    }

    fn end(&self) {
        if let Some(live) = &self.live {
            live.end();
        }
    }
}
