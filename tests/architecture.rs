//! The house rules that a text scan can check: who imports whom, where unsafe code may stand, how
//! long files get, how they open.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, each with the layers that it may name. The five lowest do not know each other; simulation and fuzzing
/// stand above all, and nobody else knows them.
const LAYERS: [(&str, &[&str]); 10] = [
    ("fuzzing", &["simulation", "socket", "engine", "shard", "protocol", "log", "transport", "queue", "backend"]),
    ("simulation", &["socket", "engine", "shard", "protocol", "log", "transport", "queue", "backend"]),
    ("socket", &["engine", "shard", "protocol", "log", "transport", "queue", "backend"]),
    ("engine", &["shard", "protocol", "log", "transport", "queue", "backend"]),
    ("shard", &["protocol", "log", "transport", "queue", "backend"]),
    ("protocol", &[]),
    ("log", &[]),
    ("transport", &[]),
    ("queue", &[]),
    ("backend", &[]),
];

/// Where unsafe code may stand, relative to `src`.
const UNSAFE_FILES: [&str; 12] = [
    "backend/fill.rs",
    "backend/inherited.rs",
    "backend/poll/mod.rs",
    "backend/pool.rs",
    "backend/unacknowledged.rs",
    "backend/uring/buffers.rs",
    "backend/uring/message.rs",
    "backend/uring/ring.rs",
    "backend/uring/simulated.rs",
    "backend/uring/turn.rs",
    "log/chunk.rs",
    "queue/turns.rs",
];

/// A file that is longer holds more than one thing.
const LINES_MAX: usize = 900;

struct Source {
    /// Relative to the package, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    /// The lines with their numbers, without comments and without the text in quotes.
    fn code(&self) -> impl Iterator<Item = (usize, String)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, without_comment(&without_strings(line))))
    }
}

#[test]
fn layers_import_downwards_only() {
    let mut wrong = Vec::new();
    for (layer, allowed) in LAYERS {
        let sources = sources(&format!("src/{layer}"));
        assert!(!sources.is_empty() || layer == "simulation", "the layer {layer} has no files");
        for source in &sources {
            for (line, code) in source.code() {
                for name in named_from_root(&code) {
                    // What the crate re-exports at its root belongs to some layer: a lower one must not lean on that.
                    let is_layer = LAYERS.iter().any(|(layer, _)| *layer == name);
                    if is_layer && name != layer && !allowed.contains(&name.as_str()) {
                        wrong.push(format!("{}:{line}: {layer} names crate::{name}", source.path));
                    }
                    if !is_layer && allowed.is_empty() && !["copy", "sabotage"].contains(&name.as_str()) {
                        wrong.push(format!("{}:{line}: {layer} names crate::{name}, which is no layer", source.path));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_folder_of_src_is_a_layer() {
    let known: BTreeSet<_> = LAYERS.iter().map(|(layer, _)| *layer).chain(["bin", "docs"]).collect();
    let folders = fs::read_dir(package().join("src")).expect("src").flatten().filter(|entry| entry.path().is_dir());
    for folder in folders {
        let name = folder.file_name().into_string().expect("a plain name");
        assert!(known.contains(name.as_str()), "src/{name} is no layer: give it its place in this test");
    }
}

#[test]
fn only_the_socket_layer_is_async() {
    for (layer, _) in LAYERS.iter().filter(|(layer, _)| !["simulation", "socket"].contains(layer)) {
        for source in sources(&format!("src/{layer}")) {
            for (line, code) in source.code() {
                assert!(!code.contains("async fn ") && !code.contains(".await"), "{}:{line}: async code", source.path);
            }
        }
    }
}

#[test]
fn unsafe_code_stands_where_it_may() {
    for source in sources("src") {
        let may = UNSAFE_FILES.iter().any(|file| source.path == format!("src/{file}"));
        let mut is_unsafe = false;
        for (line, code) in source.code() {
            if words(&code).any(|word| word == "unsafe") {
                assert!(may, "{}:{line}: unsafe code", source.path);
                is_unsafe = true;
            }
        }
        if is_unsafe {
            assert!(source.text.contains("SAFETY:"), "{}: unsafe code without a word on why it is safe", source.path);
        }
    }
}

#[test]
fn files_open_with_what_they_are() {
    for folder in ["src", "examples", "tests", "benches"] {
        for source in sources(folder) {
            // The crate's own text is the README.
            let opens = source.text.starts_with("//!") || source.text.starts_with("#![doc = include_str!");
            assert!(opens, "{}: does not open with what it is", source.path);
        }
    }
}

#[test]
fn files_fit_in_one_head() {
    for folder in ["src", "examples", "tests", "benches"] {
        for source in sources(folder) {
            let lines = source.text.lines().count();
            assert!(lines <= LINES_MAX, "{}: {lines} lines", source.path);
        }
    }
}

#[test]
fn planted_bugs_do_not_ship() {
    let manifest = fs::read_to_string(package().join("Cargo.toml")).expect("a manifest");
    let own = "sabotage = [\"simulation\"]";
    assert!(manifest.lines().any(|line| line == own), "the feature has another name or brings more");
    let features =
        manifest.lines().skip_while(|line| *line != "[features]").take_while(|line| *line != "[dependencies]");
    let others: Vec<_> = features.filter(|line| !line.starts_with('#') && *line != own).collect();
    assert!(
        !others.is_empty() && others.iter().all(|line| !line.contains("sabotage")),
        "a feature brings it: {others:?}"
    );

    // The file stands alone, so that a compiler answers at once.
    let compiles = |options: &[&str], meant: bool| {
        let mut rustc = std::process::Command::new("rustc");
        rustc.args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--cap-lints=allow"]).args(options);
        rustc.arg(package().join("src/sabotage.rs")).arg("--out-dir").arg(env!("CARGO_TARGET_TMPDIR"));
        rustc.env_remove("AIOMSG_SABOTAGE").envs(meant.then_some(("AIOMSG_SABOTAGE", "1")));
        let output = rustc.output().expect("the compiler that built this");
        assert!(output.status.success() || String::from_utf8_lossy(&output.stderr).contains("no release has it"));
        output.status.success()
    };
    let on = "--cfg=feature=\"sabotage\"";
    assert!(compiles(&["-O"], false) && compiles(&["-O", on], true) && compiles(&[on], false));
    assert!(!compiles(&["-O", on], false), "a release takes planted bugs");
}

#[test]
fn nothing_is_left_unfinished() {
    // Put together here, so that this file does not find itself.
    let marks = [concat!("to", "do!("), concat!("unim", "plemented!("), concat!("FIX", "ME"), concat!("XX", "X")];
    for folder in ["src", "examples", "tests", "benches"] {
        for source in sources(folder) {
            for mark in marks {
                assert!(!source.text.contains(mark), "{}: {mark}", source.path);
            }
        }
    }
}

#[test]
fn the_scan_sees_what_it_should() {
    assert_eq!(named_from_root("use crate::log::Appender;"), ["log"]);
    assert_eq!(named_from_root("use crate::{queue::{A, B}, backend::{self}, Socket};"), ["queue", "backend", "Socket"]);
    assert_eq!(named_from_root("let x = crate::shard::turn(crate::engine::y);"), ["shard", "engine"]);
    assert_eq!(
        without_comment(&without_strings(r#"let a = "crate::log"; // crate::queue"#)).trim_end(),
        r#"let a = "";"#
    );
    assert!(words("unsafe_code, not_unsafe").all(|word| word != "unsafe"));
    assert!(words("unsafe{x}").any(|word| word == "unsafe"));
}

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files under a folder of the package; none if there is no such folder.
fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    collect(&package().join(folder), &mut found);
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(package()).expect("inside the package");
            let relative = relative.to_str().expect("a plain name").replace('\\', "/");
            found.push(Source { path: relative, text: fs::read_to_string(&path).expect("readable") });
        }
    }
}

/// The first names after `crate::`, in a path or in a list of paths.
fn named_from_root(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => names.extend(words(rest).next().map(str::to_owned)),
            Some(list) => {
                let mut depth = 0;
                let mut at_name = true;
                for (index, letter) in list.char_indices() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => at_name = true,
                        letter if at_name && letter.is_alphabetic() => {
                            names.extend(words(&list[index..]).next().map(str::to_owned));
                            at_name = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

fn without_comment(line: &str) -> String {
    line.split("//").next().unwrap_or("").to_owned()
}

/// The line with the content of its string literals removed. Literals over several lines are not
/// understood; what they hold would be checked as if it were code.
fn without_strings(line: &str) -> String {
    let mut kept = String::new();
    let (mut inside, mut escaped) = (false, false);
    for letter in line.chars() {
        if !inside || (letter == '"' && !escaped) {
            kept.push(letter);
        }
        if letter == '"' && !escaped {
            inside = !inside;
        }
        escaped = inside && letter == '\\' && !escaped;
    }
    kept
}
