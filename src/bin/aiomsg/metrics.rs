//! `--metrics`: the counters of a running command in Prometheus' text format, over the least HTTP that Prometheus, curl
//! and `aiomsg top` need. One request at a time, a short one, answered and closed: a scraper that hangs delays the next
//! scrape by two seconds and nothing else.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aiomsg_uring::Metrics;
use anyhow::{Context, Result};

use crate::terminal::note;

/// How long a request, and an answer, may take.
const IO_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a request that are read at most.
const REQUEST_BYTES_MAX: u64 = 8 << 10;
/// Bytes of an answer that are read at most.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// How old counters may be that the driving thread puts up.
const BOARD_INTERVAL: Duration = Duration::from_millis(200);

/// Where counters are served.
#[derive(Clone, Debug)]
pub(crate) enum At {
    /// `HOST:PORT`, of this machine's own if the host is left out.
    Tcp(String),
    /// A unix-domain socket.
    Unix(PathBuf),
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("unix: needs a path".into()),
                _ if cfg!(unix) => Ok(Self::Unix(path.into())),
                _ => Err("this platform has no unix-domain sockets".into()),
            };
        }
        let place = text.strip_prefix("http://").or_else(|| text.strip_prefix("tcp:")).unwrap_or(text);
        let place = place.trim_start_matches('/');
        let place = place.split_once('/').map_or(place, |(place, _)| place);
        match place.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_err() => Err(format!("{port:?} is no port")),
            Some(("" | "*", port)) => {
                let host = if place.starts_with('*') { "0.0.0.0" } else { "127.0.0.1" };
                Ok(Self::Tcp(format!("{host}:{port}")))
            }
            Some(_) => Ok(Self::Tcp(place.to_owned())),
            None => Err("write unix:PATH or HOST:PORT".into()),
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(place) => f.write_str(place),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Counters that are served; when it is dropped, at the end of the program, the socket's file goes.
#[must_use]
pub(crate) struct Served(At);

impl Drop for Served {
    fn drop(&mut self) {
        if let At::Unix(path) = &self.0 {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Serves what `render` makes, on a thread of its own, until the process ends.
pub(crate) fn serve(at: &At, quiet: bool, render: impl Fn() -> String + Send + 'static) -> Result<Served> {
    let cannot = || format!("cannot serve counters at {at}");
    let run: Box<dyn FnOnce() + Send> = match at {
        At::Tcp(place) => {
            let listener = TcpListener::bind(place).with_context(cannot)?;
            if !quiet {
                note(format!("counters at http://{}/metrics", listener.local_addr().with_context(cannot)?));
            }
            Box::new(move || {
                answer_all(listener.incoming(), &render, |stream| {
                    stream.set_read_timeout(Some(IO_TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(IO_TIMEOUT)))
                });
            })
        }
        #[cfg(unix)]
        At::Unix(path) => {
            use std::os::unix::net::{UnixListener, UnixStream};
            // What a killed program left behind answers nobody.
            if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                std::fs::remove_file(path).with_context(cannot)?;
            }
            let listener = UnixListener::bind(path).with_context(cannot)?;
            if !quiet {
                note(format!("counters at {at}"));
            }
            Box::new(move || {
                answer_all(listener.incoming(), &render, |stream| {
                    stream.set_read_timeout(Some(IO_TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(IO_TIMEOUT)))
                });
            })
        }
        #[cfg(not(unix))]
        At::Unix(_) => anyhow::bail!("this platform has no unix-domain sockets"),
    };
    std::thread::Builder::new().name("metrics".into()).spawn(run).context("cannot start a thread")?;
    Ok(Served(at.clone()))
}

/// One after the other, each within its time.
fn answer_all<S: Read + Write>(
    streams: impl Iterator<Item = io::Result<S>>,
    render: &dyn Fn() -> String,
    limit: impl Fn(&S) -> io::Result<()>,
) {
    for stream in streams.flatten() {
        // A scraper that went away is no trouble of ours.
        let _ = limit(&stream).and_then(|()| answer(stream, render));
    }
}

fn answer(mut stream: impl Read + Write, render: &dyn Fn() -> String) -> io::Result<()> {
    let mut request = BufReader::new((&mut stream).take(REQUEST_BYTES_MAX));
    let mut first = String::new();
    request.read_line(&mut first)?;
    let mut header = String::new();
    // Up to the empty line: an answer before the end of the request would be taken back by a reset.
    while request.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, body) =
        if first.starts_with("GET ") { ("200 OK", render()) } else { ("405 Method Not Allowed", String::new()) };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Asks for the counters that are served somewhere.
pub(crate) fn fetch(at: &At) -> Result<String> {
    let cannot = || format!("no counters from {at}: is a program with --metrics {at} running?");
    let mut text = String::new();
    match at {
        At::Tcp(place) => {
            let stream = TcpStream::connect(place).with_context(cannot)?;
            stream.set_read_timeout(Some(IO_TIMEOUT)).with_context(cannot)?;
            ask(stream, &mut text).with_context(cannot)?;
        }
        #[cfg(unix)]
        At::Unix(path) => {
            let stream = std::os::unix::net::UnixStream::connect(path).with_context(cannot)?;
            stream.set_read_timeout(Some(IO_TIMEOUT)).with_context(cannot)?;
            ask(stream, &mut text).with_context(cannot)?;
        }
        #[cfg(not(unix))]
        At::Unix(_) => anyhow::bail!("this platform has no unix-domain sockets"),
    }
    let (head, body) = text.split_once("\r\n\r\n").with_context(cannot)?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        anyhow::bail!("{at} answered: {status}");
    }
    Ok(body.to_owned())
}

fn ask(mut stream: impl Read + Write, text: &mut String) -> io::Result<()> {
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n")?;
    stream.take(ANSWER_BYTES_MAX).read_to_string(text)?;
    Ok(())
}

/// Counters of a socket that only its own thread may ask: that thread puts them up now and then.
pub(crate) struct Board {
    text: Arc<Mutex<String>>,
    put: Instant,
    _served: Served,
}

impl Board {
    /// Serves what will be put up.
    pub(crate) fn open(at: &At, quiet: bool, first: &Metrics) -> Result<Self> {
        let text = Arc::new(Mutex::new(first.to_string()));
        let shown = text.clone();
        let served = serve(at, quiet, move || shown.lock().unwrap_or_else(PoisonError::into_inner).clone())?;
        Ok(Self { text, put: Instant::now(), _served: served })
    }

    /// Puts up new counters if the old ones are old.
    pub(crate) fn put(&mut self, metrics: impl FnOnce() -> Metrics) {
        if self.put.elapsed() >= BOARD_INTERVAL {
            self.put = Instant::now();
            *self.text.lock().unwrap_or_else(PoisonError::into_inner) = metrics().to_string();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_people_write_them() {
        let cases = [
            ("127.0.0.1:9000", "127.0.0.1:9000"),
            ("tcp:host:9000", "host:9000"),
            ("tcp://host:9000", "host:9000"),
            ("http://host:9000/metrics", "host:9000"),
            (":9000", "127.0.0.1:9000"),
            ("*:9000", "0.0.0.0:9000"),
            ("unix:/run/x", "unix:/run/x"),
        ];
        for (text, place) in cases {
            assert_eq!(text.parse::<At>().unwrap().to_string(), place);
        }
        for bad in ["host", "host:port", "unix:", ""] {
            assert!(bad.parse::<At>().is_err(), "{bad}");
        }
    }
}
