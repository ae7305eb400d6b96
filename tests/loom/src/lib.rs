//! The lock-free pieces of the library with their models, compiled from the library's own files with loom's atomics. Run by
//! `tests/loom/run`; the models stand beside what they are models of.

#[path = "../../../src/copy.rs"]
pub(crate) mod copy;
#[path = "../../../src/log/mod.rs"]
pub(crate) mod log;
#[path = "../../../src/queue/mod.rs"]
pub(crate) mod queue;
#[path = "../../../src/sabotage.rs"]
pub(crate) mod sabotage;

#[path = "../../../src/backend"]
pub(crate) mod backend {
    //! The pool of receive slabs, without the drivers that it is for.

    pub(crate) mod options;
    pub(crate) mod pool;

    /// As in the library.
    #[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
    pub(crate) struct Slabs {
        pub(crate) free: usize,
        pub(crate) total: usize,
    }
}
