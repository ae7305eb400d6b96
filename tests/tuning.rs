//! What `tuning/` holds is what it says: files parse, name what exists, and the script's check runs.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use yaml_rust2::YamlLoader;

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
}
