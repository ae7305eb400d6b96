//! Messages and events as streams. A stream holds a listener only while it waits, and takes a message only when it yields it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;

use super::core::Take;
use super::{Socket, TryRecvError};
use crate::protocol::Identity;
use crate::queue::Listener;
use crate::shard::{Event, Phase};

/// Stream of a socket's messages; ends when the socket is closed. See [`Socket::messages`].
pub struct Messages<'a> {
    socket: &'a Socket,
    listener: Option<Listener>,
}

impl<'a> Messages<'a> {
    pub(super) fn new(socket: &'a Socket) -> Self {
        Messages { socket, listener: None }
    }
}

impl Stream for Messages<'_> {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let this = &mut *self;
        poll_next(this.socket, &mut this.listener, cx)
    }
}

/// Stream of a socket's messages with who sent them. See [`Socket::identity_messages`].
pub struct IdentityMessages<'a> {
    socket: &'a Socket,
    listener: Option<Listener>,
}

impl<'a> IdentityMessages<'a> {
    pub(super) fn new(socket: &'a Socket) -> Self {
        IdentityMessages { socket, listener: None }
    }
}

impl Stream for IdentityMessages<'_> {
    type Item = (Identity, Bytes);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<(Identity, Bytes)>> {
        let this = &mut *self;
        poll_next(this.socket, &mut this.listener, cx)
    }
}

#[inline(always)]
fn poll_next<T: Take>(socket: &Socket, listener: &mut Option<Listener>, cx: &mut Context<'_>) -> Poll<Option<T>> {
    loop {
        if let Some(taken) = socket.take() {
            *listener = None;
            return Poll::Ready(Some(taken));
        }
        match listener {
            None => {
                let arrival = socket.shared().inbox.listen();
                if let TryRecvError::Never(_) = socket.none_left() {
                    return Poll::Ready(None);
                }
                *listener = Some(arrival);
            }
            Some(waiting) => match Pin::new(waiting).poll(cx) {
                Poll::Ready(()) => *listener = None,
                Poll::Pending => return Poll::Pending,
            },
        }
    }
}

/// Stream of a socket's events; ends when the socket is closed. See [`Socket::events`].
pub struct Events<'a> {
    socket: &'a Socket,
    listener: Option<Listener>,
}

impl<'a> Events<'a> {
    pub(super) fn new(socket: &'a Socket) -> Self {
        Events { socket, listener: None }
    }
}

impl Stream for Events<'_> {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.socket.try_event() {
                this.listener = None;
                return Poll::Ready(Some(event));
            }
            if this.socket.shared().phase() >= Phase::Closed {
                return Poll::Ready(None);
            }
            match &mut this.listener {
                None => this.listener = Some(this.socket.shared().events.arrived.listen()),
                Some(waiting) => match Pin::new(waiting).poll(cx) {
                    Poll::Ready(()) => this.listener = None,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}
