//! `aiomsg doctor`: what of this machine and this process matters to the engine; what is fine, what costs something, what
//! must be put right, and what to type for that. It changes nothing.
//!
//! This file: the options, and how findings are shown. `machine` reads, `checks` judges.

mod checks;
mod machine;

use aiomsg_uring::{Backend, Engine};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::terminal::{Colour, colours_on_stdout, paint, print};
use machine::Machine;

/// The options of `aiomsg doctor`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Exit codes:
  0  nothing must be put right
  1  something must: the lines that begin with `fix`
  2  wrong usage

What is found is of this process: run it as the user, in the container or under the unit that it is about.")]
pub(crate) struct Options {
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// How things stand with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Fine,
    /// Works, at a price.
    Costs,
    /// Must be put right.
    Fix,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    name: &'static str,
    verdict: Verdict,
    /// What there is.
    found: String,
    /// What that means; empty where `found` says it all.
    why: String,
    /// What to type.
    fix: Vec<String>,
}

/// Looks, tells, and fails when something must be put right.
pub(crate) fn run(options: &Options) -> Result<Exit> {
    // The engine's own test, not a guess from version numbers.
    let ring = Engine::builder().backend(Backend::Uring).build().map(drop).map_err(|error| error.to_string());
    let findings = checks::all(&Machine::real(), &ring);
    let text = if options.json { format!("{}\n", json(&findings)) } else { text(&findings, colours_on_stdout()) };
    print(text)?;
    Ok(if findings.iter().any(|finding| finding.verdict == Verdict::Fix) { Exit::Failed } else { Exit::Done })
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Costs => "costs",
            Self::Fix => "fix",
        }
    }

    fn colour(self) -> Colour {
        match self {
            Self::Fine => Colour::Green,
            Self::Costs => Colour::Yellow,
            Self::Fix => Colour::Red,
        }
    }
}

fn json(findings: &[Finding]) -> Value {
    let shown = findings.iter().map(|Finding { name, verdict, found, why, fix }| {
        json!({ "name": name, "verdict": verdict.word(), "found": found, "why": why, "fix": fix })
    });
    json!({
        "ok": findings.iter().all(|finding| finding.verdict != Verdict::Fix),
        "version": env!("CARGO_PKG_VERSION"),
        "findings": shown.collect::<Vec<_>>(),
    })
}

fn text(findings: &[Finding], coloured: bool) -> String {
    let mut text = String::new();
    for Finding { name, verdict, found, why, fix } in findings {
        let word = paint(&format!("{:<5}", verdict.word()), verdict.colour(), coloured);
        text += &format!("{word} {name:<15} {found}\n");
        if !why.is_empty() {
            text += &format!("{:21} {}\n", "", paint(why, Colour::Grey, coloured));
        }
        for command in fix {
            text += &format!("{:21} $ {command}\n", "");
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    text += &match (count(Verdict::Fix), count(Verdict::Costs)) {
        (0, 0) => "all is well\n".to_owned(),
        (0, costs) => format!("nothing must be put right; {costs} of {} cost something\n", findings.len()),
        (fix, costs) => format!("{fix} of {} must be put right; {costs} cost something\n", findings.len()),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_shown_with_what_to_type() {
        let finding = |name, verdict| Finding {
            name,
            verdict,
            found: "64".into(),
            why: "too few".into(),
            fix: vec!["ulimit -n 65536".into()],
        };
        let findings = [finding("open files", Verdict::Fix), finding("other", Verdict::Costs)];
        let shown = text(&findings, false);
        assert!(shown.starts_with("fix   open files      64\n"), "{shown}");
        assert!(
            shown.contains("$ ulimit -n 65536\n") && shown.ends_with("1 of 2 must be put right; 1 cost something\n")
        );
        assert!(text(&findings, true).contains("\x1b[31m"));
        assert_eq!(
            (&json(&findings)["ok"], &json(&findings)["findings"][0]["verdict"]),
            (&json!(false), &json!("fix"))
        );
    }
}
