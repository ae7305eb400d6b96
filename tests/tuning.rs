//! What `tuning/` holds is what it says: files parse, name what exists, and the script's check runs.

#![cfg(all(target_os = "linux", feature = "cli"))]

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aiomsg_uring::blocking::Socket;
use aiomsg_uring::{Engine, Metrics, Socket as AsyncSocket};
use serde_json::Value;
use yaml_rust2::YamlLoader;

const PATIENCE: Duration = Duration::from_secs(20);

fn tuning(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(tuning(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn the_profile_allows_io_uring_and_no_new_namespaces() {
    let profile: Value = serde_json::from_str(&read("container/seccomp.json")).expect("JSON");
    let rules = profile["syscalls"].as_array().expect("rules");
    let rules_of = |name: &str| -> Vec<&Value> {
        rules.iter().filter(|rule| rule["names"].as_array().expect("names").iter().any(|n| n == name)).collect()
    };
    for name in ["io_uring_setup", "io_uring_enter", "io_uring_register", "execve", "epoll_pwait2", "accept4"] {
        let [rule] = rules_of(name)[..] else { panic!("{name}") };
        assert_eq!((&rule["action"], rule.get("args")), (&"SCMP_ACT_ALLOW".into(), None), "{name}");
    }
    for name in ["unshare", "setns", "mount", "ptrace", "bpf", "clone3", "userfaultfd", "keyctl"] {
        assert!(rules_of(name).is_empty(), "{name}");
    }
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
}

#[test]
fn the_manifest_names_the_profile_and_ports_that_are_there() {
    let manifest = YamlLoader::load_from_str(&read("container/kubernetes.yaml")).expect("YAML");
    let [deployment, service] = &manifest[..] else { panic!("{} documents", manifest.len()) };
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["seccompProfile"]["localhostProfile"].as_str(), Some("aiomsg.json"));
    let container = &pod["containers"][0];
    assert_eq!(container["resources"]["requests"], container["resources"]["limits"]);
    let names = |ports: &yaml_rust2::Yaml, key: &str| -> Vec<String> {
        ports.as_vec().expect("ports").iter().map(|port| port[key].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&service["spec"]["ports"], "targetPort"), names(&container["ports"], "name"));
}

#[test]
fn the_script_checks_what_the_file_lists() {
    let output = Command::new("bash").arg(tuning("tune.sh")).arg("check").output().expect("bash");
    let printed = String::from_utf8(output.stdout).expect("text");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(matches!(output.status.code(), Some(0 | 1)), "{printed}");
    assert_eq!(output.status.success(), !printed.contains("low "), "{printed}");
    for line in read("sysctl.conf").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.split_once(" = ").unwrap_or_else(|| panic!("{line}"));
        assert!(value.parse::<u64>().is_ok() && printed.contains(name), "{line}\n{printed}");
    }
    let usage = Command::new("bash").arg(tuning("tune.sh")).output().expect("bash");
    assert_eq!((usage.status.code(), usage.stdout.is_empty()), (Some(2), true));
    assert!(!String::from_utf8_lossy(&usage.stderr).contains('$'), "people are told a place, not a variable");
}

#[test]
fn the_dashboard_asks_for_names_that_there_are() {
    let engine = Engine::new().expect("an engine");
    let [one, other] = [(); 2].map(|()| AsyncSocket::builder().engine(&engine).build_blocking().expect("a socket"));
    other.connect(one.bind("127.0.0.1:0").expect("bound")).expect("an endpoint");
    one.wait_for_peers(1, PATIENCE).expect("connected");
    let text = Metrics::new().socket("one", one.stats(), one.peer_stats()).shards(engine.stats()).to_string();
    let known: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect();

    let dashboard: Value = serde_json::from_str(&read("grafana/dashboard.json")).expect("JSON");
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels").iter().filter(|panel| panel["type"] != "row") {
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            asked.extend(words.filter(|word| word.starts_with("aiomsg_")).map(|word| word.replace("_bucket", "")));
        }
    }
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(asked.len() > 30 && unknown.is_empty(), "no such names: {unknown:?}; there are {known:?}");
}

/// The program is started as the unit says, with two listening sockets, a watchdog and somebody who listens to what it tells.
#[test]
fn the_service_does_what_its_unit_expects() {
    let unit = read("systemd/aiomsg-relay.service");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a command");
    let (program, arguments) = command.split_once(' ').expect("arguments");
    assert!(program.ends_with("/aiomsg"), "{program}");
    assert!(unit.contains("\nType=notify\n") && unit.contains("\nWatchdogSec="));

    // What the manager makes before it starts the program: %t is /run.
    let run = std::env::temp_dir().join(format!("aiomsg-run-{}", std::process::id()));
    fs::create_dir_all(run.join("aiomsg-relay")).expect("a folder");
    let arguments = arguments.replace("%t", run.to_str().expect("a plain name"));
    let told_at = run.join("notify");
    let manager = UnixDatagram::bind(&told_at).expect("a socket file");
    manager.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let told = || {
        let mut text = [0; 256];
        let length = manager.recv(&mut text).expect("told in time");
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    };
    let [inside, outside] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a listener"));
    let [near, far] = [&inside, &outside].map(|listener| listener.local_addr().expect("its address").to_string());

    // The shell is what has a process id before the program runs, as a service manager has.
    let script = r#"export LISTEN_PID=$$ LISTEN_FDS=2 WATCHDOG_PID=$$ WATCHDOG_USEC=4000000
        exec "$0" "$@" 3<&0 4<&1 </dev/null >&2"#;
    let mut relay = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_aiomsg")])
        .args(arguments.split(' '))
        .env("NOTIFY_SOCKET", &told_at)
        .stdin(Stdio::from(OwnedFd::from(inside)))
        .stdout(Stdio::from(OwnedFd::from(outside)))
        .spawn()
        .expect("started");
    assert_eq!(told(), "READY=1");
    assert_eq!(told(), "WATCHDOG=1");

    let [publisher, subscriber] = [(); 2].map(|()| Socket::new().expect("a socket"));
    subscriber.connect(&far).expect("an endpoint");
    subscriber.wait_for_peers(1, PATIENCE).expect("connected");
    publisher.connect(&near).expect("an endpoint");
    publisher.send("through the relay").expect("sent");
    assert_eq!(subscriber.recv_timeout(PATIENCE).expect("received"), "through the relay");

    let counters = Command::new(env!("CARGO_BIN_EXE_aiomsg"))
        .args(["top", "--once", &format!("unix:{}", run.join("aiomsg-relay/metrics").display())])
        .output()
        .expect("started");
    assert!(counters.status.success(), "{}", String::from_utf8_lossy(&counters.stderr));

    let killed = Command::new("kill").arg(relay.id().to_string()).status().expect("kill");
    assert!(killed.success());
    while told() != "STOPPING=1" {}
    assert_eq!(relay.wait().expect("ended").code(), Some(0));
    fs::remove_dir_all(&run).ok();
}
