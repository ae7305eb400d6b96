//! Futures dropped at any await: what was accepted arrives, once and in order, and nothing else does; what waits beside a
//! dropped future goes on.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use aiomsg_uring::{Backend, SendMode, Socket};
use pollster::block_on;

use crate::common::{PATIENCE, number, say_loudly};
use crate::{engine, scale, value_of};

on_both!([dropped_at_any_await]);

/// Polls up to so many times, then drops the future.
fn poll_briefly<T>(times: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..times {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(value);
        }
        thread::yield_now();
    }
    None
}

fn dropped_at_any_await(backend: Backend) {
    let wanted = 5_000 * scale();
    let engine = engine(backend);
    let build = || {
        let builder = Socket::builder().engine(&engine).send_mode(SendMode::RoundRobin).log_bytes_max(1 << 20);
        let builder = builder.receive_bytes_max(64 << 10).send_buffer_bytes(32 << 10).recv_buffer_bytes(32 << 10);
        builder.build().expect("a socket")
    };
    let (sender, receiver) = (build(), build());
    block_on(async {
        receiver.connect(sender.bind("127.0.0.1:0").await.expect("bound")).await.expect("connecting");
        sender.wait_for_peers(1, PATIENCE).await.expect("a peer");
    });
    let to = receiver.identity();
    let (sends, receives) = (&AtomicUsize::new(0), &AtomicUsize::new(0));
    let (accepted, received) = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut accepted = Vec::new();
            for value in 0_u64.. {
                let enough = [sends, receives].iter().all(|count| count.load(Relaxed) >= wanted);
                if enough {
                    break;
                }
                let message = [&number(value)[..], &[7; 1_500]].concat();
                let sent = if value % 3 == 0 {
                    poll_briefly(1 + value % 4, sender.send_to(to, &message))
                } else {
                    poll_briefly(1 + value % 4, sender.send(&message))
                };
                match sent {
                    Some(sent) => {
                        sent.expect("sent");
                        accepted.push(value);
                    }
                    None => _ = sends.fetch_add(1, Relaxed),
                }
                // Other futures, beside those that wait.
                if value % 100 == 0 {
                    assert!(poll_briefly(1, sender.wait_for_peers(9, PATIENCE)).is_none(), "nine peers");
                    poll_briefly(value / 100 % 3, build().bind("127.0.0.1:0"));
                    // First the receiver is the slow one, so that sends wait, then the sender.
                    if sends.load(Relaxed) >= wanted {
                        thread::sleep(Duration::from_millis(2));
                    }
                }
            }
            block_on(sender.send(&number(u64::MAX))).expect("sent");
            accepted
        });
        let receiving = scope.spawn(|| {
            let mut received = Vec::new();
            for turn in 0_u64.. {
                if turn % 10 == 0 && sends.load(Relaxed) < wanted {
                    thread::sleep(Duration::from_millis(5));
                }
                match poll_briefly(1 + turn % 3, receiver.recv()) {
                    Some(message) => match value_of(&message.expect("received")) {
                        u64::MAX => break,
                        value => received.push(value),
                    },
                    None => _ = receives.fetch_add(1, Relaxed),
                }
            }
            received
        });
        (sending.join().expect("sent"), receiving.join().expect("received"))
    });
    assert!(accepted == received, "{} accepted, {} received", accepted.len(), received.len());
    let dropped = sends.load(Relaxed) + receives.load(Relaxed);
    say_loudly(&format!("{dropped} futures dropped on {backend:?}, {} messages, lost 0", accepted.len()));
}
