//! What the kernel tells of itself and of this process in `/proc` and `/sys`; tests give another machine's. Reads only; a file that is not there is a `None`, which is also what every other system than Linux has.

/// The text of the file at a path without its first slash.
type Read = dyn Fn(&str) -> Option<String>;

/// Where to look.
pub(super) struct Machine {
    read: Box<Read>,
    /// The value of `AIOMSG_BACKEND`, which decides for every program that does not.
    pub(super) backend_variable: Option<String>,
}

/// A limit of the process; `u64::MAX` for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) soft: u64,
    pub(super) hard: u64,
}

impl Machine {
    /// This one.
    pub(super) fn real() -> Machine {
        let read = |path: &str| std::fs::read_to_string(format!("/{path}")).ok();
        Machine { read: Box::new(read), backend_variable: std::env::var("AIOMSG_BACKEND").ok() }
    }

    /// One that has these files.
    #[cfg(test)]
    pub(super) fn with(files: std::collections::HashMap<String, String>) -> Machine {
        Machine { read: Box::new(move |path| files.get(path).cloned()), backend_variable: None }
    }

    /// The text of a file, trimmed.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        (self.read)(path.trim_start_matches('/')).map(|text| text.trim().to_owned())
    }

    /// The number in a file.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// A setting of the kernel, `net.core.somaxconn` for example.
    pub(super) fn sysctl(&self, name: &str) -> Option<String> {
        self.text(&format!("proc/sys/{}", name.replace('.', "/")))
    }

    /// A field of `/proc/self/status`.
    pub(super) fn status(&self, field: &str) -> Option<String> {
        let status = self.text("proc/self/status")?;
        status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(|value| value.trim().to_owned())
    }

    /// A limit of this process, by its name in `/proc/self/limits`.
    pub(super) fn limit(&self, name: &str) -> Option<Limit> {
        let limits = self.text("proc/self/limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        let mut values =
            line.split_whitespace().map(|word| if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() });
        Some(Limit { soft: values.next()??, hard: values.next()?? })
    }

    /// Major and minor version of the kernel, and all of its name.
    pub(super) fn kernel(&self) -> Option<((u32, u32), String)> {
        let release = self.text("proc/sys/kernel/osrelease")?;
        let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse().ok());
        Some(((numbers.next()??, numbers.next()??), release))
    }

    /// Processors that this process may run on.
    pub(super) fn processors(&self) -> Option<usize> {
        self.status("Cpus_allowed_list").map(|list| count(&list))
    }

    /// Processors of the machine.
    pub(super) fn processors_online(&self) -> Option<usize> {
        self.text("sys/devices/system/cpu/online").map(|list| count(&list))
    }

    /// The share of processors that the control groups allow, the smallest on the way up, and the file that says so.
    pub(super) fn quota(&self) -> Option<(f64, String)> {
        let groups = self.text("proc/self/cgroup")?;
        let mut files = Vec::new();
        for group in groups.lines() {
            let mut parts = group.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let base = match controllers {
                "" => "sys/fs/cgroup".to_owned(),
                some if some.split(',').any(|controller| controller == "cpu") => format!("sys/fs/cgroup/{some}"),
                _ => continue,
            };
            // In a container the path may be that of the host: the walk ends at what is mounted here.
            let mut path = path.trim_end_matches('/');
            loop {
                files.push(format!("{base}{path}"));
                match path.rsplit_once('/') {
                    Some((up, _)) => path = up,
                    None => break,
                }
            }
        }
        let quotas = files.into_iter().filter_map(|folder| Some((self.quota_of(&folder)?, folder)));
        quotas.min_by(|(one, _), (other, _)| one.total_cmp(other))
    }

    fn quota_of(&self, folder: &str) -> Option<f64> {
        let (quota, period) = match self.text(&format!("{folder}/cpu.max")) {
            Some(both) => {
                let (quota, period) = both.split_once(' ')?;
                (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
            }
            None => (
                // -1 is none.
                self.number(&format!("{folder}/cpu.cfs_quota_us"))? as f64,
                self.number(&format!("{folder}/cpu.cfs_period_us"))? as f64,
            ),
        };
        (period > 0.0).then_some(quota / period)
    }
}

/// How many numbers a list such as `0-3,8` names.
fn count(list: &str) -> usize {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(last.trim().parse::<usize>().ok()?.checked_sub(first.trim().parse().ok()?)? + 1)
    };
    list.split(',').filter_map(range).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, processors) in [("0", 1), ("0-1", 2), ("0-3,8,10-11", 7), ("", 0)] {
            assert_eq!(count(list), processors, "{list}");
        }
    }
}
