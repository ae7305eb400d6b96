//! What all rows of the macro benchmarks have in common: a rig sends a burst to its receiving thread and knows when all of
//! it has arrived.
//!
//! ```text
//!   bench thread                               receiving thread
//!   order(n): n messages will come    ------>  waits for an order
//!   sends n messages                  == TCP =>  receives and checks n messages
//!   finished()                        <------  says so
//! ```
//! Both ends live in one process, so that one clock times them; they share the cores with each other and with whatever else
//! runs. Called by `macro.rs` and by the rows in this folder.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// One row of one case, set up and connected.
pub(crate) trait Rig {
    /// Sends so many messages to each receiver and waits until all of them have arrived; or so many round trips.
    fn burst(&mut self, messages: u64);
}

/// The bench thread's hold on the receiving thread. When it is dropped, the thread gets no more orders and ends.
pub(crate) struct Orders {
    orders: Option<Sender<u64>>,
    finished: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// The receiving thread's end.
pub(crate) struct Work {
    orders: Receiver<u64>,
    finished: Sender<()>,
}

impl Orders {
    /// Starts the receiving thread.
    pub(crate) fn start(receive: impl FnOnce(Work) + Send + 'static) -> Orders {
        let (orders, orders_end) = channel();
        let (finished_end, finished) = channel();
        let work = Work { orders: orders_end, finished: finished_end };
        let thread = std::thread::spawn(move || receive(work));
        Orders { orders: Some(orders), finished, thread: Some(thread) }
    }

    /// Says how many messages come next (to each receiver of the thread).
    pub(crate) fn order(&self, messages: u64) {
        let orders = self.orders.as_ref().expect("there until the drop");
        orders.send(messages).expect("the receiving thread has failed: see above");
    }

    /// Waits until the order is carried out.
    pub(crate) fn finished(&self) {
        self.finished.recv().expect("the receiving thread has failed: see above");
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Work {
    /// The next order; `None` at the end.
    pub(crate) fn next(&self) -> Option<u64> {
        self.orders.recv().ok()
    }

    /// The order is carried out.
    pub(crate) fn finish(&self) {
        // Nobody listens any more when the bench thread has failed.
        let _ = self.finished.send(());
    }
}

/// Numbers the messages of one sender, in their first 8 bytes.
pub(crate) struct Numbered {
    payload: Vec<u8>,
    next: u64,
}

impl Numbered {
    /// Payloads of `payload_bytes`, 8 or more.
    pub(crate) fn new(payload_bytes: usize) -> Numbered {
        Numbered { payload: vec![0x5A; payload_bytes], next: 0 }
    }

    /// The next payload.
    #[inline]
    pub(crate) fn next(&mut self) -> &[u8] {
        self.payload[..8].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        &self.payload
    }
}

/// Checks at a receiver that nothing is lost, doubled, cut or out of order.
pub(crate) struct Checked {
    payload_bytes: usize,
    next: u64,
}

impl Checked {
    /// Of payloads of `payload_bytes`.
    pub(crate) fn new(payload_bytes: usize) -> Checked {
        Checked { payload_bytes, next: 0 }
    }

    /// One has arrived.
    #[inline]
    pub(crate) fn check(&mut self, payload: &[u8]) {
        let number = payload.first_chunk().map(|number| u64::from_le_bytes(*number));
        assert!(
            payload.len() == self.payload_bytes && number == Some(self.next),
            "message {} was expected, {number:?} of {} bytes came",
            self.next,
            payload.len()
        );
        self.next += 1;
    }
}
