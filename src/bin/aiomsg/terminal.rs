//! What people see while a command runs: notes on standard error, a live line where that is a terminal, and colours
//! only there and only without `NO_COLOR`. Standard output is for results alone.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// A note to the user: one line on standard error under the program's name.
pub(crate) fn note(text: impl Display) {
    report(format_args!("aiomsg: {text}"));
}

/// A line on standard error. Nobody may listen there any more, which is no reason to fail.
pub(crate) fn report(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

/// Results, to standard output. A reader who has had enough is fine.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<()> {
    match stdout().write_all(text.as_ref()).and_then(|()| stdout().flush()) {
        Err(error) if !is_reader_gone(&error) => Err(error).context("cannot write"),
        _ => Ok(()),
    }
}

/// Whether the reader of the output has gone: an ordinary end, as in `aiomsg sub ... | head`.
pub(crate) fn is_reader_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Whether standard error may be coloured.
pub(crate) fn colours_on_stderr() -> bool {
    stderr().is_terminal() && colours_wanted()
}

/// Whether standard output may be coloured.
pub(crate) fn colours_on_stdout() -> bool {
    stdout().is_terminal() && colours_wanted()
}

fn colours_wanted() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_color && std::env::var_os("TERM").is_none_or(|value| value != "dumb")
}

/// Colours of the terminal's own palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    /// What must be put right.
    Red = 31,
    /// What is fine.
    Green = 32,
    /// What costs something.
    Yellow = 33,
    /// What matters less.
    Grey = 90,
}

/// The text in a colour, or as it is.
pub(crate) fn paint(text: &str, colour: Colour, coloured: bool) -> String {
    if coloured { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
}

/// A line that tells how far long work is: redrawn on a terminal, else written once per `plain_interval`.
pub(crate) struct Live {
    bar: Option<ProgressBar>,
    plain_interval: Duration,
    shown: Instant,
}

impl Live {
    /// `steps`: how much there is to do, if that is known.
    pub(crate) fn new(steps: Option<u64>, plain_interval: Duration) -> Self {
        let template = if steps.is_some() { "[{bar:24}] {msg}" } else { "{spinner} {msg}" };
        let bar = stderr().is_terminal().then(|| {
            // A template that does not parse would only cost the looks.
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            steps.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style)
        });
        Self { bar, plain_interval, shown: Instant::now() }
    }

    /// Shows the text, if it is time for that. `step`: how much of the steps is done.
    pub(crate) fn show(&mut self, step: u64, text: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(text());
                bar.tick();
            }
            None if self.shown.elapsed() >= self.plain_interval => {
                self.shown = Instant::now();
                note(text());
            }
            None => {}
        }
    }

    /// Leaves the terminal as it was.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A number with a comma between thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (68_792, "68,792"), (1_234_567_890, "1,234,567,890")];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn colours_are_left_out_where_they_are_not_wanted() {
        assert_eq!(paint("x", Colour::Red, false), "x");
        assert_eq!(paint("x", Colour::Red, true), "\x1b[31mx\x1b[0m");
    }
}
