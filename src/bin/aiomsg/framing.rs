//! Messages as records of a byte stream, in and out: lines of text, binary records after their length, or JSON objects.
//! Both directions are bounded: a record longer than a message may be is an error, whatever the stream says.
//!
//! ```text
//! lines     payload, \n                         (a payload with a \n in it comes out as two lines)
//! length    length: u32, big-endian | payload   (any bytes)
//! json      {"identity":"<hex>","text":"..."}\n      or "base64" in place of "text" where the payload is no UTF-8;
//!           on input "to" (hex) sends to one peer, "key" is the message's, and "identity" is not looked at
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use aiomsg_uring::Identity;
use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::ValueEnum;
use serde_json::Value;

/// The longest record in bytes: the library's default of `message_bytes_max`.
const RECORD_BYTES_MAX: usize = 16 << 20;
/// The longest JSON line in bytes: base64 takes a third more, escaped text up to six times as much.
const JSON_BYTES_MAX: usize = 6 * RECORD_BYTES_MAX;
/// Bytes gathered before they are written although more is coming.
const WRITE_BYTES: usize = 256 << 10;

/// How messages follow one another.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// One message a line
    Lines,
    /// A length (32 bits, big-endian) before each message; for binary data
    Length,
    /// One JSON object a line (what --json means)
    #[value(hide = true)]
    Json,
}

/// One message of the input.
pub(crate) struct Record<'a> {
    /// Its bytes.
    pub(crate) payload: &'a [u8],
    /// The one peer that it is for, if it names one.
    pub(crate) to: Option<Identity>,
    /// What it is the newest value of, if it says so.
    pub(crate) key: Option<&'a [u8]>,
}

/// Messages read from a stream, one after the other.
pub(crate) struct Input {
    reader: Box<dyn BufRead + Send>,
    framing: Framing,
    record: Vec<u8>,
    key: Option<String>,
    /// Records read, for messages.
    count: u64,
}

impl Input {
    /// Reads a file, or standard input.
    pub(crate) fn open(path: Option<&Path>, framing: Framing) -> Result<Self> {
        let reader: Box<dyn BufRead + Send> = match path {
            Some(path) => {
                let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                Box::new(BufReader::with_capacity(256 << 10, file))
            }
            None => Box::new(BufReader::with_capacity(64 << 10, io::stdin())),
        };
        Ok(Self::new(reader, framing))
    }

    fn new(reader: Box<dyn BufRead + Send>, framing: Framing) -> Self {
        Self { reader, framing, record: Vec::new(), key: None, count: 0 }
    }

    /// The next record; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Record<'_>>> {
        self.record.clear();
        self.count += 1;
        let there = match self.framing {
            Framing::Lines => self.read_line(RECORD_BYTES_MAX),
            Framing::Length => self.read_counted(),
            Framing::Json => self.read_line(JSON_BYTES_MAX),
        };
        if !there.with_context(|| format!("record {} of the input", self.count))? {
            return Ok(None);
        }
        let mut to = None;
        if self.framing == Framing::Json {
            let what = || format!("line {} of the input", self.count);
            (self.record, to, self.key) = parse_json(&self.record).with_context(what)?;
        }
        Ok(Some(Record { payload: &self.record, to, key: self.key.as_ref().map(String::as_bytes) }))
    }

    /// Reads up to the end of the line, which is not kept; false at the end of the stream.
    fn read_line(&mut self, bytes_max: usize) -> Result<bool> {
        let mut bounded = (&mut self.reader).take(bytes_max as u64 + 1);
        if bounded.read_until(b'\n', &mut self.record).context("cannot read")? == 0 {
            return Ok(false);
        }
        if self.record.last() == Some(&b'\n') {
            self.record.pop();
        } else if self.record.len() > bytes_max {
            bail!("the line is longer than {bytes_max} bytes");
        }
        Ok(true)
    }

    fn read_counted(&mut self) -> Result<bool> {
        if self.reader.fill_buf().context("cannot read")?.is_empty() {
            return Ok(false);
        }
        let mut length = [0; 4];
        self.reader.read_exact(&mut length).context("the input ends within its length")?;
        let length = u32::from_be_bytes(length) as usize;
        if length > RECORD_BYTES_MAX {
            bail!("its length is {length}, over {RECORD_BYTES_MAX} bytes: is this input --framing length?");
        }
        // Memory grows with what arrives and not on the stream's word.
        let read = (&mut self.reader).take(length as u64).read_to_end(&mut self.record).context("cannot read")?;
        if read < length {
            bail!("the input ends after {read} of its {length} bytes");
        }
        Ok(true)
    }
}

fn parse_json(line: &[u8]) -> Result<(Vec<u8>, Option<Identity>, Option<String>)> {
    let value: Value = serde_json::from_slice(line).context("no JSON")?;
    let field =
        |name: &str| value.get(name).map(|field| field.as_str().with_context(|| format!("{name:?} is no text")));
    let payload = match (field("text").transpose()?, field("base64").transpose()?) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(text)) => BASE64_STANDARD.decode(text).map_err(|error| anyhow!("\"base64\" is none: {error}"))?,
        _ => bail!("an object with either \"text\" or \"base64\" is needed"),
    };
    let to = field("to").transpose()?.map(str::parse).transpose().context("\"to\" is no identity")?;
    Ok((payload, to, field("key").transpose()?.map(str::to_owned)))
}

/// Messages written to a stream.
pub(crate) struct Output {
    writer: Box<dyn Write + Send>,
    framing: Framing,
    buffer: Vec<u8>,
}

impl Output {
    /// Writes a file, or standard output.
    pub(crate) fn open(path: Option<&Path>, framing: Framing) -> Result<Self> {
        let writer: Box<dyn Write + Send> = match path {
            Some(path) => Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?),
            None => standard_output(),
        };
        Ok(Self { writer, framing, buffer: Vec::new() })
    }

    /// Takes one message; written now or at the next [`Output::flush`].
    pub(crate) fn put(&mut self, identity: Identity, payload: &[u8]) -> io::Result<()> {
        match self.framing {
            Framing::Lines => {
                self.buffer.extend_from_slice(payload);
                self.buffer.push(b'\n');
            }
            Framing::Length => {
                let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
                self.buffer.extend_from_slice(&length.to_be_bytes());
                self.buffer.extend_from_slice(payload);
            }
            Framing::Json => {
                write!(self.buffer, r#"{{"identity":"{identity}","#)?;
                match std::str::from_utf8(payload) {
                    Ok(text) => {
                        self.buffer.extend_from_slice(br#""text":"#);
                        serde_json::to_writer(&mut self.buffer, text)?;
                    }
                    Err(_) => write!(self.buffer, r#""base64":"{}""#, BASE64_STANDARD.encode(payload))?,
                }
                self.buffer.extend_from_slice(b"}\n");
            }
        }
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes what was taken.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.buffer)?;
        self.buffer.clear();
        self.writer.flush()
    }
}

/// Standard output without the line buffering of the standard library: what is written has been gathered already.
fn standard_output() -> Box<dyn Write + Send> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        if let Ok(owned) = io::stdout().as_fd().try_clone_to_owned() {
            return Box::new(File::from(owned));
        }
    }
    Box::new(io::stdout())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(bytes: &[u8], framing: Framing) -> Input {
        Input::new(Box::new(io::Cursor::new(bytes.to_vec())), framing)
    }

    fn all(bytes: &[u8], framing: Framing) -> Result<Vec<Vec<u8>>> {
        let mut input = input(bytes, framing);
        let mut found = Vec::new();
        while let Some(record) = input.next()? {
            found.push(record.payload.to_vec());
        }
        Ok(found)
    }

    fn written(framing: Framing, payloads: &[&[u8]]) -> Vec<u8> {
        let mut output = Output { writer: Box::new(io::sink()), framing, buffer: Vec::new() };
        for payload in payloads {
            output.put(Identity::from_bytes([7; 16]), payload).unwrap();
        }
        output.buffer
    }

    #[test]
    fn what_is_written_is_read_back() {
        let payloads: [&[u8]; 5] = [b"one", b"", "tw\u{f6} \"quoted\"\t".as_bytes(), b"\0\xff\xfe", b"four"];
        for framing in [Framing::Lines, Framing::Length, Framing::Json] {
            assert_eq!(all(&written(framing, &payloads), framing).unwrap(), payloads, "{framing:?}");
        }
        let binary: &[u8] = b"a\nb\r\n";
        for framing in [Framing::Length, Framing::Json] {
            assert_eq!(all(&written(framing, &[binary]), framing).unwrap(), [binary], "{framing:?}");
        }
    }

    #[test]
    fn the_last_line_needs_no_end() {
        assert_eq!(all(b"a\nb", Framing::Lines).unwrap(), [b"a", b"b"]);
        assert!(all(b"", Framing::Lines).unwrap().is_empty());
        assert!(all(b"", Framing::Length).unwrap().is_empty());
    }

    #[test]
    fn damaged_input_is_told_with_its_place() {
        let cases: [(&[u8], Framing, &str); 6] = [
            (b"\0\0\0\x01a\0\0", Framing::Length, "record 2 of the input: the input ends within its length"),
            (b"\0\0\0\x05abc", Framing::Length, "record 1 of the input: the input ends after 3 of its 5 bytes"),
            (b"what\n", Framing::Length, "is this input --framing length?"),
            (b"{\"text\":\"a\"}\nb\n", Framing::Json, "line 2 of the input: no JSON"),
            (b"{\"text\":1}\n", Framing::Json, "\"text\" is no text"),
            (b"{\"text\":\"a\",\"to\":\"z\"}\n", Framing::Json, "\"to\" is no identity"),
        ];
        for (bytes, framing, text) in cases {
            let error = format!("{:#}", all(bytes, framing).unwrap_err());
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_json_record_may_name_its_peer_or_its_key() {
        let identity = Identity::from_bytes([9; 16]);
        let lines = format!("{{\"text\":\"x\",\"to\":\"{identity}\"}}\n{{\"text\":\"x\",\"key\":\"k\"}}\n");
        let mut input = input(lines.as_bytes(), Framing::Json);
        let mut names = || input.next().unwrap().map(|record| (record.to, record.key.map(<[u8]>::to_vec)));
        assert_eq!(names(), Some((Some(identity), None)));
        assert_eq!(names(), Some((None, Some(b"k".to_vec()))));
    }
}
