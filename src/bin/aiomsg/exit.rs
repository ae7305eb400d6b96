//! What the program tells the shell: one number per way to end. Every command answers with one of these; `main` turns
//! errors into [`Exit::Failed`], and clap answers most wrong usage by itself with [`Exit::Usage`]'s number.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All was done.
    Done = 0,
    /// It did not work, or must be put right.
    Failed = 1,
    /// The command line was wrong.
    Usage = 2,
    /// Some messages reached nobody.
    Undelivered = 3,
    /// What was waited for did not come in time.
    TimedOut = 4,
    /// Ctrl-C or a signal came before it was done.
    Interrupted = 130,
}

/// The same for people; each command's --help ends with it.
pub(crate) const HELP: &str = "Exit codes:
  0    done; also when the reader of the output has had enough (as in `aiomsg sub ... | head`)
  1    failed; the reason is on standard error
  2    wrong usage
  3    some messages did not reach their peers: dropped, expired, or undelivered at the end
  4    what was waited for did not come in time
  130  ended by Ctrl-C or SIGTERM before it was done (what was accepted is sent first)";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}
