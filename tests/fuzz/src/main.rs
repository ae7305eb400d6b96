//! All fuzz targets in one program; `AIOMSG_FUZZ` says which one runs. Built and called by `tests/fuzz/run`.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("AIOMSG_FUZZ").unwrap_or_default();
        let Some(target) = aiomsg_uring::fuzzing::target(&name) else {
            eprintln!("AIOMSG_FUZZ is {name:?}; there are:");
            aiomsg_uring::fuzzing::TARGETS.iter().for_each(|(name, _)| eprintln!("  {name}"));
            std::process::exit(2);
        };
        TARGET.set(target).ok();
    },
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            target(data);
        }
    }
);
