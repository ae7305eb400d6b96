//! What each thing should be, why, and what to type otherwise. Pure judgement over what [`Machine`] reads and what the
//! engine's own test of io_uring said; nothing is measured here. `tuning/README.md` has the reasons at length.

use super::machine::{Limit, Machine};
use super::{Finding, Verdict};

/// Descriptors below which a few hundred peers, or a crowd that reconnects, are too many.
const NOFILE_LOW: u64 = 4096;
/// Descriptors with which not much works.
const NOFILE_TOO_LOW: u64 = 128;
/// Locked memory in bytes that holds the rings of a few engines.
const MEMLOCK_LOW: u64 = 8 << 20;
/// Connections that wait to be accepted, as after a restart of a socket with many peers.
const SOMAXCONN_LOW: u64 = 1024;
/// Bytes of a socket buffer below which a fast link with a long way is not filled.
const BUFFER_LOW: u64 = 1 << 20;

/// Everything, in the order in which it matters. `ring`: why io_uring does not work, if it does not.
pub(super) fn all(machine: &Machine, ring: &Result<(), String>) -> Vec<Finding> {
    let checks = [
        kernel(machine),
        Some(io_uring(machine, ring)),
        memlock(machine, ring),
        nofile(machine),
        somaxconn(machine),
        buffers(machine),
        slow_start(machine),
        congestion(machine),
        affinity(machine),
        quota(machine),
        governor(machine),
        busy_poll(machine),
    ];
    checks.into_iter().flatten().collect()
}

fn fine(name: &'static str, found: impl Into<String>, why: &str) -> Finding {
    Finding { name, verdict: Verdict::Fine, found: found.into(), why: why.into(), fix: Vec::new() }
}

fn costs(name: &'static str, found: impl Into<String>, why: &str, fix: &[&str]) -> Finding {
    let fix = fix.iter().map(|&line| line.to_owned()).collect();
    Finding { name, verdict: Verdict::Costs, found: found.into(), why: why.into(), fix }
}

fn must(name: &'static str, found: impl Into<String>, why: &str, fix: &[&str]) -> Finding {
    Finding { verdict: Verdict::Fix, ..costs(name, found, why, fix) }
}

fn kernel(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "kernel";
    let Some((version, release)) = machine.kernel() else {
        return Some(costs(NAME, std::env::consts::OS, "not Linux: sockets use readiness (kqueue), which works", &[]));
    };
    Some(match version {
        (6, 12..) | (7.., _) => fine(NAME, release, ""),
        (6, _) => {
            costs(NAME, release, "6.12 and later let small reads share a buffer; here they take 16 KiB each", &[])
        }
        _ => costs(NAME, release, "6.0 or later is needed for io_uring as it is used here; readiness works", &[]),
    })
}

fn io_uring(machine: &Machine, ring: &Result<(), String>) -> Finding {
    const NAME: &str = "io_uring";
    let forced = machine.backend_variable.as_deref().filter(|name| !name.is_empty());
    let error = match (ring, forced) {
        (Ok(()), Some("poll")) => {
            return costs(NAME, "works", "AIOMSG_BACKEND=poll keeps programs from using it", &["unset AIOMSG_BACKEND"]);
        }
        (Ok(()), _) => return fine(NAME, "passed its self-test", ""),
        (Err(error), _) => error.strip_prefix("the I/O backend does not work: ").unwrap_or(error),
    };
    let why = match forced {
        Some("uring") => "AIOMSG_BACKEND=uring: programs do not start",
        _ => "sockets fall back to readiness: they work, with more processor time for a message",
    };
    let disabled = machine.sysctl("kernel.io_uring_disabled");
    // A kernel or a build without it cannot be put right here, unless it is insisted on.
    match (error, disabled.as_deref()) {
        (e, Some("2")) if e.contains("EPERM") => must(NAME, error, why, &["sysctl -w kernel.io_uring_disabled=0"]),
        (e, Some("1")) if e.contains("EPERM") => {
            must(NAME, error, why, &["sysctl -w kernel.io_uring_group=$(id -g)   # or kernel.io_uring_disabled=0"])
        }
        (e, _) if e.contains("EPERM") => {
            let docker = "docker run --security-opt seccomp=tuning/container/seccomp.json   # Podman likewise";
            must(NAME, error, why, &[docker, "grep Seccomp /proc/self/status   # 2: a filter is in force"])
        }
        (e, _) if e.contains("ENOMEM") => must(NAME, error, why, &["ulimit -l 65536   # LimitMEMLOCK=64M in a unit"]),
        _ if forced == Some("uring") => must(NAME, error, why, &["unset AIOMSG_BACKEND"]),
        _ => costs(NAME, error, why, &[]),
    }
}

fn memlock(machine: &Machine, ring: &Result<(), String>) -> Option<Finding> {
    const NAME: &str = "locked memory";
    let Limit { soft, .. } = machine.limit("Max locked memory")?;
    let found = bytes(soft);
    // CAP_IPC_LOCK is bit 14.
    let capabilities = machine.status("CapEff").and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0);
    Some(if capabilities & (1 << 14) != 0 {
        fine(NAME, found, "this process may pass the limit (CAP_IPC_LOCK); another user may not")
    } else if soft >= MEMLOCK_LOW || ring.is_err() {
        fine(NAME, found, "")
    } else {
        let why = "rings are charged to it: where one does not fit it is made smaller, then readiness is used";
        costs(NAME, found, why, &["ulimit -l 65536   # LimitMEMLOCK=64M in a unit"])
    })
}

fn nofile(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "open files";
    let Limit { soft, hard } = machine.limit("Max open files")?;
    let found = format!("{soft} (could be {hard})");
    let raise = if hard > soft {
        format!("ulimit -n {}   # LimitNOFILE= in a unit", hard.min(65_536))
    } else {
        "LimitNOFILE=65536 in a unit, or nofile in /etc/security/limits.conf".to_owned()
    };
    let why = "each connection takes one; beyond the limit new peers wait unaccepted";
    Some(if soft < NOFILE_TOO_LOW {
        must(NAME, found, why, &[&raise])
    } else if soft < NOFILE_LOW {
        costs(NAME, found, why, &[&raise])
    } else {
        fine(NAME, soft.to_string(), "")
    })
}

fn somaxconn(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "accept backlog";
    let found = machine.sysctl("net.core.somaxconn")?;
    let why = "peers that connect at the same moment, as after a restart, may have to try again after a second";
    Some(match found.parse::<u64>() {
        Ok(..SOMAXCONN_LOW) => costs(NAME, found, why, &["sysctl -w net.core.somaxconn=4096"]),
        _ => fine(NAME, found, ""),
    })
}

fn buffers(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "socket buffers";
    let most = |name: &str| machine.sysctl(name)?.split_whitespace().last()?.parse::<u64>().ok();
    let (sent, received) = (most("net.ipv4.tcp_wmem")?, most("net.ipv4.tcp_rmem")?);
    let found = format!("grow to {} for sending, {} for receiving", bytes(sent), bytes(received));
    let why = "long fast links are not filled: bandwidth times round-trip time has to fit";
    Some(if sent.min(received) < BUFFER_LOW {
        let fix =
            ["sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'", "sysctl -w net.ipv4.tcp_rmem='4096 131072 6291456'"];
        costs(NAME, found, why, &fix)
    } else {
        fine(NAME, found, "")
    })
}

fn slow_start(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "after idleness";
    let why = "a connection that was quiet begins slowly again: a burst takes more round trips on long links (none on loopback)";
    Some(match machine.sysctl("net.ipv4.tcp_slow_start_after_idle")?.as_str() {
        "0" => fine(NAME, "full speed", ""),
        _ => costs(NAME, "slow start", why, &["sysctl -w net.ipv4.tcp_slow_start_after_idle=0"]),
    })
}

fn congestion(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "congestion";
    let found = machine.sysctl("net.ipv4.tcp_congestion_control")?;
    let why = match found.as_str() {
        "bbr" => "made for long links; inside a data centre compare: sysctl -w net.ipv4.tcp_congestion_control=cubic",
        _ => "",
    };
    Some(fine(NAME, found, why))
}

fn affinity(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "processors";
    let (mine, all) = (machine.processors()?, machine.processors_online()?);
    let found = if mine < all { format!("{mine} of {all} are allowed") } else { format!("all {all}") };
    let why =
        "application and reactor share one: each message waits for a switch. The inline engine needs no second one";
    Some(match mine {
        0 | 1 if all > 1 => {
            costs(NAME, found, why, &["taskset -cp 0-$(($(nproc --all) - 1)) PID   # CPUAffinity= in a unit"])
        }
        0 | 1 => costs(NAME, found, why, &[]),
        _ => fine(NAME, found, ""),
    })
}

fn quota(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "processor quota";
    let Some((processors, folder)) = machine.quota() else { return Some(fine(NAME, "none", "")) };
    let why = "when it is used up all threads stop, for up to 100 ms: that is the worst latency to expect";
    let look = format!("cat /{folder}/cpu.stat   # nr_throttled: how often it happened");
    let lift = "docker run --cpuset-cpus instead of --cpus; Kubernetes: whole processors with requests equal to limits";
    Some(costs(NAME, format!("{processors:.2} processors"), why, &[&look, lift]))
}

fn governor(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "clock speed";
    let found = machine.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")?;
    let why = "the clock rises only under load: the first messages after a pause are slower";
    Some(match found.as_str() {
        "performance" => fine(NAME, found, ""),
        _ => costs(NAME, found, why, &["cpupower frequency-set -g performance"]),
    })
}

fn busy_poll(machine: &Machine) -> Option<Finding> {
    const NAME: &str = "busy polling";
    Some(match machine.sysctl("net.core.busy_poll")?.as_str() {
        "0" => fine(
            NAME,
            "off",
            "50 saves a few microseconds on a network card and costs a processor; nothing on loopback",
        ),
        us => fine(NAME, format!("{us} us"), "costs processor time while waiting; does nothing on loopback"),
    })
}

/// Bytes in a unit that is easy to read.
fn bytes(bytes: u64) -> String {
    match bytes {
        u64::MAX => "unlimited".to_owned(),
        0x10_0000.. => format!("{} MiB", bytes >> 20),
        _ => format!("{} KiB", bytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of which all is well, with changes.
    fn machine(changes: &[(&str, &str)]) -> Machine {
        let limits = "Max open files            65536                65536                files     \n\
                      Max locked memory         67108864             67108864             bytes     ";
        let files = [
            ("proc/sys/kernel/osrelease", "6.12.3-generic"),
            ("proc/sys/kernel/io_uring_disabled", "0"),
            ("proc/self/limits", limits),
            ("proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-3\n"),
            ("proc/self/cgroup", "0::/system.slice/feed.service"),
            ("proc/sys/net/core/somaxconn", "4096"),
            ("proc/sys/net/core/busy_poll", "0"),
            ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304"),
            ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456"),
            ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "0"),
            ("proc/sys/net/ipv4/tcp_congestion_control", "cubic"),
            ("sys/devices/system/cpu/online", "0-3"),
        ];
        Machine::with(files.iter().chain(changes).map(|(path, text)| (path.to_string(), format!("{text}\n"))).collect())
    }

    fn verdict(findings: &[Finding], name: &str) -> (Verdict, String) {
        let finding = findings.iter().find(|finding| finding.name == name).unwrap();
        (finding.verdict, format!("{} {} {}", finding.found, finding.why, finding.fix.join(" ")))
    }

    #[test]
    fn a_good_machine_has_nothing_to_be_told() {
        let findings = all(&machine(&[]), &Ok(()));
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Fine), "{findings:#?}");
        assert_eq!(findings.len(), 11);
    }

    #[test]
    fn each_fault_is_found_with_what_to_type() {
        let limits = "Max open files            64                   1048576              files     \n\
                      Max locked memory         65536                65536                bytes     ";
        let changes = [
            ("proc/sys/kernel/osrelease", "5.15.0-91"),
            ("proc/self/limits", limits),
            ("proc/self/status", "CapEff:\t0000000000000000\nCpus_allowed_list:\t2\n"),
            ("sys/fs/cgroup/system.slice/feed.service/cpu.max", "150000 100000"),
            ("sys/fs/cgroup/system.slice/cpu.max", "max 100000"),
            ("proc/sys/net/core/somaxconn", "128"),
            ("proc/sys/net/ipv4/tcp_wmem", "4096 16384 65536"),
            ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "1"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
        ];
        let findings = all(&machine(&changes), &Ok(()));
        let expected = [
            ("kernel", Verdict::Costs, "6.0 or later"),
            ("open files", Verdict::Fix, "ulimit -n 65536"),
            ("locked memory", Verdict::Costs, "64 KiB"),
            ("accept backlog", Verdict::Costs, "somaxconn=4096"),
            ("socket buffers", Verdict::Costs, "tcp_wmem"),
            ("after idleness", Verdict::Costs, "tcp_slow_start_after_idle=0"),
            ("processors", Verdict::Costs, "1 of 4"),
            ("processor quota", Verdict::Costs, "1.50 processors"),
            ("clock speed", Verdict::Costs, "cpupower"),
        ];
        for (name, expected, text) in expected {
            let (found, told) = verdict(&findings, name);
            assert_eq!(found, expected, "{name}: {told}");
            assert!(told.contains(text), "{name}: {told}");
        }
    }

    #[test]
    fn the_older_control_groups_are_read_too() {
        let changes = [
            ("proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n0::/"),
            ("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "50000"),
            ("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000"),
        ];
        let (found, told) = verdict(&all(&machine(&changes), &Ok(())), "processor quota");
        assert!(found == Verdict::Costs && told.contains("0.50 processors"), "{told}");
    }

    #[test]
    fn a_denied_ring_is_told_with_its_cause() {
        let denied = Err("the I/O backend does not work: io_uring denied (EPERM): because".to_owned());
        let sysctl = |value| machine(&[("proc/sys/kernel/io_uring_disabled", value)]);
        for (value, text) in [("2", "io_uring_disabled=0"), ("1", "io_uring_group"), ("0", "--security-opt seccomp=")] {
            let (found, told) = verdict(&all(&sysctl(value), &denied), "io_uring");
            assert_eq!(found, Verdict::Fix);
            assert!(told.starts_with("io_uring denied (EPERM)") && told.contains(text), "{told}");
        }
        let missing = Err("io_uring missing (ENOSYS): old".to_owned());
        assert_eq!(verdict(&all(&machine(&[]), &missing), "io_uring").0, Verdict::Costs);
        let mut insisting = machine(&[]);
        insisting.backend_variable = Some("uring".to_owned());
        assert_eq!(verdict(&all(&insisting, &missing), "io_uring").0, Verdict::Fix);
    }
}
