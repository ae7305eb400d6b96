//! Reads a recording: a text file with a header line, then a message a line, of which the first column is a time in
//! nanoseconds. Lines are taken raw: nothing but the digits before the first comma is looked at, so quoting and the
//! meaning of the other columns are the subscriber's business. Read as it goes, never whole.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The longest line that is taken for one, in bytes: what has longer ones is no such file.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A recording that is being read.
pub(crate) struct Recording<R = BufReader<File>> {
    reader: R,
    /// Bytes of the whole file, and of it read.
    bytes: u64,
    bytes_read: u64,
    /// Number of the line in `line`, from 1.
    line_number: u64,
    line: Vec<u8>,
    /// The first message's time.
    first_ns: Option<u64>,
}

/// One message of the recording.
#[derive(Debug, PartialEq)]
pub(crate) struct Line<'a> {
    /// Time since the first message; 0 for one that is stamped earlier than the first.
    pub(crate) offset: Duration,
    /// The line, without its end.
    pub(crate) text: &'a [u8],
}

impl Recording {
    /// Opens the file and skips its header line.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot open the recording {name}"))?;
        let metadata = file.metadata().with_context(|| format!("cannot read the size of {name}"))?;
        if metadata.is_dir() {
            bail!("{name} is a directory: --input takes one CSV file");
        }
        Recording::new(BufReader::with_capacity(1 << 16, file), metadata.len())
    }
}

impl<R: BufRead> Recording<R> {
    /// Skips the header line. `bytes`: how long the whole is, for [`Recording::progress`] only.
    fn new(reader: R, bytes: u64) -> Result<Self> {
        let mut recording = Self { reader, bytes, bytes_read: 0, line_number: 0, line: Vec::new(), first_ns: None };
        recording.read_line()?;
        Ok(recording)
    }

    /// The next message, empty lines skipped; `None` at the end.
    pub(crate) fn next_line(&mut self) -> Result<Option<Line<'_>>> {
        while self.read_line()? {
            if self.line.is_empty() {
                continue;
            }
            let Some(time_ns) = parse_time_ns(&self.line) else {
                bail!(
                    "line {} of the recording does not start with a time: the first column must be whole nanoseconds",
                    self.line_number
                );
            };
            let first_ns = *self.first_ns.get_or_insert(time_ns);
            let offset = Duration::from_nanos(time_ns.saturating_sub(first_ns));
            return Ok(Some(Line { offset, text: &self.line }));
        }
        Ok(None)
    }

    /// How much of the file has been read, 0 to 1.
    pub(crate) fn progress(&self) -> f64 {
        self.bytes_read as f64 / self.bytes.max(1) as f64
    }

    /// Reads a line into `self.line`, without its end; false at the end of the file.
    fn read_line(&mut self) -> Result<bool> {
        self.line.clear();
        self.line_number += 1;
        let count = (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
        let count = count.with_context(|| format!("cannot read line {} of the recording", self.line_number))? as u64;
        self.bytes_read += count;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
        } else if count == LINE_BYTES_MAX {
            bail!(
                "line {} of the recording is longer than {LINE_BYTES_MAX} bytes: is it a text file?",
                self.line_number
            );
        }
        Ok(count > 0)
    }
}

/// The digits before the first comma (or in all of the line) as a number.
fn parse_time_ns(line: &[u8]) -> Option<u64> {
    let column = line.split(|byte| *byte == b',').next()?;
    std::str::from_utf8(column).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(text: &str) -> Recording<&[u8]> {
        Recording::new(text.as_bytes(), text.len() as u64).unwrap()
    }

    fn lines(text: &str) -> Vec<(u64, String)> {
        let mut recording = recording(text);
        let mut lines = Vec::new();
        while let Some(line) = recording.next_line().unwrap() {
            lines.push((line.offset.as_nanos() as u64, String::from_utf8(line.text.to_vec()).unwrap()));
        }
        assert_eq!(recording.progress(), 1.0);
        lines
    }

    #[test]
    fn the_header_is_skipped_and_times_count_from_the_first() {
        let read = lines("ts,price\n1000,a\n1000,b\n4000,\"c,d\"\n");
        assert_eq!(read, [(0, "1000,a".into()), (0, "1000,b".into()), (3000, "4000,\"c,d\"".into())]);
    }

    #[test]
    fn line_ends_and_empty_lines_of_all_sorts() {
        assert_eq!(lines("ts\r\n5\r\n\r\n\n7"), [(0, "5".into()), (2, "7".into())]);
    }

    #[test]
    fn a_time_before_the_first_is_due_at_once() {
        assert_eq!(lines("ts\n5,x\n3,y\n"), [(0, "5,x".into()), (0, "3,y".into())]);
    }

    #[test]
    fn nothing_after_the_header() {
        assert_eq!(recording("ts,price\n").next_line().unwrap(), None);
        assert_eq!(Recording::new(&b""[..], 0).unwrap().next_line().unwrap(), None);
    }

    #[test]
    fn bad_lines_are_told_by_number() {
        for bad in ["abc,1", "1.5,x", "-1,x", ",x"] {
            let text = format!("ts\n1,x\n{bad}\n");
            let mut recording = recording(&text);
            assert!(recording.next_line().unwrap().is_some());
            assert!(recording.next_line().unwrap_err().to_string().contains("line 3 "), "{bad}");
        }
        let long = format!("ts\n{}", "x".repeat(LINE_BYTES_MAX as usize + 1));
        assert!(recording(&long).next_line().unwrap_err().to_string().contains("longer than"));
    }
}
