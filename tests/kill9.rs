//! Receivers that are killed with -9, one after the other, under traffic. The sender lives, is
//! AT_LEAST_ONCE, and gets each acknowledgement after a journal was written. All journals together
//! hold every message: lost 0; duplicates are counted.

mod common;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use aiomsg_uring::{Backend, DeliveryGuarantee, Engine, SendMode, Socket};
use common::{eventually_within, example, is_available, say_loudly, watched_for};

const KILLS: usize = 200;
/// Receivers at a time. Each lives for `WORKERS * BETWEEN_KILLS`, which has to be longer than
/// `RESEND`; and every second one is so slow that messages wait in it for longer than that. So
/// receivers are killed that hold messages which have been sent to them again.
const WORKERS: usize = 8;
const BETWEEN_KILLS: Duration = Duration::from_millis(100);
const RESEND: Duration = Duration::from_millis(500);
const SLOW_US: &str = "400";
const _: () = assert!(WORKERS as u128 * BETWEEN_KILLS.as_millis() > RESEND.as_millis());
const TIME_MAX: Duration = Duration::from_secs(110);

#[test]
fn two_hundred_receivers_killed_on_uring() {
    kill_in_turn("uring", Backend::Uring);
}

#[test]
fn two_hundred_receivers_killed_on_poll() {
    kill_in_turn("poll", Backend::Poll);
}

/// A receiver; killed when dropped, too.
struct Worker(Child);

impl Worker {
    fn start(backend: &str, endpoint: &str, journal: PathBuf, number: usize) -> Worker {
        let pause_us = if number.is_multiple_of(2) { "0" } else { SLOW_US };
        let mut command = Command::new(example("journal_worker"));
        command.arg(endpoint).arg(journal).arg(pause_us).env("AIOMSG_BACKEND", backend);
        Worker(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("started"))
    }
}

impl Drop for Worker {
    /// SIGKILL: nothing of the process runs any more.
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("a child");
    }
}

fn kill_in_turn(name: &'static str, backend: Backend) {
    if !cfg!(unix) || !is_available(backend) {
        return;
    }
    watched_for(name, TIME_MAX, move || {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kill9-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let engine = Engine::builder().backend(backend).shards(2).build().expect("an engine");
        let sender = Socket::builder()
            .send_mode(SendMode::RoundRobin)
            .delivery_guarantee(DeliveryGuarantee::AtLeastOnce)
            .resend(RESEND, 1_000)
            .engine(&engine)
            .build_blocking()
            .expect("a socket");
        let endpoint = sender.bind("127.0.0.1:0").expect("bound").to_string();
        let start = |number: usize| Worker::start(name, &endpoint, folder.join(number.to_string()), number);
        let mut workers: Vec<_> = (0..WORKERS).map(start).collect();
        sender.wait_for_peers(WORKERS, common::PATIENCE).expect("receivers in time");

        let finished = AtomicBool::new(false);
        let sent = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut sent = 0u64;
                while !finished.load(Ordering::Relaxed) {
                    (0..50).for_each(|offset| sender.send(&common::number(sent + offset)).expect("sent"));
                    sent += 50;
                    // Some 30,000 a second, of which a slow receiver does the half of its share.
                    thread::sleep(Duration::from_micros(1_500));
                }
                sent
            });
            for kill in 0..KILLS {
                thread::sleep(BETWEEN_KILLS);
                workers[kill % WORKERS] = start(WORKERS + kill);
            }
            finished.store(true, Ordering::Relaxed);
            sending.join().expect("all sent")
        });
        let all = || sender.stats().messages_acknowledged == sent;
        eventually_within(Duration::from_secs(40), "all are acknowledged", all);
        let stats = sender.stats();
        drop(workers);

        let mut times: HashMap<u64, u64> = HashMap::new();
        for journal in std::fs::read_dir(&folder).expect("the folder") {
            let entries = std::fs::read(journal.expect("a journal").path()).expect("its bytes");
            // A write of 8 bytes is not cut by a kill.
            assert!(entries.len().is_multiple_of(8), "half an entry");
            for entry in entries.chunks_exact(8) {
                *times.entry(u64::from_be_bytes(entry.try_into().expect("8 bytes"))).or_default() += 1;
            }
        }
        let lost = (0..sent).filter(|value| !times.contains_key(value)).count();
        let again: u64 = times.values().map(|times| times - 1).sum();
        say_loudly(&format!(
            "kill -9 on {name}: {KILLS} kills, {sent} messages, lost {lost}, received again {again}, sent again {}",
            stats.messages_resent
        ));
        assert!(stats.messages_resent > 0, "nothing was sent again, so this shows less than it says");
        assert_eq!(lost, 0, "{stats:?}");
        assert_eq!(times.len() as u64, sent, "invented");
        assert_eq!(stats.messages_expired, 0);
        assert!(stats.disconnects >= KILLS as u64 - 5, "hardly anybody was killed under traffic: {stats:?}");
        std::fs::remove_dir_all(&folder).expect("removed");
    });
}
