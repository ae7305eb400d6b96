//! A peer of the stock Python library, `aiomsg` from PyPI, in a process of its own.
//!
//! The library is installed into a virtual environment under the target folder, by the first test
//! that needs it. Without Python or the registry the tests are skipped, loudly; under `CI=true`
//! that is an error.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use aiomsg_uring::{DeliveryGuarantee, SendMode};
use serde_json::Value;

const PACKAGE: &str = "aiomsg==2026.7.1";

/// The Python that has the library; `None` if there is none and that is to be put up with.
pub(crate) fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || match install() {
        Ok(python) => Some(python),
        Err(problem) if super::is_ci() => panic!("no stock Python peer: {problem}"),
        Err(problem) => {
            super::say_loudly(&format!("SKIPPED: interoperability with Python, because {problem}"));
            None
        }
    };
    PYTHON.get_or_init(find).as_deref()
}

/// Makes the virtual environment, unless an earlier run has.
fn install() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-peer");
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    // Written last, so that an interrupted installation is not taken for a whole one.
    let complete = folder.join(PACKAGE);
    if !complete.exists() {
        let system = if cfg!(windows) { "python" } else { "python3" };
        run(Command::new(system).args(["-m", "venv", "--clear"]).arg(&folder))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE];
        run(Command::new(&python).args(pip))?;
        std::fs::write(&complete, "").map_err(|error| error.to_string())?;
    }
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// A process with a socket of the stock library; ends when dropped.
pub(crate) struct PythonPeer {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl PythonPeer {
    pub(crate) fn start(python: &Path, mode: SendMode, delivery: DeliveryGuarantee) -> PythonPeer {
        let delivery = match delivery {
            DeliveryGuarantee::AtLeastOnce => "at-least-once",
            _ => "at-most-once",
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/peer.py");
        let mut command = Command::new(python);
        command.arg(script).args(["--mode", &mode.to_string(), "--delivery", delivery]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
        let commands = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        PythonPeer { child, commands, answers }
    }

    /// Gives an order; its answer is to be read by [`Self::answer`].
    pub(crate) fn order(&mut self, command: &Value) {
        writeln!(self.commands, "{command}").expect("the peer lives");
    }

    #[track_caller]
    pub(crate) fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the peer lives");
        serde_json::from_str(&line).expect("a line of JSON")
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, command: Value) -> Value {
        self.order(&command);
        self.answer()
    }
}

impl Drop for PythonPeer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
