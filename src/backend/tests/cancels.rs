//! Operations that are cancelled, closed or dropped while they are under way: each ends once, and says what went.

use super::*;

#[test]
fn a_cancelled_receive_loses_nothing() {
    each(|rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(2_000_000);
        let send = rig.send(near, vec![Bytes::copy_from_slice(&bytes)]);
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            let recv = rig.recv(far);
            if let Outcome::Received(lease) = rig.next(recv) {
                got.extend_from_slice(&lease);
            }
            rig.backend.cancel(recv);
            loop {
                match rig.next(recv) {
                    Outcome::Received(lease) => got.extend_from_slice(&lease),
                    Outcome::RecvEnded(Err(error)) if is_cancelled(&error) => break,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(got == bytes);
        rig.expect_sent(send, bytes.len());
    });
}

#[test]
fn cancels_at_any_time() {
    each(|rig| {
        let (listener, address) = rig.listen();
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        // Before it was submitted.
        rig.backend.cancel(accepts);
        rig.expect_cancelled(accepts);
        // And after, with an unknown and a finished token thrown in.
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        assert!(rig.stays_silent(accepts, 2));
        let (near, _far) = rig.connect(&address, accepts);
        rig.backend.cancel(accepts);
        rig.backend.cancel(Token(u64::MAX));
        rig.expect_cancelled(accepts);
        rig.backend.cancel(accepts);
        // A send that the peer does not read reports what went.
        let send = rig.send(near, vec![Bytes::from(pattern(32 * 1024 * 1024))]);
        assert!(rig.stays_silent(send, 20));
        rig.backend.cancel(send);
        rig.backend.cancel(send);
        match rig.next(send) {
            Outcome::Sent { bytes, error: Some(error), slices } => {
                assert!(is_cancelled(&error) && bytes > 0 && bytes < 32 * 1024 * 1024 && slices.len() == 1);
            }
            other => panic!("{other:?}"),
        }
        assert!(rig.stays_silent(send, 2));
    });
}

#[test]
fn a_cancelled_send_says_how_much_the_peer_will_get() {
    each(|rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(32 * 1024 * 1024);
        let send = rig.send(near, bytes.chunks(1024 * 1024).map(Bytes::copy_from_slice).collect());
        assert!(rig.stays_silent(send, 20));
        rig.backend.cancel(send);
        let Outcome::Sent { bytes: sent, error: Some(_), .. } = rig.next(send) else { panic!() };
        rig.backend.shutdown(near);
        let recv = rig.recv(far);
        assert!(rig.received(recv, sent) == bytes[..sent]);
        assert!(matches!(rig.next(recv), Outcome::RecvEnded(Ok(()))));
    });
}

#[test]
fn closing_ends_what_is_pending() {
    each(|rig| {
        let (listener, _) = rig.listen();
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        let (near, far) = rig.pair();
        let recv = rig.recv(near);
        let send = rig.send(near, vec![Bytes::from(pattern(32 * 1024 * 1024))]);
        assert!(rig.stays_silent(send, 10));
        rig.backend.close(near);
        rig.backend.close(listener);
        // Dead at once, and closing again does nothing.
        let dead = rig.recv(near);
        rig.backend.close(near);
        rig.expect_cancelled(recv);
        rig.expect_cancelled(send);
        rig.expect_cancelled(accepts);
        match rig.next(dead) {
            Outcome::RecvEnded(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::NotConnected),
            other => panic!("{other:?}"),
        }
        // The peer notices: the descriptor is really closed.
        let recv = rig.recv(far);
        loop {
            match rig.next(recv) {
                Outcome::Received(_) => {}
                Outcome::RecvEnded(_) => break,
                other => panic!("{other:?}"),
            }
        }
        let dead = rig.send(near, vec![Bytes::from_static(b"x")]);
        assert!(matches!(rig.next(dead), Outcome::Sent { error: Some(_), .. }));
    });
}

#[test]
fn dropped_with_everything_pending() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        rig.send_all(near, b"abc");
        let Outcome::Received(lease) = rig.next(recv) else { panic!() };
        let bytes = lease.into_bytes();
        rig.send(near, vec![Bytes::from(pattern(32 * 1024 * 1024))]);
        let token = rig.token();
        rig.backend.recv_into(near, BytesMut::with_capacity(4096), token);
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        let started = Instant::now();
        let replacement = open(&BackendOptions { choice: Choice::Poll, ..BackendOptions::default() }).unwrap();
        drop(std::mem::replace(&mut rig.backend, replacement.backend));
        assert!(started.elapsed() < Duration::from_millis(900));
        assert_eq!(&*bytes, b"abc", "leases outlive the backend");
    });
}
