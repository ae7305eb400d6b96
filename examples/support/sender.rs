//! The sending side of a run: the listening end of the control connection, the probe and
//! end messages, and the window.
//!
//! Nothing here blocks: the caller knows how to wait (an inline engine must be driven meanwhile).

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::message::{END, PROBE, message};
use super::options::Options;
use super::receiver::{TAG_CREDIT, TAG_DONE, TAG_READY, control_record};
use super::usage::{Usage, leave, print_run};

/// Time between two rounds of probe messages.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_millis(5);
/// Time between two rounds of end messages.
pub(crate) const END_INTERVAL: Duration = Duration::from_millis(20);

/// What the receiver has said; written by the control thread only.
#[derive(Default)]
struct Heard {
    ready: AtomicBool,
    done: AtomicBool,
    /// Deliveries that the receiver has counted, for the window.
    deliveries: AtomicU64,
}

/// The sender's part of a run.
pub(crate) struct Sender {
    options: Options,
    heard: Arc<Heard>,
    round: u64,
    since: Usage,
    began: Instant,
    sent_s: f64,
}

impl Sender {
    /// Listens for the control connection. To be called before the library binds, so that a
    /// receiver which finds the data port finds this one too.
    pub(crate) fn new(options: &Options) -> std::io::Result<Sender> {
        let listener = TcpListener::bind(("127.0.0.1", options.port + 1))?;
        let heard = Arc::new(Heard::default());
        let written = heard.clone();
        thread::spawn(move || {
            listen(listener, &written);
            if !written.done.load(Ordering::Acquire) {
                eprintln!("the receiver went away");
                std::process::exit(3);
            }
        });
        let options = options.clone();
        Ok(Sender { options, heard, round: 0, since: Usage::now(), began: Instant::now(), sent_s: 0.0 })
    }

    /// The next probe message, or `None` once the receiver is ready.
    pub(crate) fn probe(&mut self) -> Option<Vec<u8>> {
        self.round_of(PROBE, self.heard.ready.load(Ordering::Acquire))
    }

    /// Marks the first message of the data.
    pub(crate) fn start(&mut self) {
        self.round = 0;
        self.since = Usage::now();
        self.began = Instant::now();
    }

    /// Whether the window lets message `index` out now.
    #[inline]
    pub(crate) fn is_open(&self, index: u64) -> bool {
        let window = self.options.window;
        window == 0 || index < window || {
            let wanted = (index - window + 1) * self.options.copies();
            wanted <= self.heard.deliveries.load(Ordering::Acquire) || self.heard.done.load(Ordering::Acquire)
        }
    }

    /// Marks the end of the data: the library has all of it.
    pub(crate) fn sent(&mut self) {
        self.sent_s = self.began.elapsed().as_secs_f64();
    }

    /// The next end message, or `None` once the receiver is done.
    pub(crate) fn end(&mut self) -> Option<Vec<u8>> {
        self.round_of(END, self.heard.done.load(Ordering::Acquire))
    }

    /// Prints the sender's line and leaves.
    pub(crate) fn report(self) -> ! {
        print_run(&self.options, "tx", &self.since, &format!(",\"sent_secs\":{:.6}", self.sent_s));
        leave()
    }

    fn round_of(&mut self, kind: u8, over: bool) -> Option<Vec<u8>> {
        if over {
            return None;
        }
        self.round += 1;
        Some(message(kind, self.round, self.options.size))
    }
}

/// Reads control records until the receiver closes.
fn listen(listener: TcpListener, heard: &Heard) {
    let Ok((mut control, _)) = listener.accept() else { return };
    let mut record = control_record(0, 0);
    while control.read_exact(&mut record).is_ok() {
        let mut value = [0; 8];
        value.copy_from_slice(&record[1..]);
        match record[0] {
            TAG_READY => heard.ready.store(true, Ordering::Release),
            TAG_CREDIT => heard.deliveries.store(u64::from_le_bytes(value), Ordering::Release),
            TAG_DONE => heard.done.store(true, Ordering::Release),
            tag => eprintln!("unknown control record {tag}"),
        }
    }
}
