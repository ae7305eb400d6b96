//! The small program that the aiomsg family's conformance runs drive: a source, a sink or an
//! echo on a binding or a connecting socket. The command line is the family's; a sink prints each
//! payload on a line of standard output, everything else goes to standard error.
//!
//! Exit status: 0 done, 1 something failed, 2 the command line asks for what is not there.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use aiomsg_uring::{DeliveryGuarantee, Identity, SendMode, Socket, blocking};

#[derive(Debug, PartialEq)]
enum Role {
    Bind,
    Connect,
}

#[derive(Debug, PartialEq)]
enum Behavior {
    Source,
    Sink,
    Echo,
}

#[derive(Debug)]
struct Options {
    role: Role,
    host: String,
    port: u16,
    send_mode: SendMode,
    behavior: Behavior,
    /// Messages to send, to print or to answer.
    count: u64,
    prefix: String,
    delivery: DeliveryGuarantee,
    identity: Option<Identity>,
    /// How long a source or an echo stays after its last send.
    linger: Duration,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("conformance_agent: {problem}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("conformance_agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let mut builder = Socket::builder().send_mode(options.send_mode).delivery_guarantee(options.delivery);
    if let Some(identity) = options.identity {
        builder = builder.identity(identity);
    }
    let socket = builder.build_blocking()?;
    let endpoint = (options.host.as_str(), options.port);
    match options.role {
        Role::Bind => eprintln!("bound to {}", socket.bind(endpoint)?),
        Role::Connect => socket.connect(endpoint)?,
    }
    match options.behavior {
        Behavior::Source => {
            // Messages that find no peer are kept until there is one.
            for index in 0..options.count {
                socket.send(format!("{}{index}", options.prefix))?;
            }
            thread::sleep(options.linger);
        }
        Behavior::Sink => sink(&socket, options.count)?,
        Behavior::Echo => {
            for _ in 0..options.count {
                let (identity, message) = socket.recv_identity()?;
                socket.send_to(identity, message)?;
            }
            thread::sleep(options.linger);
        }
    }
    match socket.close().undelivered {
        0 => Ok(()),
        messages => Err(format!("{messages} messages were not delivered").into()),
    }
}

fn sink(socket: &blocking::Socket, count: u64) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    for _ in 0..count {
        let message = socket.recv()?;
        writeln!(out, "{}", String::from_utf8_lossy(&message))?;
        out.flush()?;
    }
    Ok(())
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        role: Role::Connect,
        host: "127.0.0.1".into(),
        port: 25000,
        send_mode: SendMode::RoundRobin,
        behavior: Behavior::Sink,
        count: 10,
        prefix: "m".into(),
        delivery: DeliveryGuarantee::AtMostOnce,
        identity: None,
        linger: Duration::from_secs(1),
    };
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let wrong = || format!("{name} does not take {value:?}");
        match name.as_str() {
            "--role" => {
                options.role = match value.as_str() {
                    "bind" => Role::Bind,
                    "connect" => Role::Connect,
                    _ => return Err(wrong()),
                }
            }
            "--host" => options.host = value,
            "--port" => options.port = value.parse().map_err(|_| wrong())?,
            "--send-mode" => options.send_mode = value.parse().map_err(|_| wrong())?,
            "--behavior" => {
                options.behavior = match value.as_str() {
                    "source" => Behavior::Source,
                    "sink" => Behavior::Sink,
                    "echo" => Behavior::Echo,
                    _ => return Err(wrong()),
                }
            }
            "--count" => options.count = value.parse().map_err(|_| wrong())?,
            "--prefix" => options.prefix = value,
            "--delivery" => {
                options.delivery = match value.as_str() {
                    "at-most-once" => DeliveryGuarantee::AtMostOnce,
                    "at-least-once" => DeliveryGuarantee::AtLeastOnce,
                    _ => return Err(wrong()),
                }
            }
            "--identity" => options.identity = Some(value.parse().map_err(|_| wrong())?),
            "--linger" => {
                let seconds = value.parse().map_err(|_| wrong())?;
                options.linger = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
            }
            "--tls" => match value.as_str() {
                "false" => {}
                "true" => return Err("TLS is not there yet: run without --tls true".into()),
                _ => return Err(wrong()),
            },
            // Without TLS there is nothing that these could configure.
            "--tls-cert" | "--tls-key" | "--tls-ca" | "--tls-server-name" => {}
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(options)
}
