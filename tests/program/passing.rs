//! `echo` and `relay`, with Python peers where there are any.

use std::io::Write;
use std::process::Stdio;

use aiomsg_uring::{DeliveryGuarantee, Identity, SendMode, Socket};
use serde_json::{Value, json};

use super::common::{PythonPeer, python};
use super::process::{PATIENCE, Program, run, run_with};

fn both_addresses(relay: &mut Program) -> (String, String) {
    // The way out is opened first.
    let outward = relay.said("out: listening on ");
    (relay.said("in: listening on "), outward)
}

#[test]
fn an_echo_answers_who_asked() {
    for engine in ["inline", "sharded"] {
        let mut echo = Program::start(&["echo", "-b", "127.0.0.1:0", "-n", "200", "--engine", engine]);
        let address = echo.address();
        let askers: Vec<_> = (0..2)
            .map(|_| {
                let socket = Socket::builder().build_blocking().expect("a socket");
                socket.connect(&address).expect("connecting");
                socket
            })
            .collect();
        for n in 0..100 {
            for (who, socket) in askers.iter().enumerate() {
                socket.send(format!("{who} asks {n}")).expect("sent");
            }
            for (who, socket) in askers.iter().enumerate() {
                assert_eq!(socket.recv_timeout(PATIENCE).expect("answered"), format!("{who} asks {n}"));
            }
        }
        let end = echo.end();
        assert_eq!(end.code(), 0, "{end:?}");
        assert!(end.stderr.contains("200 messages, 0 of them not sent back"), "{}", end.stderr);
    }
}

#[test]
fn an_echo_answers_python() {
    let Some(python) = python() else { return };
    let mut peer = PythonPeer::start(python, SendMode::RoundRobin, DeliveryGuarantee::AtMostOnce);
    let mut echo = Program::start(&["echo", "-b", "127.0.0.1:0"]);
    let address = echo.address();
    let port: u16 = address.rsplit(':').next().expect("a port").parse().expect("a port");
    peer.ask(json!({ "do": "connect", "port": port }));
    peer.ask(json!({ "do": "send", "count": 20, "prefix": "m" }));
    let answers = peer.ask(json!({ "do": "receive", "count": 20 }));
    assert_eq!(answers["messages"], json!((0..20).map(|n| format!("m{n}")).collect::<Vec<_>>()));
}

#[test]
fn a_relay_joins_those_who_all_connect() {
    let arguments = ["relay", "--in-bind", "127.0.0.1:0", "--out-bind", "127.0.0.1:0", "--json"];
    let mut relay = Program::start(&arguments);
    let (inward, outward) = both_addresses(&mut relay);
    let subs: Vec<_> = (0..2).map(|_| Program::start(&["sub", "-c", &outward, "-n", "1000", "-v"])).collect();
    let mut subs: Vec<_> = subs
        .into_iter()
        .map(|mut sub| {
            sub.said("connected");
            sub
        })
        .collect();
    let lines: Vec<_> = (0..1000).map(|n| n.to_string()).collect();
    let sent = run_with(&["pub", "-c", &inward], (lines.join("\n") + "\n").as_bytes());
    assert_eq!(sent.code(), 0, "{sent:?}");
    for sub in subs.drain(..) {
        assert_eq!(sub.end().lines(), lines);
    }
    relay.signal("INT");
    let end = relay.end();
    let report: Value = serde_json::from_str(end.stderr.lines().last().expect("a line")).expect("JSON");
    assert_eq!((end.code(), &report["forth"]["passed"], &report["back"]["passed"]), (0, &json!(1000), &json!(0)));
}

#[test]
fn a_relay_passes_both_ways() {
    let arguments = ["relay", "--in-bind", "127.0.0.1:0", "--out-bind", "127.0.0.1:0", "--both-ways"];
    let mut relay = Program::start(&arguments);
    let (inward, outward) = both_addresses(&mut relay);
    let one = Program::start(&["sub", "-c", &inward, "-n", "1"]);
    let sent = run(&["pub", "-c", &outward, "--data", "from the other side"]);
    assert_eq!(sent.code(), 0, "{sent:?}");
    assert_eq!(one.end().lines(), ["from the other side"]);
}

#[test]
fn answers_find_the_way_back_through_a_relay() {
    let mut relay = Program::start(&["relay", "--in-bind", "127.0.0.1:0", "--out-bind", "127.0.0.1:0", "--replies"]);
    let (inward, outward) = both_addresses(&mut relay);
    let _workers: Vec<_> = (0..3).map(|_| Program::start(&["echo", "-c", &outward])).collect();
    let clients: Vec<_> = (0..4_u8)
        .map(|who| {
            let socket =
                Socket::builder().identity(Identity::from_bytes([who; 16])).build_blocking().expect("a socket");
            socket.connect(&inward).expect("connecting");
            socket
        })
        .collect();
    for n in 0..50 {
        for (who, client) in clients.iter().enumerate() {
            client.send(format!("{who} asks {n}")).expect("sent");
        }
    }
    for (who, client) in clients.iter().enumerate() {
        // Workers differ in speed: answers to one client may overtake each other.
        let mut answers: Vec<_> = (0..50).map(|_| client.recv_timeout(PATIENCE).expect("an answer")).collect();
        let mut asked: Vec<_> = (0..50).map(|n| format!("{who} asks {n}")).collect();
        answers.sort_unstable();
        asked.sort_unstable();
        assert_eq!(answers, asked);
    }
}

#[test]
fn a_peer_that_stands_still_costs_the_publisher_what_was_chosen() {
    let mut sub = Program::start(&["sub", "-b", "127.0.0.1:0"]);
    let address = sub.address();
    let arguments = ["pub", "-c", &address, "-v", "--slow-peers", "drop-oldest", "--lag-max", "100", "--linger", "0.5"];
    let mut publisher = Program::start_with(&arguments, Stdio::piped(), Stdio::null());
    publisher.said("connected ");
    sub.signal("STOP");
    // More than the kernel's buffers hold.
    let line = [vec![b'x'; 60_000], b"\n".to_vec()].concat();
    let mut input = publisher.input();
    (0..2000).for_each(|_| input.write_all(&line).expect("written"));
    drop(input);
    let end = publisher.end();
    assert_eq!(end.code(), 3, "{end:?}");
    assert!(end.stderr.contains("2,000 messages sent") && end.stderr.contains(" dropped, "), "{}", end.stderr);
}

#[test]
fn a_peer_that_stands_still_gets_the_newest_of_each_key() {
    let mut sub = Program::start(&["sub", "-b", "127.0.0.1:0", "--json"]);
    let address = sub.address();
    let arguments = ["pub", "-c", &address, "-v", "--key", "word", "--slow-peers", "conflate"];
    let mut publisher = Program::start_with(&arguments, Stdio::piped(), Stdio::null());
    publisher.said("connected ");
    sub.signal("STOP");
    // More than the kernel's buffers hold; each value with the number of its update.
    let filler = "x".repeat(60_000);
    let mut input = publisher.input();
    (0..1500).for_each(|n| writeln!(input, "key{} {n} {filler}", n % 3).expect("written"));
    drop(input);
    publisher.said("slow");
    sub.signal("CONT");
    let sent = publisher.end();
    assert_eq!(sent.code(), 0, "{sent:?}");
    assert!(sent.stderr.contains(" replaced by newer ones"), "{}", sent.stderr);
    sub.signal("INT");
    let end = sub.end();
    let lines = end.lines();
    let updates: Vec<u64> = lines
        .iter()
        .map(|line| {
            let object: Value = serde_json::from_str(line).expect("JSON");
            object["text"].as_str().expect("text").split(' ').nth(1).expect("a number").parse().expect("a number")
        })
        .collect();
    assert!(updates.len() < 1500 && updates.is_sorted(), "{} updates", updates.len());
    assert_eq!(updates[updates.len() - 3..], [1497, 1498, 1499]);
}

#[test]
fn a_relay_keeps_the_newest_of_each_key_for_who_comes_late() {
    let ends = ["--in-bind", "127.0.0.1:0", "--out-bind", "127.0.0.1:0"];
    let mut relay = Program::start(&[&["relay"], &ends[..], &["--key", "3", "--replay", "snapshot"]].concat());
    let (inward, outward) = both_addresses(&mut relay);
    let first = Program::start(&["sub", "-c", &outward, "-n", "3"]);
    let sent = run_with(&["pub", "-c", &inward], b"EUR 1\nUSD 2\nEUR 3\n");
    assert_eq!((sent.code(), first.end().lines().len()), (0, 3));
    for _ in 0..2 {
        assert_eq!(run(&["sub", "-c", &outward, "-n", "2"]).lines(), ["USD 2", "EUR 3"]);
    }
}
