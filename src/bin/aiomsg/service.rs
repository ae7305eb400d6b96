//! What a service manager wants to know (sd_notify(3)): that the program is ready, that it still works, that it ends. All of it does
//! nothing unless the environment names somebody who listens.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use aiomsg_uring::{Socket, blocking};
use anyhow::{Context as _, Result};
use sd_notify::NotifyState;

/// Addresses are bound. From now on, if the unit has a watchdog, it hears of the sockets' reactors twice in its time, as long as they
/// answer.
pub(crate) fn ready(sockets: &[&blocking::Socket]) -> Result<()> {
    tell(NotifyState::Ready);
    let Some(patience) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let sockets: Vec<Socket> = sockets.iter().map(|socket| Socket::from((*socket).clone())).collect();
    let watch = move || {
        while sockets.iter().all(|socket| answers(socket, patience / 4)) {
            tell(NotifyState::Watchdog);
            std::thread::sleep(patience / 4);
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

/// What was accepted still goes out.
pub(crate) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Whether the socket's reactor answers in time. Nobody has so many peers: what ends the wait is the reactor's own clock.
fn answers(socket: &Socket, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let mut asked = pin!(socket.wait_for_peers(usize::MAX, Duration::from_millis(1)));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if asked.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::park_timeout(left);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
