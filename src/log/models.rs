//! Models of the log for loom: what the appender and the readers do at the same time, in every order that matters.
//!
//! Run by `tests/loom/run`. Loom sees atomics, locks and counted pointers, and
//! through `sync::Watch` which bytes are touched; the bytes themselves are checked by value as well.

use super::*;
use loom::thread;

const FRAME_BYTES: usize = 1024;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(model);
}

fn small() -> LogOptions {
    LogOptions { chunk_bytes: 4 << 10, limit_bytes: 16 << 10, share_from_bytes: FRAME_BYTES, ..LogOptions::default() }
}

/// Appends message `number`, copied or by reference. Heads and frames are whole grains of the watch.
fn append(appender: &mut Appender, number: u8, by_reference: bool) -> bool {
    let mut head = [0; sync::Watch::GRAIN];
    let payload_bytes = if by_reference { FRAME_BYTES } else { FRAME_BYTES - head.len() };
    let length = (head.len() - 4 + payload_bytes) as u32;
    head[..4].copy_from_slice(&length.to_be_bytes());
    let payload = vec![number; payload_bytes];
    if by_reference {
        appender.append_bytes(&head, payload.into()).is_ok()
    } else {
        appender.append(&head, &payload).is_ok()
    }
}

/// Reads one gathered range and advances; the messages must be those that `at` says.
fn read(reader: &mut Reader, at: Cursor) -> Cursor {
    let mut number = at.messages();
    let end = reader.frames(at, |frame| {
        let bytes = match frame {
            Frame::Whole(bytes) => &bytes[sync::Watch::GRAIN..],
            Frame::Split { payload, .. } => payload,
        };
        assert!(bytes.iter().all(|byte| u64::from(*byte) == number), "message {number} is another");
        number += 1;
        true
    });
    let mut out = Vec::new();
    let to = reader.gather(at, 64 << 10, 64, &mut out);
    assert!(to.messages() >= end.messages() && to.is_aligned() || to.position() > end.position());
    drop(out);
    reader.advance(at, end);
    end
}

#[test]
fn what_is_published_is_whole() {
    check(3, || {
        let (mut appender, mut readers) = open(small(), 1);
        let mut reader = readers.remove(0);
        let at = reader.join();
        // The fourth copy of a chunk of 4 frames is the last that fits; then a payload, then another chunk.
        (0..3).for_each(|number| assert!(append(&mut appender, number, false)));
        let appending = thread::spawn(move || {
            assert!(append(&mut appender, 3, true));
            assert!(append(&mut appender, 4, false));
            appender
        });
        let at = read(&mut reader, at);
        let at = read(&mut reader, at);
        let appender = appending.join().unwrap();
        let at = read(&mut reader, at);
        assert_eq!(at.messages(), appender.messages());
        assert!(!reader.has_more(at));
    });
}

#[test]
fn memory_is_used_again_only_when_passed() {
    check(3, || {
        let (mut appender, mut readers) = open(small(), 2);
        let mut second = readers.remove(1);
        let mut first = readers.remove(0);
        let (a, b) = (first.join(), second.join());
        let mut number = 0;
        while append(&mut appender, number, false) {
            number += 1;
        }
        let b = read(&mut second, b);
        let appending = thread::spawn(move || {
            let appended = append(&mut appender, number, false);
            (appender, appended)
        });
        let a = read(&mut first, a);
        let (mut appender, appended) = appending.join().unwrap();
        let number = number + u8::from(appended);
        assert!(append(&mut appender, number, false), "all was read, yet there is no room");
        assert_eq!(read(&mut first, a).messages(), u64::from(number) + 1);
        assert_eq!(read(&mut second, b).messages(), u64::from(number) + 1);
    });
}

#[test]
fn nothing_is_lost_between_the_last_to_leave_and_the_next_to_join() {
    check(3, || {
        let (mut appender, mut readers) = open(small(), 2);
        let mut second = readers.remove(1);
        let mut first = readers.remove(0);
        let a = first.join();
        (0..4).for_each(|number| assert!(append(&mut appender, number, false)));
        let a = read(&mut first, a);
        assert!(append(&mut appender, 4, false));
        let appending = thread::spawn(move || {
            assert!(append(&mut appender, 5, true));
            appender
        });
        let leaving = thread::spawn(move || {
            first.leave(a);
            first
        });
        let b = second.join();
        let appender = appending.join().unwrap();
        let _first = leaving.join().unwrap();
        // Either it joined beside the other, at the tail of that moment, or after it, at its place.
        assert!((4..=6).contains(&b.messages()) && b.is_aligned());
        assert_eq!(read(&mut second, b).messages(), appender.messages());
    });
}
