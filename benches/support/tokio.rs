//! tokio-uring as a program would use it without a messaging library: ready-made frames, one read or write at a time,
//! 256 KiB each. A runtime at either end, each on a thread of its own.

use std::net::TcpStream as StdStream;

use tokio_uring::net::TcpStream;

use super::raw::{self, Walk};
use super::rig::{Orders, Rig, Work};

/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;

/// One sender, one receiver.
pub(crate) fn pair(payload_bytes: usize) -> Box<dyn Rig> {
    let (sender, receiver) = raw::connection();
    let receiving = Orders::start(move |work| tokio_uring::start(count(receiver, work)));
    let sending = Orders::start(move |work| tokio_uring::start(send(sender, payload_bytes, work)));
    Box::new(Both { sending, receiving })
}

/// One message there and back at a time.
pub(crate) fn round_trip(payload_bytes: usize) -> Box<dyn Rig> {
    let (near, far) = raw::connection();
    let receiving = Orders::start(move |work| tokio_uring::start(echo(far, payload_bytes, work)));
    let sending = Orders::start(move |work| tokio_uring::start(ping(near, payload_bytes, work)));
    Box::new(Both { sending, receiving })
}

struct Both {
    sending: Orders,
    receiving: Orders,
}

impl Rig for Both {
    fn burst(&mut self, messages: u64) {
        self.receiving.order(messages);
        self.sending.order(messages);
        self.sending.finished();
        self.receiving.finished();
    }
}

// Between orders nothing else runs in these runtimes, so waiting for the next one may block them.

async fn send(stream: StdStream, payload_bytes: usize, work: Work) {
    let stream = TcpStream::from_std(stream);
    let per_write = raw::frames_per_block(payload_bytes);
    while let Some(messages) = work.next() {
        let mut block = raw::frames(per_write, payload_bytes);
        for _ in 0..messages / per_write as u64 {
            let (result, back) = stream.write_all(block).await;
            result.expect("written");
            block = back;
        }
        let rest = raw::frames((messages % per_write as u64) as usize, payload_bytes);
        if !rest.is_empty() {
            stream.write_all(rest).await.0.expect("written");
        }
        work.finish();
    }
}

async fn count(stream: StdStream, work: Work) {
    let stream = TcpStream::from_std(stream);
    let (mut walk, mut buffer) = (Walk::default(), vec![0; READ_BYTES]);
    while let Some(messages) = work.next() {
        let mut left = messages;
        while left > 0 {
            let (result, back) = stream.read(buffer).await;
            buffer = back;
            let read = result.expect("read");
            assert!(read > 0, "ended early");
            left -= walk.count(&buffer[..read]);
        }
        work.finish();
    }
}

async fn ping(stream: StdStream, payload_bytes: usize, work: Work) {
    let stream = TcpStream::from_std(stream);
    let mut frame = raw::frames(1, payload_bytes);
    while let Some(rounds) = work.next() {
        for _ in 0..rounds {
            let (result, back) = stream.write_all(frame).await;
            result.expect("written");
            frame = read_exact(&stream, back).await;
        }
        work.finish();
    }
}

async fn echo(stream: StdStream, payload_bytes: usize, work: Work) {
    let stream = TcpStream::from_std(stream);
    let mut frame = raw::frames(1, payload_bytes);
    while let Some(rounds) = work.next() {
        for _ in 0..rounds {
            frame = read_exact(&stream, frame).await;
            let (result, back) = stream.write_all(frame).await;
            result.expect("written");
            frame = back;
        }
        work.finish();
    }
}

/// Frames this small come whole: one was written at once and nothing else is under way.
async fn read_exact(stream: &TcpStream, buffer: Vec<u8>) -> Vec<u8> {
    let whole = buffer.len();
    let (result, buffer) = stream.read(buffer).await;
    assert_eq!(result.expect("read"), whole, "a frame came in pieces");
    buffer
}
