//! `aiomsg sub`: messages become records of a stream. A message is acknowledged, if its sender asks for that, when it
//! has been written. What is waiting is written together; when nothing more is, at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aiomsg_uring::{AckMode, Identity, Received, RecvError, Socket, SocketBuilder, TryRecvError, blocking};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use crate::connection::{Common, Places, seconds};
use crate::exit::Exit;
use crate::framing::{Framing, Output};
use crate::terminal::{self, grouped, is_reader_gone, note};
use crate::work::Work;

/// Messages that are written and acknowledged together at most.
const TOGETHER_MAX: usize = 4096;
/// How long, after Ctrl-C, what has arrived may take to be written.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The options of `aiomsg sub`.
#[derive(Args, Clone, Debug)]
#[command(after_help = crate::exit::HELP, after_long_help = LONG_HELP)]
pub(crate) struct Options {
    #[command(flatten)]
    places: Places,
    /// Write messages to this file and not to standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How messages follow one another in the output
    #[arg(long, value_enum, default_value = "lines", default_value_if("json", "true", "json"))]
    framing: Framing,
    /// Write one JSON object a line: {"identity": ..., "text": ...}, or "base64" where it is no UTF-8; report as JSON on standard error. With --framing, the report alone
    #[arg(long)]
    json: bool,
    /// Stop after this many messages
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    /// Give up when no message has come for so long
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// The name that peers know the socket by: 32 hexadecimal digits; random by default
    #[arg(long, value_name = "HEX")]
    identity: Option<Identity>,
    #[command(flatten)]
    common: Common,
}

const LONG_HELP: &str = "Examples:
  aiomsg sub --connect 127.0.0.1:25000
  aiomsg sub --bind '*:25000' --json | jq -r .text
  aiomsg sub --connect a:1 --connect b:1 --framing length --output feed.bin

Exit codes:
  0    done: --count messages were written; Ctrl-C or SIGTERM without --count; or the reader of the
       output has had enough (as in `aiomsg sub ... | head`)
  1    failed; the reason is on standard error
  2    wrong usage
  4    no message for --timeout seconds
  130  ended by Ctrl-C or SIGTERM before --count messages had come (what had arrived is written first)";

/// What was written.
#[derive(Default)]
struct Written {
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// Runs until there were enough messages, or for ever.
pub(crate) fn run(options: &Options) -> Result<Exit> {
    let output = Output::open(options.output.as_deref(), options.framing)?;
    let work = Work::new()?;
    let engine = options.common.engine()?;
    let settings = Socket::builder().ack_mode(AckMode::Manual);
    let settings = options.identity.into_iter().fold(settings, SocketBuilder::identity);
    let socket = options.common.open(&engine, &options.places, settings, "")?;
    let _served = options.common.serve_metrics(&engine, &[("sub", &socket)])?;
    let started = Instant::now();
    let written = Arc::new(Written::default());
    {
        let (socket, written, options) = (socket.clone(), written.clone(), options.clone());
        work.spawn(move || write(&socket, &options, output, &written))?;
    }
    let end = work.wait();
    socket.close();
    let exit = match end {
        Some(end) => end?,
        // The closed socket ends the writing, unless the reader of the output is stuck.
        None => {
            work.wait_timeout(DRAIN_TIMEOUT).transpose()?;
            let enough = options.count.is_none_or(|count| written.messages.load(Relaxed) >= count);
            if enough { Exit::Done } else { Exit::Interrupted }
        }
    };
    report(options, &written, started.elapsed());
    Ok(exit)
}

fn write(socket: &blocking::Socket, options: &Options, mut output: Output, written: &Written) -> Result<Exit> {
    let mut left = options.count.unwrap_or(u64::MAX);
    let mut together: Vec<Received> = Vec::new();
    while left > 0 {
        let first = match options.timeout {
            Some(timeout) => socket.recv_message_timeout(timeout),
            None => socket.recv_message().map_err(TryRecvError::Never),
        };
        match first {
            Ok(message) => together.push(message),
            Err(TryRecvError::Empty) => {
                note(format!("no message for {} s", options.timeout.unwrap_or_default().as_secs_f64()));
                return Ok(Exit::TimedOut);
            }
            Err(TryRecvError::Never(RecvError::Closed)) => break,
            Err(error) => bail!("cannot receive: {error}"),
        }
        let room = TOGETHER_MAX.min(usize::try_from(left).unwrap_or(usize::MAX));
        together.extend(std::iter::from_fn(|| socket.recv_message_timeout(Duration::ZERO).ok()).take(room - 1));
        let put = together
            .iter()
            .try_for_each(|message| output.put(message.identity(), message.payload()))
            .and_then(|()| output.flush());
        match put {
            Err(error) if is_reader_gone(&error) => return Ok(Exit::Done),
            put => put.context("cannot write")?,
        }
        left -= together.len() as u64;
        written.messages.fetch_add(together.len() as u64, Relaxed);
        for message in together.drain(..) {
            written.bytes.fetch_add(message.payload().len() as u64, Relaxed);
            message.ack();
        }
    }
    Ok(Exit::Done)
}

fn report(options: &Options, written: &Written, elapsed: Duration) {
    let (messages, bytes) = (written.messages.load(Relaxed), written.bytes.load(Relaxed));
    let seconds = elapsed.as_secs_f64();
    if options.json {
        terminal::report(json!({ "received": messages, "bytes": bytes, "seconds": seconds }));
    } else if !options.common.quiet {
        note(format!("{} messages, {} bytes received in {seconds:.1} s", grouped(messages), grouped(bytes)));
    }
}
