//! `doctor` on this machine, and where io_uring is forbidden by a filter as container engines install one.

use std::thread;

use aiomsg_uring::Backend;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use serde_json::Value;

use super::common::{is_available, is_ci};
use super::process::{Outcome, run};

fn finding(outcome: &Outcome, name: &str) -> Value {
    let report: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    assert_eq!(report["ok"] == true, outcome.code() == 0, "{report}");
    let findings = report["findings"].as_array().expect("a list");
    findings.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}")).clone()
}

#[test]
fn this_machine_is_described() {
    let outcome = run(&["doctor", "--json"]);
    for name in ["kernel", "open files", "accept backlog", "socket buffers", "processors", "processor quota"] {
        let finding = finding(&outcome, name);
        assert!(["ok", "costs", "fix"].contains(&finding["verdict"].as_str().expect("a word")), "{finding}");
        assert!(!finding["found"].as_str().expect("a text").is_empty(), "{finding}");
    }
    let works = finding(&outcome, "io_uring")["verdict"] == "ok";
    assert_eq!(works, is_available(Backend::Uring));
    let text = run(&["doctor"]);
    assert!(text.lines().iter().any(|line| line.starts_with("ok    kernel") || line.starts_with("costs kernel")));
    assert!(!text.stdout.contains(&0x1b), "colours belong on terminals");
}

#[test]
fn a_forbidden_ring_is_told_with_what_to_type() {
    if !cfg!(feature = "uring") || !is_available(Backend::Uring) && !is_ci() {
        return;
    }
    let outcome = thread::spawn(|| {
        forbid_io_uring();
        // What this thread starts inherits the filter.
        (run(&["doctor", "--json"]), run(&["doctor"]), run(&["pub", "--bind", "127.0.0.1:0", "--backend", "uring"]))
    });
    let (json, text, forced) = outcome.join().expect("ran");
    let finding = finding(&json, "io_uring");
    assert_eq!((json.code(), &finding["verdict"]), (1, &Value::from("fix")), "{finding}");
    assert!(finding["found"].as_str().expect("a text").contains("EPERM"), "{finding}");
    assert!(finding["fix"][0].as_str().expect("a text").contains("seccomp"), "{finding}");
    assert!(text.lines().iter().any(|line| line.starts_with("fix   io_uring")), "{text:?}");
    assert_eq!(text.code(), 1);
    assert_eq!(forced.code(), 1);
    assert!(forced.stderr.contains("seccomp profile such as Docker's default"), "{}", forced.stderr);
}

/// For this thread and all that it starts.
fn forbid_io_uring() {
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("an architecture that has filters");
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let rules = [(libc::SYS_io_uring_setup, Vec::new())].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter(&program).expect("filtered");
}
