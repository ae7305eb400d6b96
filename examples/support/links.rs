//! The `hold` and `idle` roles: memory per connection, once so many of them are up.

use std::io::Write;
use std::time::{Duration, Instant};

use super::options::Options;
use super::usage::{leave, rss_kb, threads};

/// Waits (by `pass`, which lets that much time go by) until all connections are there and
/// things have settled, prints the line of the role, and stays for `stay`.
pub(crate) fn report(
    options: &Options,
    side: &str,
    before_kb: u64,
    stay: Duration,
    mut pass: impl FnMut(Duration),
) -> ! {
    let until = Instant::now() + Duration::from_secs(60);
    while established(options.port) < options.subs as u64 && Instant::now() < until {
        pass(Duration::from_millis(100));
    }
    pass(Duration::from_secs(2));
    let after_kb = rss_kb();
    let conns = established(options.port);
    println!(
        "{{\"side\":\"{side}\",\"conns\":{conns},\"rss_before_kb\":{before_kb},\"rss_after_kb\":{after_kb},\
         \"bytes_per_conn\":{:.0},\"threads\":{}}}",
        (after_kb as f64 - before_kb as f64) * 1024.0 / conns.max(1) as f64,
        threads(),
    );
    // The driver reads this line while both processes are still there.
    _ = std::io::stdout().flush();
    pass(stay);
    leave()
}

/// Established TCP connections whose local port is `port`.
fn established(port: u16) -> u64 {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let port = format!(":{port:04X}");
    let is_ours = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or("");
        local.ends_with(&port) && fields.nth(1) == Some(ESTABLISHED)
    };
    table.lines().skip(1).filter(is_ours).count() as u64
}
