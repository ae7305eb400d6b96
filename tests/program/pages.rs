//! Help, completions and manual pages: there for every command, and made from the same description.

use super::process::{folder, run};

const COMMANDS: [&str; 10] = ["demo", "pub", "sub", "echo", "relay", "bench", "top", "doctor", "completions", "man"];

#[test]
fn every_command_has_help_that_fits_a_terminal() {
    let all = run(&["--help"]);
    for command in COMMANDS {
        assert!(String::from_utf8_lossy(&all.stdout).contains(command), "{command}");
        let help = run(&[command, "--help"]);
        assert_eq!(help.code(), 0);
        for line in help.lines() {
            assert!(line.chars().count() <= 110, "{command}: {line}");
        }
    }
    for command in ["pub", "sub", "echo", "relay"] {
        for flag in ["-h", "--help"] {
            assert!(String::from_utf8_lossy(&run(&[command, flag]).stdout).contains("Exit codes:"), "{command} {flag}");
        }
    }
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run(&["completions", shell]);
        let text = String::from_utf8_lossy(&script.stdout);
        assert_eq!(script.code(), 0);
        for word in ["wait-peers", "relay", "at-least-once"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
        assert!(!text.contains("demo-subscriber"), "{shell}: what the program starts of itself");
    }
    assert_eq!(run(&["completions", "tcsh"]).code(), 2);
}

#[test]
fn manual_pages_are_written() {
    let page = run(&["man"]);
    assert!(String::from_utf8_lossy(&page.stdout).contains(".TH aiomsg 1"), "{page:?}");
    let folder = folder("man");
    assert_eq!(run(&["man", folder.to_str().expect("plain")]).code(), 0);
    for command in COMMANDS {
        let page = std::fs::read_to_string(folder.join(format!("aiomsg-{command}.1"))).expect("a page");
        assert!(page.contains("SYNOPSIS"), "{command}");
    }
    assert!(!folder.join("aiomsg-demo-subscriber.1").exists(), "what is hidden has no page");
}
