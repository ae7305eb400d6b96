//! What a process has used so far, and the JSON line of a run that says so.
#![allow(unsafe_code)]

use std::io::Write;

use super::options::Options;

/// Resources used since the process began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    user_s: f64,
    system_s: f64,
    rss_max_kb: u64,
    switches_voluntary: i64,
    switches_involuntary: i64,
}

impl Usage {
    /// Reads the counters.
    pub(crate) fn now() -> Usage {
        // SAFETY: `rusage` is a plain structure of integers, for which all zeroes is a value.
        let mut used: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live, writable `rusage`, as the call demands.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut used) };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        Usage {
            user_s: seconds(used.ru_utime),
            system_s: seconds(used.ru_stime),
            // ru_maxrss would be inherited from the process that started this one.
            rss_max_kb: status("VmHWM:"),
            switches_voluntary: used.ru_nvcsw,
            switches_involuntary: used.ru_nivcsw,
        }
    }
}

/// Resident memory at this moment, KiB.
pub(crate) fn rss_kb() -> u64 {
    status("VmRSS:")
}

/// Threads of this process.
pub(crate) fn threads() -> u64 {
    status("Threads:")
}

/// A number of `/proc/self/status`; 0 where there is no such file.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("");
    value.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Prints the line of one side of a run: what was asked, what was used since `since`, and
/// `more` (JSON members, each with a leading comma).
pub(crate) fn print_run(options: &Options, side: &str, since: &Usage, more: &str) {
    let now = Usage::now();
    let Options { pattern, size, count, subs, .. } = options;
    println!(
        "{{\"side\":\"{side}\",\"pattern\":\"{pattern}\",\"size\":{size},\"count\":{count},\"subs\":{subs},\
         \"user_s\":{:.6},\"sys_s\":{:.6},\"maxrss_kb\":{},\"base_rss_kb\":{},\"nvcsw\":{},\"nivcsw\":{},\
         \"threads\":{}{more}}}",
        now.user_s - since.user_s,
        now.system_s - since.system_s,
        now.rss_max_kb,
        since.rss_max_kb,
        now.switches_voluntary - since.switches_voluntary,
        now.switches_involuntary - since.switches_involuntary,
        threads(),
    );
}

/// Leaves at once: no destructor runs, so that closing is not part of what is measured.
pub(crate) fn leave() -> ! {
    // Nothing is left to be done about a closed pipe.
    _ = std::io::stdout().flush();
    // SAFETY: `_exit` takes any status and does not return.
    unsafe { libc::_exit(0) }
}
