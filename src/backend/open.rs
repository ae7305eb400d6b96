//! Chooses a driver: io_uring when it works here, readiness polling otherwise, and says why in an operator's words.

use std::io;
use std::sync::OnceLock;

use super::options::{BackendOptions, Choice, Kind};
use super::{Backend, poll};

/// A backend and why it is this one.
pub(crate) struct Selected {
    /// The backend. It is driven by the thread that opened it.
    pub(crate) backend: Box<dyn Backend>,
    /// Why this driver: a sentence for the log.
    pub(crate) reason: String,
}

/// Opens a backend **on the thread that will drive it**: an io_uring belongs to the thread that created it.
///
/// # Errors
/// When the chosen driver cannot be opened; under `Auto`, when not even polling can.
pub(crate) fn open(options: &BackendOptions) -> io::Result<Selected> {
    let (kind, reason) = probe(options.choice)?;
    if kind == Kind::Uring {
        match open_uring(options) {
            Ok(backend) => return Ok(Selected { backend, reason }),
            // Resources can run out after the self-test, locked memory above all.
            Err(error) if options.choice == Choice::Auto => {
                let reason = format!("{}; using readiness polling", explain(&error));
                return Ok(Selected { backend: Box::new(poll::Poll::new(options)?), reason });
            }
            Err(error) => return Err(io::Error::new(error.kind(), explain(&error))),
        }
    }
    Ok(Selected { backend: Box::new(poll::Poll::new(options)?), reason })
}

/// Which driver [`open`] would use, and why. From any thread; io_uring is tried once per process.
///
/// # Errors
/// When `Choice::Uring` cannot be had.
pub(crate) fn probe(choice: Choice) -> io::Result<(Kind, String)> {
    static URING: OnceLock<Result<(), (io::ErrorKind, String)>> = OnceLock::new();
    if choice == Choice::Poll {
        return Ok((Kind::Poll, "readiness polling, as configured".to_owned()));
    }
    let tried = URING.get_or_init(|| self_test().map_err(|error| (error.kind(), explain(&error))));
    match tried {
        Ok(()) if choice == Choice::Uring => Ok((Kind::Uring, "io_uring, as configured".to_owned())),
        Ok(()) => Ok((Kind::Uring, "io_uring passed its self-test".to_owned())),
        Err((kind, cause)) if choice == Choice::Uring => Err(io::Error::new(*kind, cause.clone())),
        Err((_, cause)) => Ok((Kind::Poll, format!("{cause}; using readiness polling"))),
    }
}

#[cfg(all(target_os = "linux", feature = "uring"))]
fn open_uring(options: &BackendOptions) -> io::Result<Box<dyn Backend>> {
    super::uring::open(options)
}

#[cfg(all(target_os = "linux", feature = "uring"))]
fn self_test() -> io::Result<()> {
    // On a thread of its own: the ring belongs to the thread that creates it, and a failure stays contained there.
    std::thread::Builder::new()
        .name("aiomsg-probe".into())
        .spawn(super::uring::self_test)?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("io_uring's self-test panicked")))
}

#[cfg(not(all(target_os = "linux", feature = "uring")))]
fn open_uring(_: &BackendOptions) -> io::Result<Box<dyn Backend>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(all(target_os = "linux", feature = "uring")))]
fn self_test() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(all(target_os = "linux", feature = "uring")))]
fn explain(_: &io::Error) -> String {
    "io_uring is not part of this build (it needs Linux and the `uring` feature)".to_owned()
}

#[cfg(all(target_os = "linux", feature = "uring"))]
fn explain(error: &io::Error) -> String {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    explain_errno(error, sysctl.trim())
}

/// The cause behind an error of io_uring; `sysctl` is the value of `kernel.io_uring_disabled`.
#[cfg(all(target_os = "linux", feature = "uring"))]
fn explain_errno(error: &io::Error, sysctl: &str) -> String {
    match (error.raw_os_error(), sysctl) {
        (Some(libc::EPERM), "2") => "io_uring denied (EPERM): sysctl kernel.io_uring_disabled=2 forbids it".to_owned(),
        (Some(libc::EPERM), "1") => {
            "io_uring denied (EPERM): sysctl kernel.io_uring_disabled=1 allows it only with CAP_SYS_ADMIN or membership \
             in the group kernel.io_uring_group"
                .to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "io_uring denied (EPERM): a seccomp profile such as Docker's default, or a security module, forbids it"
                .to_owned()
        }
        (Some(libc::ENOSYS), _) => {
            "io_uring missing (ENOSYS): a container's seccomp profile hides it (Podman's default does), or the kernel is too \
             old or built without it"
                .to_owned()
        }
        (Some(libc::ENOMEM), _) => {
            "io_uring out of memory (ENOMEM): its rings exceed the locked-memory limit (ulimit -l, LimitMEMLOCK=)"
                .to_owned()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            format!("io_uring got no descriptor ({error}): raise the open-files limit (ulimit -n, LimitNOFILE=)")
        }
        (Some(libc::EINVAL), _) => {
            "io_uring too old here (EINVAL): the kernel lacks a flag or operation that is needed (6.0 or later has \
             them all)"
                .to_owned()
        }
        _ => format!("io_uring failed its self-test: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_is_always_there() {
        let options = BackendOptions { choice: Choice::Poll, ..BackendOptions::default() };
        let selected = open(&options).unwrap();
        assert_eq!((selected.backend.kind(), selected.reason.is_empty()), (Kind::Poll, false));
        assert_eq!(probe(Choice::Poll).unwrap().0, Kind::Poll);
    }

    #[test]
    fn probe_and_open_agree() {
        let (kind, reason) = probe(Choice::Auto).unwrap();
        assert_eq!(open(&BackendOptions::default()).unwrap().backend.kind(), kind, "{reason}");
    }

    #[cfg(all(target_os = "linux", feature = "uring"))]
    #[test]
    fn causes_are_named() {
        let explain = |errno, sysctl| explain_errno(&io::Error::from_raw_os_error(errno), sysctl);
        assert!(explain(libc::EPERM, "0").contains("seccomp"));
        assert!(explain(libc::EPERM, "2").contains("io_uring_disabled=2"));
        assert!(explain(libc::ENOSYS, "").contains("too old"));
        assert!(explain(libc::ENOMEM, "0").contains("LimitMEMLOCK"));
    }
}
