//! The program's main job, run as users run it: `aiomsg demo` with real processes and sockets, on both backends and both
//! engines, and what becomes of it when processes are killed. What is checked is what the program prints and returns.
#![cfg(feature = "cli")]

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

/// One demo at a time: each is several processes that all want the machine.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aiomsg"));
    command.arg("demo").env_remove("AIOMSG_BACKEND").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    demo().args(arguments).output().expect("the program starts")
}

/// The JSON object on the last line, after a successful run.
fn outcome(arguments: &[&str]) -> Value {
    let output = run(arguments);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {}\n{stdout}\n{stderr}", output.status);
    serde_json::from_str(stdout.lines().last().expect("a last line")).expect("JSON on the last line")
}

fn number(outcome: &Value, name: &str) -> u64 {
    outcome[name].as_u64().unwrap_or_else(|| panic!("{name} is no whole number in {outcome}"))
}

fn assert_complete(outcome: &Value, subscribers: u64) {
    for fault in ["lost", "duplicated", "out_of_order", "corrupted"] {
        assert_eq!(number(outcome, fault), 0, "{fault} in {outcome}");
    }
    assert_eq!(number(outcome, "subscribers"), subscribers);
    assert_eq!(number(outcome, "delivered"), number(outcome, "sent") * subscribers, "{outcome}");
    for figure in ["seconds", "deliveries_per_s", "p50_us", "p99_us", "p999_us"] {
        assert!(outcome[figure].as_f64().is_some_and(|value| value > 0.0), "{figure} in {outcome}");
    }
}

/// The backends that this build has and this machine allows.
fn backends() -> Vec<&'static str> {
    if cfg!(not(all(feature = "uring", target_os = "linux"))) {
        return vec!["poll"];
    }
    // What `auto` takes must then work: a demo that fails on it is a failed test, not a reason to skip.
    let probe = outcome(&["--seconds", "1", "--subscribers", "1", "--json"]);
    if probe["backend"] == "uring" {
        return vec!["uring", "poll"];
    }
    eprintln!("SKIPPED on uring: {}", probe["reason"]);
    vec!["poll"]
}

#[test]
fn eight_subscribers_get_everything_by_default() {
    let _turn = turn();
    let outcome = outcome(&["--seconds", "2", "--json"]);
    assert_complete(&outcome, 8);
    // A third of 2 s at 5,000/s, and then as many as the machine manages.
    assert!(number(&outcome, "sent") > 10_000, "{outcome}");
    assert_eq!(outcome["engine"], "inline");
    assert!(outcome["backend"] == "uring" || outcome["backend"] == "poll", "{outcome}");
    assert!(!outcome["reason"].as_str().unwrap_or_default().is_empty(), "{outcome}");
}

#[test]
fn each_engine_on_each_backend_delivers_everything() {
    let _turn = turn();
    for backend in backends() {
        for engine in ["inline", "sharded"] {
            let arguments = ["--seconds", "1", "--subscribers", "3", "--size", "200", "--rate", "5000", "--json"];
            let outcome = outcome(&[&arguments[..], &["--backend", backend, "--engine", engine]].concat());
            assert_complete(&outcome, 3);
            assert_eq!((&outcome["backend"], &outcome["engine"]), (&backend.into(), &engine.into()));
        }
    }
}

#[test]
fn a_recording_arrives_complete_and_in_order() {
    let _turn = turn();
    let recording = recording("bursts.csv", 20_000);
    let path = recording.to_str().expect("a path of plain characters");
    for backend in backends() {
        for engine in ["inline", "sharded"] {
            let arguments = ["--input", path, "--speed", "100000", "--subscribers", "3", "--json"];
            let outcome = outcome(&[&arguments[..], &["--backend", backend, "--engine", engine]].concat());
            assert_complete(&outcome, 3);
            assert_eq!(number(&outcome, "sent"), 20_000);
            let seconds = outcome["seconds"].as_f64().unwrap_or_default();
            assert!(seconds >= 0.72, "20 hours at 100,000 times the speed cannot take {seconds} s");
        }
    }
}

#[test]
fn the_table_is_for_people() {
    let _turn = turn();
    let output = run(&["--seconds", "1", "--subscribers", "2"]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["backend", "messages", "deliveries/s", "p99.9", "lost", "duplicated", "out of order"] {
        assert!(table.contains(name), "{name} is missing in\n{table}");
    }
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let no_times = recording("no-times.csv", 0);
    fs::write(&no_times, "name,price\nabc,1\n").expect("a file can be written");
    let cases: [(&[&str], &str); 5] = [
        (&["--size", "8"], "a tick needs 32 bytes"),
        (&["--subscribers", "0"], "0 is not in 1..=256"),
        (&["--speed", "2"], "--input"),
        (&["--input", "no-such-file.csv"], "cannot open the recording no-such-file.csv"),
        (&["--input", no_times.to_str().expect("plain"), "--subscribers", "1"], "line 2 of the recording"),
    ];
    let _turn = turn();
    for (arguments, text) in cases {
        let output = run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        assert!(stderr.contains(text), "{arguments:?} said\n{stderr}");
    }
}

#[test]
fn subscribers_do_not_outlive_a_killed_publisher() {
    let _turn = turn();
    let mut publisher = demo()
        .args(["--seconds", "60", "--subscribers", "3"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    std::thread::sleep(Duration::from_millis(700));
    publisher.kill().expect("it runs");
    publisher.wait().expect("it can be waited for");
    // The subscribers inherited this pipe: it ends when the last of them has.
    let mut stderr = publisher.stderr.take().expect("it was piped");
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = stderr.read_to_end(&mut Vec::new());
        let _ = sender.send(());
    });
    assert!(ended.recv_timeout(Duration::from_secs(10)).is_ok(), "subscribers still run");
}

#[cfg(target_os = "linux")]
#[test]
fn a_subscriber_that_dies_ends_the_run_with_an_error() {
    let _turn = turn();
    let publisher = demo()
        .args(["--seconds", "60", "--subscribers", "3"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    std::thread::sleep(Duration::from_millis(700));
    let children = format!("/proc/{0}/task/{0}/children", publisher.id());
    let children = fs::read_to_string(children).expect("the kernel lists children");
    let victim = children.split_whitespace().nth(1).expect("three subscribers run");
    assert!(Command::new("kill").args(["-9", victim]).status().expect("kill exists").success());
    let output = publisher.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("subscriber 1 ended before its report"), "{stderr}");
}

/// Writes a recording of `lines` messages over 20 hours: half of them at one instant, then bursts, lengths differing.
fn recording(name: &str, lines: u64) -> PathBuf {
    const HOUR_NS: u64 = 3_600_000_000_000;
    let start_ns = 1_700_000_000_000_000_000;
    let mut text = String::from("time_ns,number,side\n");
    for number in 0..lines {
        let burst = (number * 2).saturating_sub(lines) * 20 / lines.max(1);
        // The last burst, and so the last message, is 20 hours after the first.
        let offset_ns = if number + 1 == lines { 20 * HOUR_NS } else { burst * HOUR_NS };
        text += &format!("{},{number},{}\n", start_ns + offset_ns, "AB".repeat(number as usize % 40));
    }
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).expect("the test directory can be written");
    path
}
