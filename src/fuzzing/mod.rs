//! Fuzz targets: one function each, from bytes to a panic if something is wrong. Each compares what a layer does with a model that
//! is as plain as the documentation, or sees to it that promises hold whatever a peer sends.
//!
//! libFuzzer calls them (`tests/fuzz/run`), and so does `cargo test`, with the inputs kept in `tests/fuzz/corpus`. Compiled for tests
//! and for the feature `fuzzing` only; no part of the API.

mod link;
mod memory;
mod routing;
mod wire;

/// Takes any bytes; panics if it finds something wrong.
pub type Target = fn(&[u8]);

/// What is fuzzed, by name; the inputs of each are kept in a folder of that name.
pub const TARGETS: &[(&str, Target)] = &[
    ("deframer", wire::deframer),
    ("frames", wire::frames),
    ("handshake", wire::handshake),
    ("endpoint", wire::endpoint),
    ("circle", routing::circle),
    ("pending", routing::pending),
    ("window", routing::window),
    ("liveness", routing::liveness),
    ("log", memory::log),
    ("pool", crate::backend::pool_ops),
    ("receive_queue", memory::receive_queue),
    ("link", link::link),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// The next value, until the input is used up.
macro_rules! next {
    ($input:expr, $kind:ty) => {
        match $input.arbitrary::<$kind>() {
            Ok(value) if !$input.is_empty() => value,
            _ => break,
        }
    };
}
pub(crate) use next;

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Inputs that found their way into code, and those that once found a fault.
    #[test]
    fn corpora() {
        let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, target) in super::TARGETS {
            let folder = corpora.join(name);
            let inputs = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            let mut count = 0;
            for input in inputs {
                target(&std::fs::read(input.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "nothing in {}", folder.display());
        }
    }
}
