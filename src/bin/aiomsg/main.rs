//! The program `aiomsg`: one subcommand per job, each in a module of its own. This file parses the command line, turns
//! an error into one line on standard error, and hands the command's [`Exit`] to the shell.

mod bench;
mod connection;
mod demo;
mod doctor;
mod echo;
mod endpoint;
mod exit;
mod framing;
mod metrics;
mod pages;
mod publish;
mod publishing;
mod relay;
#[cfg(target_os = "linux")]
mod service;
mod subscribe;
mod terminal;
mod top;
mod work;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use exit::Exit;

/// Messaging sockets on io_uring that speak the aiomsg protocol.
#[derive(Parser)]
#[command(
    name = "aiomsg",
    version,
    propagate_version = true,
    after_help = "Set RUST_LOG=info (or debug) to see the log of the engine on standard error."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish ticks to subscribers in other processes, and show what arrived and how fast
    Demo(demo::Options),
    /// Send lines or records of standard input or a file as messages
    Pub(publish::Options),
    /// Write the messages that arrive to standard output or a file
    Sub(subscribe::Options),
    /// Send each message back to the peer that it came from
    Echo(echo::Options),
    /// Pass messages from one socket to another
    Relay(relay::Options),
    /// Measure messages a second and how long one takes, on this machine or to another
    Bench(bench::Options),
    /// Show the counters of a running program: peers, rates, lag, drops
    Top(top::Options),
    /// Say what of this machine is fine for the engine, what costs something, and what to type
    Doctor(doctor::Options),
    /// Print the completions of a shell
    Completions(pages::CompletionsOptions),
    /// Print the manual page, or write all of them into a folder
    Man(pages::ManOptions),
}

/// What the program starts of itself: no part of the command line that people, completions and manual pages see.
#[derive(Parser)]
enum Own {
    /// One subscriber of the demo
    DemoSubscriber(demo::SubscriberOptions),
}

fn main() -> ExitCode {
    let first = std::env::args_os().nth(1).unwrap_or_default();
    // These tell events themselves, and the log is not to say them again.
    let tells_events = ["pub", "sub", "relay"].iter().any(|name| first == *name);
    let default = if tells_events { "warn,aiomsg_uring::shard::logs=error" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = terminal::colours_on_stderr();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    let outcome = if first == "demo-subscriber" { run_own(&Own::parse()) } else { run(&Arguments::parse()) };
    outcome
        .unwrap_or_else(|error| {
            terminal::note(format!("{error:#}"));
            Exit::Failed
        })
        .into()
}

fn run_own(own: &Own) -> Result<Exit> {
    let Own::DemoSubscriber(options) = own;
    demo::run_subscriber(options).map(|()| Exit::Done)
}

fn run(arguments: &Arguments) -> Result<Exit> {
    match &arguments.command {
        Command::Demo(options) => demo::run(options).map(|()| Exit::Done),
        Command::Pub(options) => publish::run(options),
        Command::Sub(options) => subscribe::run(options),
        Command::Echo(options) => echo::run(options),
        Command::Relay(options) => relay::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Top(options) => top::run(options),
        Command::Doctor(options) => doctor::run(options),
        Command::Completions(options) => pages::completions(options, Arguments::command()),
        Command::Man(options) => pages::man(options, Arguments::command()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_in_help_are_command_lines_that_work() {
        let mut found = 0;
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_long_help().or(command.get_after_help());
            let help = help.map(ToString::to_string).unwrap_or_default();
            let examples = help.split_once("Exit codes").map_or("", |(examples, _)| examples);
            for line in examples.split(['\n', '|']).map(str::trim).filter(|line| line.starts_with("aiomsg ")) {
                let words = line.split_whitespace().map(|word| word.trim_matches('\''));
                assert!(Arguments::try_parse_from(words).is_ok(), "{line}");
                found += 1;
            }
        }
        assert!(found >= 10, "{found}");
    }
}
