//! The program `aiomsg`: one subcommand per job, each in a module of its own. This file parses the command line,
//! turns an error into one line on standard error, and chooses the exit code: 0 done, 1 failed, 2 wrong usage.

mod demo;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Messaging sockets on io_uring that speak the aiomsg protocol.
#[derive(Parser)]
#[command(version, about, after_help = "Set RUST_LOG=info (or debug) to see the log of the engine on standard error.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish ticks to subscribers in other processes, and show what arrived and how fast.
    Demo(demo::Options),
    /// One subscriber of the demo, started by it.
    #[command(hide = true)]
    DemoSubscriber(demo::SubscriberOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    let outcome = match &arguments.command {
        Command::Demo(options) => demo::run(options),
        Command::DemoSubscriber(options) => demo::run_subscriber(options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aiomsg: {error:#}");
            ExitCode::FAILURE
        }
    }
}
