//! `--metrics` and `top`: the counters of running commands, over TCP and over a unix-domain socket.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::common::eventually;
use super::process::{Program, folder, run};

/// What `top` says of a socket there.
fn top(address: &str, socket: &str) -> Value {
    let outcome = run(&["top", address, "--once", "--json"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let look: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    let sockets = look["sockets"].as_array().expect("a list");
    sockets.iter().find(|one| one["socket"] == socket).unwrap_or_else(|| panic!("no {socket} in {look}")).clone()
}

/// The answer to an HTTP request there.
pub(crate) fn ask(place: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(place).expect("connected");
    stream.write_all(request.as_bytes()).expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    text
}

#[test]
fn a_relay_is_watched() {
    let path = folder("watched").join("metrics");
    let at = format!("unix:{}", path.display());
    let arguments = ["relay", "--in-bind", "127.0.0.1:0", "--out-bind", "127.0.0.1:0", "--metrics", &at];
    let mut relay = Program::start(&arguments);
    let (outward, inward) = (relay.address(), relay.address());
    relay.said("counters at ");
    let sub = Program::start(&["sub", "-c", &outward, "-n", "100", "-q"]);
    eventually("the subscriber is seen", || top(&at, "out")["peers"] == 1.0);
    assert_eq!(run(&["pub", "-c", &inward, "--data", "x", "-n", "100"]).code(), 0);
    assert_eq!(sub.end().lines().len(), 100);
    assert_eq!(top(&at, "in")["messages_received_total"], 100.0);
    assert_eq!(top(&at, "out")["messages_delivered_total"], 100.0);
    let text = run(&["top", &at, "--once"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("socket out: "), "{text:?}");

    // Another look after a while tells rates.
    let looks = Program::start(&["top", &at, "--json", "--interval", "0.2"]);
    looks.has_printed(2);
    looks.signal("INT");
    let looks = looks.end();
    assert_eq!(looks.code(), 0);
    let last: Value = serde_json::from_str(looks.lines().last().expect("a line")).expect("JSON");
    assert!(last["sockets"][0]["messages_sent_per_s"].is_number(), "{last}");

    // The file of a killed one is no obstacle for the next.
    relay.signal("KILL");
    relay.end();
    assert!(path.exists());
    let mut again = Program::start(&arguments);
    again.said("counters at ");
    assert_eq!(top(&at, "in")["messages_received_total"], 0.0);
}

#[test]
fn whoever_speaks_http_may_ask() {
    let mut echo = Program::start(&["echo", "-b", "127.0.0.1:0", "--metrics", ":0"]);
    echo.address();
    let place = echo.said("counters at http://").trim_end_matches("/metrics").to_owned();
    let answer = ask(&place, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.contains("version=0.0.4"), "{answer}");
    assert!(answer.contains("\naiomsg_peers{socket=\"echo\"} 0\n"), "{answer}");
    assert!(ask(&place, "POST / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.0 405 "));
    assert_eq!(top(&place, "echo")["peers"], 0.0);
}

#[test]
fn nobody_there_is_told_with_what_to_do() {
    let outcome = run(&["top", "127.0.0.1:1", "--once"]);
    assert_eq!(outcome.code(), 1);
    assert!(outcome.stderr.contains("is a program with --metrics 127.0.0.1:1 running?"), "{}", outcome.stderr);
    assert_eq!(run(&["top", "nowhere"]).code(), 2);
}
