//! Exit codes, and the first thing that is said when something is wrong.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use super::process::{Program, folder, run, run_with};

#[test]
fn mistakes_are_told_in_a_line_that_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    let taken = taken.local_addr().expect("an address").to_string();
    let file = folder("no-socket").join("file");
    std::fs::write(&file, "").expect("written");
    let file = format!("unix:{}", file.display());
    let cases: [(&[&str], i32, &str); 19] = [
        (&["sub", "--bind", &taken], 1, "another socket listens there"),
        (&["echo", "--bind", &taken], 1, "another socket listens there"),
        (&["sub", "--bind", &file], 1, "choose another path"),
        (&["sub", "--bind", ":9"], 2, "*:port for all interfaces"),
        (&["sub", "--bind", "127.0.0.1"], 2, "has no port: write host:port"),
        (&["pub", "--connect", "ftp://a:1", "--data", "x"], 2, "unknown scheme"),
        (&["pub", "--connect", "127.0.0.1:0", "--data", "x"], 1, "port 0"),
        (&["pub", "--data", "x"], 2, "--bind <ENDPOINT>|--connect <ENDPOINT>"),
        (&["sub", "--bind", "127.0.0.1:0", "--identity", "12"], 2, "32 hexadecimal digits"),
        (&["pub", "--connect", "127.0.0.1:1", "--input", "no-such-file"], 1, "cannot open no-such-file"),
        (&["pub", "--connect", "127.0.0.1:1", "--mode", "broadcast"], 2, "publish, roundrobin"),
        (&["pub", "--bind", "127.0.0.1:0", "--data", "x", "--key", "0"], 2, "a number of bytes from 1 on"),
        (&["pub", "--bind", "127.0.0.1:0", "--mode", "roundrobin", "--replay", "oldest"], 1, "is for PUBLISH"),
        (&["pub", "--bind", "127.0.0.1:0", "--data", "key x", "--key", "word", "--keys-max", "0"], 1, "keys_max"),
        // Messages without keys: these would do nothing, and would not say so.
        (&["pub", "--bind", "127.0.0.1:0", "--slow-peers", "conflate"], 2, "say with --key what they are"),
        (&["pub", "--bind", "127.0.0.1:0", "--replay", "snapshot", "--data", "x", "--json"], 2, "--key"),
        (&["relay", "--in-bind", &taken, "--out-bind", &taken, "--slow-peers", "conflate"], 2, "--key"),
        (&["pub", "--bind", "127.0.0.1:0", "--retain", "9", "--data", "x"], 2, "--replay oldest"),
        (&["publish"], 2, "pub"),
    ];
    for (arguments, code, text) in cases {
        let outcome = run(arguments);
        assert_eq!(outcome.code(), code, "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(text), "{arguments:?} said\n{}", outcome.stderr);
        assert!(outcome.stdout.is_empty(), "{arguments:?}: {outcome:?}");
    }
}

#[test]
fn who_is_not_reached_is_told_and_why() {
    let nobody = run(&["pub", "--connect", "no-such-host.invalid:5000", "--data", "x", "--linger", "2"]);
    assert_eq!(nobody.code(), 3, "{nobody:?}");
    assert!(nobody.stderr.contains("not connected to no-such-host.invalid:5000"), "{}", nobody.stderr);
    assert!(nobody.stderr.contains("1 undelivered"), "{}", nobody.stderr);
}

#[test]
fn an_echo_tells_that_nobody_listens_there() {
    for engine in ["inline", "sharded"] {
        let mut echo = Program::start(&["echo", "-c", "no-such-host.invalid:5000", "--engine", engine]);
        echo.said("not connected to no-such-host.invalid:5000");
        echo.signal("INT");
        echo.end();
    }
}

#[test]
fn a_stranger_is_told_once() {
    let stranger = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = stranger.local_addr().expect("an address").to_string();
    let greet = std::thread::spawn(move || {
        let (mut stream, _) = stranger.accept().expect("a connection");
        stream.write_all(b"SSH-2.0-OpenSSH\r\n").expect("written");
        stream.read_to_end(&mut Vec::new()).ok();
    });
    let outcome = run(&["sub", "-c", &address, "--timeout", "2"]);
    assert_eq!(outcome.code(), 4, "{outcome:?}");
    let told = outcome.stderr.lines().filter(|line| line.contains("it began with \"SSH-\", not with a HELLO"));
    assert_eq!(told.count(), 1, "{}", outcome.stderr);
    greet.join().expect("greeted");
}

#[test]
fn waiting_in_vain_has_its_own_code() {
    let stranger = "12".repeat(16);
    let cases: [(&[&str], &str); 3] = [
        (&["pub", "-b", "127.0.0.1:0", "--data", "x", "--wait-peers", "2", "--timeout", "0.3"], "0 of 2 peers"),
        (&["pub", "-b", "127.0.0.1:0", "--data", "x", "--to", &stranger, "--timeout", "0.3"], "did not connect"),
        (&["sub", "-b", "127.0.0.1:0", "--timeout", "0.3"], "no message for 0.3 s"),
    ];
    for (arguments, text) in cases {
        let outcome = run(arguments);
        assert_eq!(outcome.code(), 4, "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(text), "{arguments:?} said\n{}", outcome.stderr);
    }
}

#[test]
fn damaged_input_fails_after_what_was_whole() {
    let mut sub = Program::start(&["sub", "-b", "127.0.0.1:0", "-n", "1"]);
    let sent = run_with(&["pub", "-c", &sub.address(), "--framing", "length"], b"\0\0\0\x02ok\0\0\0\x09short");
    assert_eq!(sent.code(), 1, "{sent:?}");
    assert!(sent.stderr.contains("record 2 of the input: the input ends after 5 of its 9 bytes"), "{}", sent.stderr);
    assert_eq!(sub.end().lines(), ["ok"]);
}

#[test]
fn a_signal_ends_each_in_order() {
    let mut sub = Program::start(&["sub", "-b", "127.0.0.1:0"]);
    let mut publisher =
        Program::start_with(&["pub", "-c", &sub.address(), "--wait-peers", "1"], Stdio::piped(), Stdio::null());
    let mut input = publisher.input();
    input.write_all(b"sent before the signal\n").expect("written");
    let mut counting = Program::start(&["sub", "-b", "127.0.0.1:0", "-n", "5"]);
    counting.address();
    let mut echo = Program::start(&["echo", "-b", "127.0.0.1:0"]);
    echo.address();
    std::thread::sleep(Duration::from_millis(300));
    // The publisher waits for its input, which does not end.
    publisher.signal("INT");
    let publisher = publisher.end();
    assert_eq!(publisher.code(), 130, "{publisher:?}");
    assert!(publisher.stderr.contains("1 messages sent"), "{}", publisher.stderr);
    sub.signal("TERM");
    let sub = sub.end();
    assert_eq!((sub.code(), sub.lines()), (0, vec!["sent before the signal".to_owned()]));
    counting.signal("INT");
    assert_eq!(counting.end().code(), 130);
    // What nobody has got yet is waited for, which is told, and ended by another.
    let nowhere = ["-c", "no-such-host.invalid:5000", "--linger", "600"];
    let mut waiting = Program::start(&[&["pub", "-d", "x", "-n", "1000000", "--rate", "100"], &nowhere[..]].concat());
    waiting.said("not connected to no-such-host.invalid:5000");
    waiting.signal("INT");
    waiting.said("messages are still to be sent, for 600 s at most");
    waiting.signal("INT");
    assert_eq!(waiting.end().code(), 130);
    echo.signal("INT");
    assert_eq!(echo.end().code(), 0);
}
