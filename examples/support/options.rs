//! The command line: a role, then options that all take a value.

use std::collections::HashMap;
use std::process::exit;

use super::message::PAYLOAD_BYTES_MIN;

/// What one process of a run is asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// `pub`, `sub`, `ping`, `pong`, `hold` or `idle`.
    pub(crate) role: String,
    /// Data port on loopback; the control connection uses the next one.
    pub(crate) port: u16,
    /// Payload bytes of each message, at least [`PAYLOAD_BYTES_MIN`].
    pub(crate) size: usize,
    /// Messages of the measured part, or round trips.
    pub(crate) count: u64,
    /// Subscribers of a fan-out, workers that share a push, connections of `hold` and `idle`.
    pub(crate) subs: usize,
    /// `push`: each message to one receiver; `pub`: to all.
    pub(crate) pattern: String,
    /// Messages that the sending socket may hold; 0: the library's own limit.
    pub(crate) hwm: usize,
    /// Messages that may be on their way per connection; 0: no window.
    pub(crate) window: u64,
    /// `--x name[=value]` switches.
    switches: HashMap<String, String>,
}

impl Options {
    /// Reads the command line; leaves with status 2 when it makes no sense.
    pub(crate) fn from_args() -> Options {
        let mut args = std::env::args().skip(1);
        let role = args.next().unwrap_or_else(|| usage("a role is missing"));
        let mut options = Options {
            role,
            port: 21000,
            size: 64,
            count: 100_000,
            subs: 1,
            pattern: "push".into(),
            hwm: 0,
            window: 0,
            switches: HashMap::new(),
        };
        while let Some(name) = args.next() {
            let value = args.next().unwrap_or_else(|| usage(&format!("{name} needs a value")));
            match name.as_str() {
                "--port" => options.port = number(&name, &value),
                "--size" => options.size = number(&name, &value),
                "--count" => options.count = number(&name, &value),
                "--subs" => options.subs = number(&name, &value),
                "--pattern" => options.pattern = value,
                "--hwm" => options.hwm = number(&name, &value),
                "--window" => options.window = number(&name, &value),
                // Options of other libraries' programs, which the driver gives to all rows alike.
                "--batch" | "--chunk" => _ = number::<usize>(&name, &value),
                "--x" => {
                    let (key, value) = value.split_once('=').unwrap_or((&value, "1"));
                    options.switches.insert(key.into(), value.into());
                }
                _ => usage(&format!("unknown option {name}")),
            }
        }
        if options.size < PAYLOAD_BYTES_MIN {
            usage(&format!("--size is at least {PAYLOAD_BYTES_MIN}"));
        }
        options
    }

    /// Whether `--x name` was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.switches.contains_key(name)
    }

    /// The number of `--x name=number`, if it was given.
    pub(crate) fn number_of(&self, name: &str) -> Option<usize> {
        self.switches.get(name).map(|value| number(name, value))
    }

    /// Whether every receiver gets each message.
    pub(crate) fn is_fan_out(&self) -> bool {
        self.pattern == "pub"
    }

    /// Whether several receivers share the messages.
    pub(crate) fn is_shared(&self) -> bool {
        !self.is_fan_out() && self.subs > 1
    }

    /// How many deliveries one message makes.
    pub(crate) fn copies(&self) -> u64 {
        if self.is_fan_out() { self.subs as u64 } else { 1 }
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> T {
    value.parse().unwrap_or_else(|_| usage(&format!("{name} takes a number, not {value:?}")))
}

fn usage(problem: &str) -> ! {
    eprintln!("{problem}");
    eprintln!(
        "usage: peer pub|sub|ping|pong|hold|idle [--port P] [--size BYTES] [--count N] [--subs K] \
         [--pattern push|pub] [--hwm MESSAGES] [--window MESSAGES] [--x SWITCH]..."
    );
    exit(2)
}
