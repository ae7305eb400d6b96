//! Work that Ctrl-C ends in order. A command's loop runs on a thread of its own, where it may block on input or output
//! for ever; the main thread waits for its end or for a signal, whichever comes first, and does what is left to do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::exit::Exit;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether a signal has come, for loops that look now and then. Only after [`on_interrupt`].
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// From now on the first Ctrl-C, SIGTERM or SIGHUP calls `first`, and the second ends the process at once. To be called
/// once in a process.
pub(crate) fn on_interrupt(first: impl Fn() + Send + 'static) -> Result<()> {
    let handler = move || {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(Exit::Interrupted as i32);
        }
        first();
    };
    ctrlc::set_handler(handler).context("cannot handle signals")
}

/// Work under way. A signal before its end is an end without a result.
pub(crate) struct Work<T> {
    sender: Sender<Option<T>>,
    ends: Receiver<Option<T>>,
}

impl<T: Send + 'static> Work<T> {
    /// Nothing runs yet; signals are heard.
    pub(crate) fn new() -> Result<Self> {
        let (sender, ends) = channel();
        let interrupted = sender.clone();
        // The receiver lives until the process ends, or else nobody wants to know.
        on_interrupt(move || drop(interrupted.send(None)))?;
        Ok(Self { sender, ends })
    }

    /// Runs a part of the work on a thread of its own.
    pub(crate) fn spawn(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<()> {
        let sender = self.sender.clone();
        let run = move || drop(sender.send(Some(work())));
        std::thread::Builder::new().name("work".into()).spawn(run).context("cannot start a thread")?;
        Ok(())
    }

    /// Waits for the end of a part; `None` when a signal came first.
    pub(crate) fn wait(&self) -> Option<T> {
        self.ends.recv().ok().flatten()
    }

    /// The same for at most `timeout`; `None` when there is no result.
    pub(crate) fn wait_timeout(&self, timeout: Duration) -> Option<T> {
        self.ends.recv_timeout(timeout).ok().flatten()
    }
}
