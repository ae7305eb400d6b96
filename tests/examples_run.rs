//! The examples run to their end and say that all went well. `cargo test` builds them; run by
//! itself, this program wants `cargo build --examples` first.

mod common;

use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aiomsg_uring::blocking::Socket;
use common::{example, free_port, say_loudly, uring_problem, watched};

fn start(name: &str, args: &[&str]) -> Child {
    let mut command = Command::new(example(name));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("started")
}

/// Waits for the end, at most 30 s; what was printed, if all went well.
#[track_caller]
fn finish(name: &str, mut child: Child) -> String {
    let until = Instant::now() + Duration::from_secs(30);
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > until {
            child.kill().ok();
            let Output { stdout, stderr, .. } = child.wait_with_output().expect("its output");
            panic!("{name} hangs\n{}\n{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().expect("its output");
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{name}: {status}\n{stdout}\n{}", String::from_utf8_lossy(&stderr));
    stdout
}

fn runs(name: &'static str) {
    watched(name, move || {
        let printed = finish(name, start(name, &[]));
        assert!(!printed.is_empty(), "{name} says nothing");
    });
}

#[test]
fn ten_subscribers() {
    runs("ten_subscribers");
}

#[test]
fn market_data() {
    runs("market_data");
}

#[test]
fn slow_peers() {
    watched("slow_peers", || {
        let printed = finish("slow_peers", start("slow_peers", &["--healthy", "8", "--seconds", "0.2"]));
        assert!(printed.contains("those who read got all"), "{printed}");
    });
}

#[test]
fn publisher_dials_subscribers() {
    runs("publisher_dials_subscribers");
}

#[test]
fn workers_bind() {
    runs("workers_bind");
}

#[test]
fn workers_connect() {
    runs("workers_connect");
}

#[test]
fn cookbook_by_identity() {
    runs("cookbook_by_identity");
}

#[test]
fn cookbook_relay() {
    runs("cookbook_relay");
}

#[test]
fn cookbook_two_creators() {
    runs("cookbook_two_creators");
}

#[test]
fn cookbook_proxy() {
    runs("cookbook_proxy");
}

#[test]
fn cookbook_scaled_proxies() {
    runs("cookbook_scaled_proxies");
}

/// Proxies that are elsewhere, found through the environment.
#[test]
fn cookbook_scaled_proxies_from_a_list() {
    watched("cookbook_scaled_proxies", || {
        let proxies: Vec<_> = (0..2)
            .map(|_| {
                let [inside, outside] = [(); 2].map(|()| Socket::new().expect("a socket"));
                let [near, far] = [&inside, &outside].map(|socket| socket.bind("127.0.0.1:0").expect("bound"));
                thread::spawn(move || {
                    while let Ok(message) = inside.recv() {
                        outside.send(message).expect("sent");
                    }
                });
                format!("{near}|{far}")
            })
            .collect();
        let list = proxies.join(", ");
        let mut command = Command::new(example("cookbook_scaled_proxies"));
        command.env("PROXIES", &list).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let printed = finish("cookbook_scaled_proxies", command.spawn().expect("started"));
        assert!(printed.contains(&list) && printed.contains("through 2 proxies"), "{printed}");
    });
}

#[test]
fn cookbook_work_queue() {
    runs("cookbook_work_queue");
}

#[test]
fn reconnection() {
    runs("reconnection");
}

#[test]
fn busy_poll() {
    runs("busy_poll");
}

#[test]
fn journal_worker() {
    runs("journal_worker");
}

#[test]
fn recorder() {
    match uring_problem() {
        Some(problem) => say_loudly(&format!("SKIPPED: the example recorder, because {problem}")),
        None => runs("recorder"),
    }
}

/// Nobody looks for a pattern that the index does not name, and nothing keeps one working that no test runs.
#[test]
fn the_index_names_every_example() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let index = std::fs::read_to_string(folder.join("README.md")).expect("the index");
    for entry in std::fs::read_dir(folder).expect("examples").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
            assert!(index.contains(&format!("`{name}`")), "examples/README.md does not name {name}");
        }
    }
}

#[test]
fn hello_pair_started_either_way_round() {
    watched("hello", || {
        for client_first in [false, true] {
            let endpoint = format!("127.0.0.1:{}", free_port());
            let mut names = ["hello_server", "hello_client"];
            if client_first {
                names.reverse();
            }
            let pair = names.map(|name| {
                let child = start(name, &[&endpoint]);
                thread::sleep(Duration::from_millis(200));
                (name, child)
            });
            for (name, child) in pair {
                assert!(finish(name, child).contains("hello"));
            }
        }
    });
}

/// A socket that whoever starts the program has opened, as systemd does: it outlives the program, and what connects in
/// between is served by the next one.
#[cfg(target_os = "linux")]
#[test]
fn a_server_on_an_inherited_socket() {
    watched("inherited", || {
        let backends = if uring_problem().is_none() { &["uring", "poll"][..] } else { &["poll"] };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let endpoint = listener.local_addr().expect("its address").to_string();
        for backend in backends {
            let client = start("hello_client", &[&endpoint]);
            let mut shell = Command::new("sh");
            shell.args(["-c", r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" fd:3 3<&0 </dev/null"#]);
            shell.arg(example("hello_server")).env("AIOMSG_BACKEND", backend);
            shell.stdin(std::os::fd::OwnedFd::from(listener.try_clone().expect("a duplicate")));
            let server = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
            assert!(finish("hello_server", server).contains("hello"), "{backend}");
            assert!(finish("hello_client", client).contains("hello"), "{backend}");
        }
        // Nothing was passed to this process.
        let refused = Socket::new().expect("a socket").bind("fd:3").expect_err("bound").to_string();
        assert!(refused.contains("LISTEN_FDS"), "{refused}");
    });
}

/// A source and a sink of the conformance agent, in all combinations of who binds and how it is sent.
#[test]
fn conformance_agents_understand_each_other() {
    watched("conformance_agent", || {
        for (source_role, sink_role) in [("bind", "connect"), ("connect", "bind")] {
            for send_mode in ["publish", "roundrobin"] {
                let port = free_port().to_string();
                let common = ["--port", &port, "--send-mode", send_mode, "--count", "100", "--linger", "0.5"];
                let sink = [&["--role", sink_role, "--behavior", "sink"], &common[..]].concat();
                let source = [&["--role", source_role, "--behavior", "source", "--prefix", "x"], &common[..]].concat();
                let sink = start("conformance_agent", &sink);
                let source = start("conformance_agent", &source);
                let expected: String = (0..100).map(|index| format!("x{index}\n")).collect();
                assert_eq!(finish("sink", sink), expected, "{source_role} {send_mode}");
                assert_eq!(finish("source", source), "");
            }
        }
    });
}

#[test]
fn conformance_agent_refuses_what_is_not_there() {
    for wrong in [&["--tls", "true"][..], &["--role", "both"], &["--count"], &["--nothing", "1"]] {
        let output = start("conformance_agent", wrong).wait_with_output().expect("its output");
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

/// One short run of each role of the benchmark program; the receiver has all messages in order.
#[test]
fn benchmark_peer_in_every_role() {
    watched("peer", || {
        for switches in
            [&["--x", "inline"][..], &["--x", "sharded"], &["--x", "inline", "--x", "batch", "--x", "publish"]]
        {
            for pattern in [&["--pattern", "push"][..], &["--pattern", "pub", "--subs", "3"]] {
                let port = free_port().to_string();
                let args = [&["--port", &port, "--count", "5000"], pattern, switches].concat();
                let receiver = start("peer", &[&["sub"], &args[..]].concat());
                let sender = start("peer", &[&["pub"], &args[..]].concat());
                let received: serde_json::Value =
                    serde_json::from_str(&finish("sub", receiver)).expect("a line of JSON");
                let sent: serde_json::Value = serde_json::from_str(&finish("pub", sender)).expect("a line of JSON");
                assert_eq!((&received["lost"], &received["disorder"]), (&0.into(), &0.into()), "{received}");
                assert_eq!(sent["side"], "tx");
            }
            let port = free_port().to_string();
            let args = [&["--port", &port, "--count", "500"], switches].concat();
            let mut pong = start("peer", &[&["pong"], &args[..]].concat());
            let ping = finish("ping", start("peer", &[&["ping"], &args[..]].concat()));
            pong.kill().expect("killed");
            pong.wait().expect("ended");
            let ping: serde_json::Value = serde_json::from_str(&ping).expect("a line of JSON");
            assert!(ping["p50_us"].as_f64().is_some_and(|time_us| time_us > 0.0), "{ping}");
        }
    });
}
