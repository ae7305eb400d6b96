//! Processes of the program: started, told apart by the address that they print, ended by signals, and never left over.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::common::eventually;

/// How long a process may take to end that is to end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A command line of the program, with nothing of the caller's environment that would change it.
pub(crate) fn aiomsg(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aiomsg"));
    command.args(arguments).env_remove("AIOMSG_BACKEND").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// What a process left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The exit code; fails for a process that a signal killed.
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("killed by signal {:?}: {self:?}", self.status.signal()))
    }

    /// Standard output as lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.stdout).lines().map(str::to_owned).collect()
    }
}

/// A running process; killed when dropped.
pub(crate) struct Program {
    child: Child,
    stdout: Option<JoinHandle<()>>,
    /// What was read of standard output so far.
    printed: Arc<Mutex<Vec<u8>>>,
    stderr: BufReader<ChildStderr>,
    /// What was read of standard error so far.
    said: String,
}

impl Program {
    /// Starts it with nothing to read.
    pub(crate) fn start(arguments: &[&str]) -> Program {
        Program::start_with(arguments, Stdio::null(), Stdio::piped())
    }

    pub(crate) fn start_with(arguments: &[&str], stdin: Stdio, stdout: Stdio) -> Program {
        let mut child = aiomsg(arguments).stdin(stdin).stdout(stdout).stderr(Stdio::piped()).spawn().expect("started");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let printed = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&printed);
        let stdout = child.stdout.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut piece = vec![0; 64 * 1024];
                loop {
                    match pipe.read(&mut piece).expect("read") {
                        0 => break,
                        len => into.lock().expect("nobody panics with it").extend_from_slice(&piece[..len]),
                    }
                }
            })
        });
        Program { child, stdout, printed, stderr, said: String::new() }
    }

    /// The address that it tells to listen on (with --verbose, or when it was asked for port 0).
    #[track_caller]
    pub(crate) fn address(&mut self) -> String {
        self.said("listening on ")
    }

    /// Waits until it has printed so many lines.
    #[track_caller]
    pub(crate) fn has_printed(&self, lines: usize) {
        let printed =
            || self.printed.lock().expect("nobody panics with it").iter().filter(|byte| **byte == b'\n').count();
        eventually("lines are printed", || printed() >= lines);
    }

    /// Waits until it says this; answers with the rest of the line.
    #[track_caller]
    pub(crate) fn said(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stderr.read_line(&mut line).expect("read") > 0, "no {text:?}: {}", self.said);
            self.said += &line;
            if let Some((_, rest)) = line.trim_end().split_once(text) {
                return rest.to_owned();
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill exists").success());
    }

    /// Where it reads from.
    pub(crate) fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("a pipe")
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if Instant::now() >= deadline {
                self.child.kill().expect("killed");
                self.stderr.read_to_string(&mut self.said).ok();
                panic!("did not end: {}", self.said);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.stderr.read_to_string(&mut self.said).expect("read");
        if let Some(reader) = self.stdout.take() {
            reader.join().expect("read");
        }
        let stdout = std::mem::take(&mut *self.printed.lock().expect("nobody panics with it"));
        Outcome { status, stdout, stderr: std::mem::take(&mut self.said) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs it to its end with nothing to read.
#[track_caller]
pub(crate) fn run(arguments: &[&str]) -> Outcome {
    Program::start(arguments).end()
}

/// Runs it to its end with this to read.
#[track_caller]
pub(crate) fn run_with(arguments: &[&str], input: &[u8]) -> Outcome {
    let mut program = Program::start_with(arguments, Stdio::piped(), Stdio::piped());
    // Fails when it has ended already, which its outcome tells.
    program.input().write_all(input).ok();
    program.end()
}

/// A fresh folder for one test.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("program-{name}-{}", std::process::id()));
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}
