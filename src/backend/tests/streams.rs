//! Bytes over a connection: in order, however cut; exact reads; receives into a buffer; ends and resets.

use super::*;

#[test]
fn both_ways() {
    each(|rig| {
        let (near, far) = rig.pair();
        let (near_recv, far_recv) = (rig.recv(near), rig.recv(far));
        for round in 0..50 {
            let bytes = pattern(1 + round * 97);
            rig.send_all(near, &bytes);
            assert_eq!(rig.received(far_recv, bytes.len()), bytes);
            rig.send_all(far, &bytes);
            assert_eq!(rig.received(near_recv, bytes.len()), bytes);
        }
    });
}

#[test]
fn many_slices_in_order() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        let bytes = pattern(64 * 5000);
        let slices = bytes.chunks(5000).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        assert_eq!(slices.len(), SEND_SLICES_MAX);
        let send = rig.send(near, slices.clone());
        assert_eq!(rig.received(recv, bytes.len()), bytes);
        match rig.next(send) {
            Outcome::Sent { slices: back, bytes: sent, error: None } => assert_eq!((back, sent), (slices, bytes.len())),
            other => panic!("{other:?}"),
        }
        for slices in [vec![], vec![Bytes::new()]] {
            let send = rig.send(near, slices);
            rig.expect_sent(send, 0);
        }
    });
}

#[test]
fn a_large_send_to_a_slow_reader() {
    each(|rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(4 * 1024 * 1024);
        let slices = bytes.chunks(100_000).map(Bytes::copy_from_slice).collect();
        let send = rig.send(near, slices);
        assert!(rig.stays_silent(send, 20), "4 MiB do not fit in the kernel");
        let recv = rig.recv(far);
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            match rig.next(recv) {
                Outcome::Received(lease) => got.extend_from_slice(&lease),
                other => panic!("{other:?}"),
            }
            if got.len() % 7 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(got == bytes);
        rig.expect_sent(send, bytes.len());
    });
}

#[test]
fn reads_are_exact() {
    each(|rig| {
        let (near, far) = rig.pair();
        rig.send_all(near, b"0123456789");
        let mut got = Vec::new();
        for len in [4, 1, 3] {
            let token = rig.token();
            rig.backend.read(far, len, token);
            let Outcome::Read(Ok(bytes)) = rig.next(token) else { panic!() };
            assert!(!bytes.is_empty() && bytes.len() <= len);
            got.extend_from_slice(&bytes);
        }
        // What was not asked for is still there.
        let recv = rig.recv(far);
        got.extend(rig.received(recv, 10 - got.len()));
        assert_eq!(got, b"0123456789");
        rig.backend.cancel(recv);
        rig.expect_cancelled(recv);
        // A read waits for bytes, and sees the end.
        let token = rig.token();
        rig.backend.read(far, READ_MAX, token);
        assert!(rig.stays_silent(token, 5));
        rig.backend.close(near);
        match rig.next(token) {
            Outcome::Read(Ok(bytes)) => assert!(bytes.is_empty()),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn receives_into_a_buffer() {
    each(|rig| {
        let (near, far) = rig.pair();
        let bytes = pattern(300_000);
        let send = rig.send(near, vec![Bytes::copy_from_slice(&bytes)]);
        let mut buffer = BytesMut::with_capacity(bytes.len() + 10);
        buffer.extend_from_slice(b"head");
        while buffer.len() < bytes.len() + 4 {
            let token = rig.token();
            rig.backend.recv_into(far, buffer, token);
            match rig.next(token) {
                Outcome::Filled { buffer: back, result: Ok(len) } => {
                    assert!(len > 0);
                    buffer = back;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(&buffer[..4] == b"head" && buffer[4..] == bytes[..]);
        rig.expect_sent(send, bytes.len());
        // Cancelled, it gives the buffer back as it was.
        let token = rig.token();
        rig.backend.recv_into(far, buffer, token);
        assert!(rig.stays_silent(token, 5));
        rig.backend.cancel(token);
        match rig.next(token) {
            Outcome::Filled { buffer, result: Err(error) } => {
                assert!(is_cancelled(&error) && buffer.len() == bytes.len() + 4);
            }
            other => panic!("{other:?}"),
        }
        rig.backend.close(near);
        let token = rig.token();
        rig.backend.recv_into(far, BytesMut::with_capacity(1), token);
        assert!(matches!(rig.next(token), Outcome::Filled { result: Ok(0), .. }));
    });
}

#[test]
fn ends_of_streams() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        rig.send_all(near, b"last words");
        rig.backend.shutdown(near);
        assert_eq!(rig.received(recv, 10), b"last words");
        assert!(matches!(rig.next(recv), Outcome::RecvEnded(Ok(()))));
        // The other direction goes on.
        let recv = rig.recv(near);
        rig.send_all(far, b"answer");
        assert_eq!(rig.received(recv, 6), b"answer");
        // A reset: unread data makes it one.
        rig.send_all(far, b"unread");
        rig.backend.close(near);
        assert!(matches!(rig.next(recv), Outcome::Received(_) | Outcome::RecvEnded(Err(_))));
    });
}

#[test]
fn a_reset_is_an_error() {
    each(|rig| {
        let (near, far) = rig.pair();
        rig.send_all(far, b"unread");
        let recv = rig.recv(far);
        assert!(rig.stays_silent(recv, 5));
        rig.backend.close(near);
        match rig.next(recv) {
            Outcome::RecvEnded(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            other => panic!("{other:?}"),
        }
        let send = rig.send(far, vec![Bytes::from_static(b"x")]);
        assert!(matches!(rig.next(send), Outcome::Sent { error: Some(_), bytes: 0, .. }));
    });
}

#[test]
fn what_is_received_directly_comes_in_its_place() {
    each(|rig| {
        let (listener, address) = rig.listen();
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        let mut stream = std::net::TcpStream::connect(address.socket_addr().unwrap()).unwrap();
        let Outcome::Accepted { conn, .. } = rig.next(accepts) else { panic!("not accepted") };
        let recv = rig.recv(conn);
        let bytes = pattern(8 << 20);
        let written = bytes.clone();
        let writer = std::thread::spawn(move || {
            let mut rest = &written[..];
            for round in 0_usize.. {
                let (piece, later) = rest.split_at(rest.len().min(1 + round * 997 % 60_000));
                std::io::Write::write_all(&mut stream, piece).unwrap();
                std::thread::yield_now();
                rest = later;
                if rest.is_empty() {
                    return stream;
                }
            }
            stream
        });
        let (mut got, mut direct) = (0, 0);
        while got < bytes.len() {
            if rig.backend.recv_directly(&mut rig.inbox) {
                direct += 1;
                assert!(!rig.backend.recv_directly(&mut rig.inbox), "others have their turn in between");
            }
            rig.backend.turn(0, &mut rig.inbox).unwrap();
            for completion in rig.inbox.drain(..).filter(|completion| completion.token == recv) {
                let Outcome::Received(lease) = completion.outcome else { panic!("the receive ended") };
                assert!(bytes[got..got + lease.len()] == lease[..], "altered, or out of order, after {got} bytes");
                got += lease.len();
            }
        }
        assert_eq!(direct > 0, rig.backend.kind() == Kind::Uring, "{direct} direct receives");
        writer.join().unwrap();
        assert!(matches!(rig.next(recv), Outcome::RecvEnded(Ok(()))));
    });
}

#[test]
fn a_reset_that_is_received_directly_is_an_error() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        rig.send_all(near, b"first");
        assert_eq!(rig.received(recv, 5), b"first");
        rig.send_all(far, b"unread");
        rig.backend.close(near);
        let outcome = loop {
            rig.backend.recv_directly(&mut rig.inbox);
            rig.backend.turn(0, &mut rig.inbox).unwrap();
            if let Some(at) = rig.inbox.iter().position(|completion| completion.token == recv) {
                break rig.inbox.remove(at).outcome;
            }
        };
        match outcome {
            Outcome::RecvEnded(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn more_sends_than_the_ring_holds() {
    for choice in [Choice::Poll, Choice::Uring] {
        let options = BackendOptions { choice, ring_entries: 4, ..BackendOptions::default() };
        let Ok(selected) = open(&options) else { continue };
        let mut rig = Rig { backend: selected.backend, last_token: 0, inbox: Vec::new() };
        let (listener, address) = rig.listen();
        let accepts = rig.token();
        rig.backend.accept(listener, accepts);
        let pairs: Vec<_> = (0..200).map(|_| rig.connect(&address, accepts)).collect();
        let recvs: Vec<_> = pairs.iter().map(|&(_, far)| rig.recv(far)).collect();
        let sends: Vec<_> = pairs.iter().map(|&(near, _)| rig.send(near, vec![Bytes::from(pattern(5000))])).collect();
        for (recv, send) in recvs.into_iter().zip(sends) {
            assert!(rig.received(recv, 5000) == pattern(5000));
            rig.expect_sent(send, 5000);
        }
    }
}
