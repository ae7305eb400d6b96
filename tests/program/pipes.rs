//! `pub` and `sub` in pipelines, with each other and with the stock Python library.

use std::io::Write;
use std::process::{Command, Stdio};

use aiomsg_uring::{DeliveryGuarantee, SendMode};
use serde_json::{Value, json};

use super::common::{PythonPeer, free_port, python};
use super::process::{Program, aiomsg, folder, run, run_with};

fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|index| format!("{prefix}{index}")).collect()
}

fn port(address: &str) -> u16 {
    address.rsplit(':').next().expect("a port").parse().expect("a port")
}

#[test]
fn lines_go_through_in_order() {
    let mut sub = Program::start(&["sub", "--bind", "127.0.0.1:0", "--count", "10000"]);
    let address = sub.address();
    let lines = numbered("line ", 10_000);
    let sent = run_with(&["pub", "--connect", &address], (lines.join("\n") + "\n").as_bytes());
    assert_eq!(sent.code(), 0, "{sent:?}");
    assert!(sent.stderr.contains("10,000 messages sent"), "{}", sent.stderr);
    let received = sub.end();
    assert_eq!((received.code(), received.lines()), (0, lines));
}

#[test]
fn binary_records_arrive_as_they_were() {
    let folder = folder("records");
    let path = |name: &str| folder.join(name).to_str().expect("plain").to_owned();
    let records: [&[u8]; 5] = [b"", b"\0\n\r\xff", &[7; 100_000], b"last but one", b"\n"];
    let framed: Vec<u8> = records.iter().flat_map(|r| [&(r.len() as u32).to_be_bytes()[..], r].concat()).collect();
    std::fs::write(path("in"), &framed).expect("written");
    let count = records.len().to_string();
    let output = path("out");
    let mut sub =
        Program::start(&["sub", "-b", "127.0.0.1:0", "-n", &count, "--framing", "length", "--output", &output]);
    let address = sub.address();
    let sent = run(&["pub", "-c", &address, "--framing", "length", "--input", &path("in"), "--json"]);
    let report: Value = serde_json::from_str(sent.stderr.lines().last().expect("a line")).expect("JSON");
    assert_eq!((sent.code(), &report["sent"], &report["undelivered"]), (0, &json!(records.len()), &json!(0)));
    assert_eq!(sub.end().code(), 0);
    assert_eq!(std::fs::read(&output).expect("written"), framed);
}

#[test]
fn json_tells_who_sent_and_takes_whom_to_send_to() {
    let (asker, answerer) = ("0a".repeat(16), "0b".repeat(16));
    let mut sub = Program::start(&["sub", "-b", "127.0.0.1:0", "-n", "2", "--json", "--identity", &answerer]);
    let address = sub.address();
    let input = format!("{{\"text\":\"t\u{e4}xt \\\"\"}}\n{{\"base64\":\"/wA=\",\"to\":\"{answerer}\"}}\n");
    let arguments = ["pub", "-c", &address, "--json", "--identity", &asker, "--wait-peers", "1"];
    let sent = run_with(&arguments, input.as_bytes());
    assert_eq!(sent.code(), 0, "{sent:?}");
    let received = sub.end();
    let objects: Vec<Value> = received.lines().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(objects[0], json!({ "identity": asker, "text": "t\u{e4}xt \"" }));
    assert_eq!(objects[1], json!({ "identity": asker, "base64": "/wA=" }));
    let report: Value = serde_json::from_str(received.stderr.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&report["received"], &report["bytes"]), (&json!(2), &json!(9)));
}

#[test]
fn a_peer_is_sent_to_by_its_name() {
    let name = "5e".repeat(16);
    let mut publisher = Program::start(&["pub", "-b", "127.0.0.1:0", "--to", &name, "--data", "for you", "-n", "3"]);
    let address = publisher.address();
    let _other = Program::start(&["sub", "-c", &address]);
    let named = run(&["sub", "-c", &address, "-n", "3", "--identity", &name]);
    assert_eq!((named.code(), named.lines()), (0, vec!["for you".to_owned(); 3]));
    assert_eq!(publisher.end().code(), 0);
}

#[test]
fn the_python_library_publishes_and_receives() {
    let Some(python) = python() else { return };
    // It binds, the program connects; then the other way round.
    let mut peer = PythonPeer::start(python, SendMode::Publish, DeliveryGuarantee::AtMostOnce);
    let python_port = free_port();
    peer.ask(json!({ "do": "bind", "port": python_port }));
    let endpoint = format!("127.0.0.1:{python_port}");
    let sub = Program::start(&["sub", "--connect", &endpoint, "--count", "500"]);
    peer.ask(json!({ "do": "send", "count": 500, "prefix": "tick " }));
    assert_eq!(sub.end().lines(), numbered("tick ", 500));
    let lines = numbered("order ", 500);
    let sent = run_with(&["pub", "--connect", &endpoint, "--wait-peers", "1"], (lines.join("\n") + "\n").as_bytes());
    assert_eq!(sent.code(), 0, "{sent:?}");
    assert_eq!(peer.ask(json!({ "do": "receive", "count": 500 }))["messages"], json!(lines));

    let mut peer = PythonPeer::start(python, SendMode::RoundRobin, DeliveryGuarantee::AtLeastOnce);
    let mut sub = Program::start(&["sub", "--bind", "127.0.0.1:0", "--count", "50"]);
    let address = sub.address();
    peer.ask(json!({ "do": "connect", "port": port(&address) }));
    peer.ask(json!({ "do": "send", "count": 50, "prefix": "kept " }));
    assert_eq!(sub.end().lines(), numbered("kept ", 50));

    let mut peer = PythonPeer::start(python, SendMode::RoundRobin, DeliveryGuarantee::AtMostOnce);
    let arguments = ["pub", "--bind", "127.0.0.1:0", "--guarantee", "at-least-once", "--data", "job", "-n", "50"];
    let mut publisher = Program::start(&arguments);
    peer.ask(json!({ "do": "connect", "port": port(&publisher.address()) }));
    assert_eq!(peer.ask(json!({ "do": "receive", "count": 50 }))["messages"], json!(vec!["job"; 50]));
    assert_eq!(publisher.end().code(), 0);
}

#[test]
fn who_comes_late_gets_what_is_kept_for_it() {
    let lines = ["EURUSD 1", "USDJPY 2", "EURUSD 3"];
    let objects = lines.map(|line| json!({ "text": line, "key": line[..6] }).to_string());
    let cases: [(&[&str], _, &[&str]); 4] = [
        (&["--key", "word", "--replay", "snapshot"], lines.map(str::to_owned), &lines[1..]),
        (&["--json", "--replay", "snapshot"], objects, &lines[1..]),
        (&["--replay", "oldest"], lines.map(str::to_owned), &lines),
        (&["--replay", "oldest", "--retain", "2"], lines.map(str::to_owned), &lines[1..]),
    ];
    for (options, input, kept) in cases {
        let arguments = [&["pub", "-b", "127.0.0.1:0"], options].concat();
        let mut publisher = Program::start_with(&arguments, Stdio::piped(), Stdio::null());
        let address = publisher.address();
        let mut feed = publisher.input();
        writeln!(feed, "{}", input.join("\n")).expect("written");
        // What was sent while nobody was there goes to the first in any case.
        let first = run(&["sub", "-c", &address, "-n", "3"]);
        assert_eq!(first.lines(), lines, "{options:?}");
        let late = run(&["sub", "-c", &address, "-n", &kept.len().to_string()]);
        assert_eq!(late.lines(), kept, "{options:?}");
        if let Some(python) = python() {
            let mut peer = PythonPeer::start(python, SendMode::Publish, DeliveryGuarantee::AtMostOnce);
            peer.ask(json!({ "do": "connect", "port": port(&address) }));
            let got = peer.ask(json!({ "do": "receive", "count": kept.len() }));
            assert_eq!(got["messages"], json!(kept), "{options:?}");
        }
        drop(feed);
        assert_eq!(publisher.end().code(), 0, "{options:?}");
    }
}

#[test]
fn a_pipeline_passes_on_from_one_python_peer_to_another() {
    let Some(python) = python() else { return };
    let start = |_| PythonPeer::start(python, SendMode::Publish, DeliveryGuarantee::AtMostOnce);
    let [mut source, mut sink] = [0, 1].map(start);
    let [from, to] = [(); 2].map(|()| free_port());
    source.ask(json!({ "do": "bind", "port": from }));
    sink.ask(json!({ "do": "bind", "port": to }));
    let mut sub = aiomsg(&["sub", "--connect", &format!("127.0.0.1:{from}"), "--count", "300"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let stdout = sub.stdout.take().expect("a pipe");
    let publisher =
        Program::start_with(&["pub", "--connect", &format!("127.0.0.1:{to}")], stdout.into(), Stdio::null());
    source.ask(json!({ "do": "send", "count": 300, "prefix": "tick " }));
    assert_eq!(sink.ask(json!({ "do": "receive", "count": 300 }))["messages"], json!(numbered("tick ", 300)));
    assert!(sub.wait().expect("a child").success());
    assert_eq!(publisher.end().code(), 0);
}

#[test]
fn a_message_is_written_when_nothing_more_is_coming() {
    let mut publisher = Program::start_with(&["pub", "-b", "127.0.0.1:0"], Stdio::piped(), Stdio::null());
    let address = publisher.address();
    // `head` ends only when the line has reached it, and then so does `sub`, when it writes the next one.
    let mut head =
        Command::new("head").arg("-n1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("head exists");
    let pipe = head.stdin.take().expect("a pipe");
    let sub = Program::start_with(&["sub", "-c", &address], Stdio::null(), pipe.into());
    let mut feed = publisher.input();
    feed.write_all(b"first\n").expect("written");
    let first = head.wait_with_output().expect("it ends");
    assert_eq!(first.stdout, b"first\n");
    feed.write_all(b"second\n").expect("written");
    let end = sub.end();
    assert_eq!(end.code(), 0, "{end:?}");
}
