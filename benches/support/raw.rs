//! The baseline: plain blocking TCP. Ready-made frames in large writes, and a receiver that walks their lengths: what the
//! system gives to a program without any library.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::rig::{Orders, Rig, Work};

/// Bytes of LENGTH and TYPE.
const HEAD_BYTES: usize = 5;
/// Bytes of one read, and of one write to a single receiver.
const BLOCK_BYTES: usize = 256 << 10;

/// So many frames as they would be on the wire.
pub(crate) fn frames(count: usize, payload_bytes: usize) -> Vec<u8> {
    let mut frame = (payload_bytes as u32 + 1).to_be_bytes().to_vec();
    frame.push(3);
    frame.resize(HEAD_BYTES + payload_bytes, 0x5A);
    frame.repeat(count)
}

/// How many frames of that payload a large write holds; at least one.
pub(crate) fn frames_per_block(payload_bytes: usize) -> usize {
    (BLOCK_BYTES / (HEAD_BYTES + payload_bytes)).max(1)
}

/// Two ends of a connection over loopback.
pub(crate) fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let one = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (other, _) = listener.accept().expect("accepted");
    for stream in [&one, &other] {
        stream.set_nodelay(true).expect("an option");
    }
    (one, other)
}

/// Counts the frames of a stream, however it is cut.
#[derive(Default)]
pub(crate) struct Walk {
    /// Bytes that the frame in progress still lacks.
    lacks: usize,
    /// What there is of a LENGTH that is not whole.
    head: Vec<u8>,
}

impl Walk {
    /// How many frames end in these bytes.
    pub(crate) fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut count = 0;
        loop {
            if self.lacks > 0 {
                let take = self.lacks.min(bytes.len());
                self.lacks -= take;
                bytes = &bytes[take..];
                if self.lacks > 0 {
                    return count;
                }
                count += 1;
            }
            if self.head.is_empty() {
                // The fast path: all within these bytes.
                while let Some(head) = bytes.first_chunk::<4>() {
                    let end = 4 + u32::from_be_bytes(*head) as usize;
                    match bytes.get(end..) {
                        Some(rest) => bytes = rest,
                        None => break,
                    }
                    count += 1;
                }
            }
            while self.head.len() < 4 {
                let Some((first, rest)) = bytes.split_first() else { return count };
                self.head.push(*first);
                bytes = rest;
            }
            self.lacks = self.head.drain(..).fold(0, |length, byte| length << 8 | usize::from(byte));
        }
    }
}

/// One sender, one receiver.
pub(crate) fn pair(payload_bytes: usize) -> Box<dyn Rig> {
    let (sender, mut receiver) = connection();
    let orders = Orders::start(move |work: Work| {
        let (mut walk, mut buffer) = (Walk::default(), vec![0; BLOCK_BYTES]);
        while let Some(messages) = work.next() {
            let mut left = messages;
            while left > 0 {
                let read = receiver.read(&mut buffer).expect("read");
                assert!(read > 0, "ended early");
                left -= walk.count(&buffer[..read]);
            }
            work.finish();
        }
    });
    let per_write = frames_per_block(payload_bytes);
    Box::new(Sender { receivers: vec![sender], orders, block: frames(per_write, payload_bytes), per_write })
}

/// One sender, so many receivers on one thread, `per_write` messages in each write.
pub(crate) fn fan_out(payload_bytes: usize, receivers: usize, per_write: usize) -> Box<dyn Rig> {
    let (senders, mut streams): (Vec<_>, Vec<_>) = (0..receivers).map(|_| connection()).unzip();
    let orders = Orders::start(move |work: Work| {
        // The sender goes round in small steps, the receiver in larger ones, in the same order: neither needs to ask which
        // connection is ready, and no more than one larger step piles up anywhere.
        let frame_bytes = HEAD_BYTES + payload_bytes;
        let mut buffer = vec![0; (BLOCK_BYTES / 4 / frame_bytes).max(1) * frame_bytes];
        while let Some(messages) = work.next() {
            let mut left = messages as usize * frame_bytes;
            while left > 0 {
                let step = left.min(buffer.len());
                for stream in &mut streams {
                    stream.read_exact(&mut buffer[..step]).expect("read");
                    let found = Walk::default().count(&buffer[..step]);
                    assert_eq!(found as usize * frame_bytes, step, "frames arrived altered");
                }
                left -= step;
            }
            work.finish();
        }
    });
    Box::new(Sender { receivers: senders, orders, block: frames(per_write, payload_bytes), per_write })
}

/// One message there and back at a time.
pub(crate) fn round_trip(payload_bytes: usize) -> Box<dyn Rig> {
    let (near, mut far) = connection();
    let mut buffer = frames(1, payload_bytes);
    let frame = buffer.clone();
    let echo = Orders::start(move |work: Work| {
        while let Some(rounds) = work.next() {
            for _ in 0..rounds {
                far.read_exact(&mut buffer).expect("read");
                far.write_all(&buffer).expect("written");
            }
            work.finish();
        }
    });
    Box::new(Ping { stream: near, echo, answer: vec![0; frame.len()], frame })
}

struct Sender {
    receivers: Vec<TcpStream>,
    orders: Orders,
    block: Vec<u8>,
    per_write: usize,
}

impl Rig for Sender {
    fn burst(&mut self, messages: u64) {
        self.orders.order(messages);
        let mut left = messages as usize;
        while left > 0 {
            let count = left.min(self.per_write);
            let bytes = self.block.len() / self.per_write * count;
            for receiver in &mut self.receivers {
                receiver.write_all(&self.block[..bytes]).expect("written");
            }
            left -= count;
        }
        self.orders.finished();
    }
}

struct Ping {
    stream: TcpStream,
    echo: Orders,
    frame: Vec<u8>,
    answer: Vec<u8>,
}

impl Rig for Ping {
    fn burst(&mut self, messages: u64) {
        self.echo.order(messages);
        for _ in 0..messages {
            self.stream.write_all(&self.frame).expect("written");
            self.stream.read_exact(&mut self.answer).expect("read");
            assert!(self.answer == self.frame, "another frame came back");
        }
        self.echo.finished();
    }
}
