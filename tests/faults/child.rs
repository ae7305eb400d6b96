//! Processes of their own for what cannot be done to the test's own: limits, filters, signals. A child is this very program,
//! told to run the one ignored test below and given a role; it talks with its parent line by line.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use aiomsg_uring::Backend;

const ROLE: &str = "AIOMSG_TEST_ROLE";
/// Begins the lines that are for the parent; the test harness says things too.
const MARK: &str = "> ";

/// A child process; killed when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts a child in a role, with its arguments after the name. It may have as many descriptors as there are.
    pub(crate) fn start(backend: Backend, role: &str) -> Child {
        Child::spawn(in_shell("ulimit -n $(ulimit -Hn);").env("AIOMSG_BACKEND", name(backend)), role)
    }

    /// The same with a shell's words before it, by another user if one is given, on the backend that it finds.
    pub(crate) fn restricted(words: &str, user: Option<u32>, role: &str) -> Child {
        let mut command = in_shell(words);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        Child::spawn(command.env_remove("AIOMSG_BACKEND"), role)
    }

    /// A child that sees this text as its hosts file; `None` where a process may have none of its own.
    pub(crate) fn with_hosts(backend: Backend, hosts: &str, role: &str) -> Option<Child> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hosts-{}", name(backend)));
        std::fs::write(&path, hosts).expect("written");
        let mount = format!("mount --bind '{}' /etc/hosts &&", path.display());
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--mount"]);
            command
        };
        let tried = unshare().args(["sh", "-c", &format!("{mount} true")]).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success()).then(|| {
            let shell = in_shell(&mount);
            let mut command = unshare();
            command.arg(shell.get_program()).args(shell.get_args()).env("AIOMSG_BACKEND", name(backend));
            Child::spawn(&mut command, role)
        })
    }

    fn spawn(command: &mut Command, role: &str) -> Child {
        let mut process =
            command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let input = process.stdin.take().expect("a pipe");
        let lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        Child { process, input, lines }
    }

    /// The next line that the child tells.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut others = String::new();
        for line in &mut self.lines {
            let line = line.expect("text");
            match line.split_once(MARK) {
                Some((_, told)) => return told.to_owned(),
                None => others.extend([&line, "\n"]),
            }
        }
        panic!("the child ended: {:?}\n{others}", self.process.wait())
    }

    /// The numbers of the next line.
    #[track_caller]
    pub(crate) fn numbers(&mut self) -> Vec<u64> {
        self.line().split(' ').map(|word| word.parse().expect("a number")).collect()
    }

    /// Lets the child go on from where it waits for a line.
    pub(crate) fn go_on(&mut self) {
        writeln!(self.input).expect("the child lives");
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("a program named kill");
        assert!(status.success(), "no signal {name} to {id}");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn name(backend: Backend) -> &'static str {
    if backend == Backend::Poll { "poll" } else { "uring" }
}

/// This program in the child's role, after a shell's words.
fn in_shell(words: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{words} exec \"$0\" --exact child::role --ignored --nocapture")]);
    command.arg(std::env::current_exe().expect("this program's path"));
    command
}

/// Tells the parent something.
pub(crate) fn tell(text: impl std::fmt::Display) {
    println!("\n{MARK}{text}");
}

/// Waits until the parent says go on; false if it is gone.
pub(crate) fn waits() -> bool {
    std::io::stdin().read_line(&mut String::new()).is_ok_and(|bytes| bytes > 0)
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn role() {
    let role = std::env::var(ROLE).expect("run by another test");
    let words: Vec<&str> = role.split(' ').collect();
    match words[..] {
        #[cfg(target_os = "linux")]
        ["hold"] => crate::crowd::hold(),
        #[cfg(target_os = "linux")]
        ["crowd", address, count] => crate::crowd::dial(address, count),
        #[cfg(target_os = "linux")]
        ["cycle", address, count] => crate::crowd::cycle(address, count),
        #[cfg(target_os = "linux")]
        ["own-cycle", count] => crate::crowd::cycle_own(count),
        #[cfg(target_os = "linux")]
        ["denied", what] => crate::denied::child(what),
        ["names", name] => crate::names::child(name),
        ["storm-publisher", endpoint, start] => crate::storm::publisher(endpoint, start),
        ["storm-diallers", endpoint, start] => crate::storm::diallers(endpoint, start),
        ["echo", how, endpoint, timeout_ms] => crate::stopped::echo(how, endpoint, timeout_ms),
        ["ask", how, endpoint] => crate::stopped::ask(how, endpoint),
        _ => panic!("no role {role}"),
    }
}
