//! Sending as a `Sink`, for programs made of streams. It holds at most one message that found the log full.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_sink::Sink;

use super::{Payload, SendError, Socket, TrySendError};
use crate::copy;
use crate::queue::Listener;

/// A `Sink` of messages for whoever the socket's send mode says. See [`Socket::sink`].
///
/// Flushed means accepted: what is accepted is sent, or told as not delivered by [`Socket::close`]. Closing the sink does not close
/// the socket.
pub struct MessageSink<'a> {
    socket: &'a Socket,
    waiting: Option<Bytes>,
    listener: Option<Listener>,
}

impl<'a> MessageSink<'a> {
    pub(super) fn new(socket: &'a Socket) -> Self {
        MessageSink { socket, waiting: None, listener: None }
    }

    fn offer(&mut self) -> Result<(), SendError> {
        let Some(message) = self.waiting.take() else { return Ok(()) };
        match self.socket.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(Payload::Owned(message))) => {
                self.waiting = Some(message);
                Ok(())
            }
            Err(TrySendError::Full(Payload::Borrowed(message))) => {
                self.waiting = Some(copy::owned(message));
                Ok(())
            }
            Err(TrySendError::Never(error)) => Err(error),
        }
    }

    /// Ready when no message waits.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        loop {
            self.offer()?;
            if self.waiting.is_none() {
                self.listener = None;
                return Poll::Ready(Ok(()));
            }
            match &mut self.listener {
                None => self.listener = Some(self.socket.shared().room.listen()),
                Some(listener) => match Pin::new(listener).poll(cx) {
                    Poll::Ready(()) => self.listener = None,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

impl Sink<Bytes> for MessageSink<'_> {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_out(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), SendError> {
        assert!(self.waiting.is_none(), "start_send without poll_ready");
        self.waiting = Some(message);
        self.offer()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_out(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_out(cx)
    }
}
