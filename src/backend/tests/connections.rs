//! Where connections come from and go to: kinds of address, names, connects that fail, moves between drivers.

use super::*;

#[test]
fn connect_errors_are_specific() {
    each(|rig| {
        let (listener, address) = rig.listen();
        rig.backend.close(listener);
        let token = rig.token();
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        rig.backend.connect(&address, &SocketOptions::default(), token);
        match rig.next(token) {
            Outcome::Connected(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
            other => panic!("{other:?}"),
        }
        // A connect that nobody answers can be cancelled (or is refused at once where there is no such route).
        let token = rig.token();
        rig.backend.connect(&ip("192.0.2.1:9"), &SocketOptions::default(), token);
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        rig.backend.cancel(token);
        assert!(matches!(rig.next(token), Outcome::Connected(Err(_))));
    });
}

#[test]
fn connections_move_between_backends() {
    each(|rig| {
        let (near, far) = rig.pair();
        let recv = rig.recv(far);
        assert!(rig.backend.detach(far).is_none(), "not while an operation is pending");
        rig.backend.cancel(recv);
        rig.expect_cancelled(recv);
        rig.send_all(near, b"sent before the move");
        let stream = rig.backend.detach(far).unwrap();
        assert!(rig.backend.detach(far).is_none());
        each(|other| {
            // To every driver in turn, by way of a duplicate.
            let Stream::System { socket, nonblocking } = &stream else { panic!("a real one") };
            let socket = socket.try_clone().unwrap();
            socket.set_nonblocking(*nonblocking).unwrap();
            let stream = Stream::System { socket, nonblocking: *nonblocking };
            let conn = other.backend.attach(stream).unwrap();
            let token = other.token();
            other.backend.read(conn, 4, token);
            assert!(matches!(other.next(token), Outcome::Read(Ok(bytes)) if bytes.len() == 4));
            let send = other.send(conn, vec![Bytes::from_static(b"reply")]);
            other.expect_sent(send, 5);
        });
        let replies = if probe(Choice::Uring).is_ok() { 15 } else { 5 };
        let recv = rig.recv(near);
        assert_eq!(rig.received(recv, replies), b"reply".repeat(replies / 5));
        // Moved back, its handle is a new one and works.
        let far = rig.backend.attach(stream).unwrap();
        rig.send_all(far, b"again");
        assert_eq!(rig.received(recv, 5), b"again");
    });
}

#[cfg(unix)]
#[test]
fn unix_sockets() {
    each(|rig| {
        let path = std::env::temp_dir().join(format!("aiomsg-backend-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let (near, far) = rig.pair_at(&Address::Unix(path.clone()));
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        rig.backend.turn(0, &mut rig.inbox).unwrap();
        assert!(!path.exists(), "the listener is closed");
        let recv = rig.recv(far);
        let bytes = pattern(500_000);
        let send = rig.send(near, vec![Bytes::copy_from_slice(&bytes)]);
        assert!(rig.received(recv, bytes.len()) == bytes);
        rig.expect_sent(send, bytes.len());
        let token = rig.token();
        rig.backend.connect(&Address::Unix(path), &SocketOptions::default(), token);
        assert!(matches!(rig.next(token), Outcome::Connected(Err(_))));
    });
}

#[test]
fn ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    each(|rig| {
        let (near, far) = rig.pair_at(&ip("[::1]:0"));
        let recv = rig.recv(near);
        rig.send_all(far, b"six");
        assert_eq!(rig.received(recv, 3), b"six");
    });
}

#[test]
fn names_resolve() {
    each(|rig| {
        for host in ["127.0.0.1", "localhost", "::1", "[::1]"] {
            let token = rig.token();
            rig.backend.resolve(host, 25000, token);
            match rig.next(token) {
                Outcome::Resolved(Ok(addresses)) => {
                    assert!(addresses.iter().all(|address: &SocketAddr| address.ip().is_loopback()), "{addresses:?}");
                    assert!(!addresses.is_empty() && addresses[0].port() == 25000);
                }
                other => panic!("{other:?}"),
            }
        }
        let token = rig.token();
        rig.backend.resolve("not a host name", 1, token);
        assert!(matches!(rig.next(token), Outcome::Resolved(Err(_))));
        let token = rig.token();
        rig.backend.resolve("localhost", 1, token);
        rig.backend.cancel(token);
        rig.expect_cancelled(token);
        assert!(rig.stays_silent(token, 10));
    });
}
