//! Where sockets listen and what they connect to.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use aiomsg_uring::SendMode::Publish;

use crate::common::{Kind, Sock, free_port, say_loudly, socket_addr};

single_tests!([
    bind_tells_the_address,
    bind_to_a_given_port,
    a_taken_port_is_an_error,
    names_are_resolved,
    schemes,
    ip_v6,
    unix_sockets,
    nonsense_is_refused,
]);

fn bind_tells_the_address(kind: Kind) {
    let socket = kind.socket(Publish);
    let addresses = [socket.bind("127.0.0.1:0"), socket.bind("127.0.0.1:0"), socket.bind("0.0.0.0:0")];
    let ports: Vec<_> = addresses.iter().map(|address| socket_addr(address).port()).collect();
    assert!(ports.iter().all(|&port| port != 0), "{ports:?}");
    assert_eq!(addresses[0].port(), Some(ports[0]));
    assert!(ports[0] != ports[1] && ports[1] != ports[2], "{ports:?}");
    assert_eq!(socket_addr(&addresses[0]).ip(), Ipv4Addr::LOCALHOST);
    assert_eq!(addresses[0].to_string(), format!("127.0.0.1:{}", ports[0]));
    // What is printed can be connected to.
    for address in &addresses[..2] {
        exchange(kind, &socket, &address.to_string());
    }
}

/// A message from a new socket that connects to `endpoint` arrives at `receiver`.
#[track_caller]
fn exchange(kind: Kind, receiver: &Sock, endpoint: &str) {
    let sender = kind.socket(Publish);
    sender.connect(endpoint);
    sender.send(endpoint.as_bytes());
    assert_eq!(receiver.recv(), endpoint);
}

fn bind_to_a_given_port(kind: Kind) {
    let socket = kind.socket(Publish);
    let port = free_port();
    assert_eq!(socket_addr(&socket.bind(&format!("127.0.0.1:{port}"))).port(), port);
    exchange(kind, &socket, &format!("127.0.0.1:{port}"));
}

fn a_taken_port_is_an_error(kind: Kind) {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let endpoint = taken.local_addr().expect("an address");
    let outcome = kind.try_bind(&endpoint.to_string());
    let text = outcome.expect_err("the port is taken");
    assert!(text.contains(&endpoint.port().to_string()), "does not say where: {text}");
}

fn names_are_resolved(kind: Kind) {
    let socket = kind.socket(Publish);
    let port = socket_addr(&socket.bind("127.0.0.1:0")).port();
    exchange(kind, &socket, &format!("localhost:{port}"));
    // A name that does not resolve is tried again and again; nothing else suffers.
    let sender = kind.socket(Publish);
    sender.connect("no-such-host.invalid:25000");
    sender.connect(format!("localhost:{port}"));
    sender.send(b"still served");
    assert_eq!(socket.recv(), "still served");
}

fn schemes(kind: Kind) {
    let socket = kind.socket(Publish);
    let port = socket_addr(&socket.bind("tcp://127.0.0.1:0")).port();
    exchange(kind, &socket, &format!("tcp://127.0.0.1:{port}"));
}

fn ip_v6(kind: Kind) {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return say_loudly("SKIPPED: IPv6, because this machine has no ::1");
    }
    let socket = kind.socket(Publish);
    let address = socket.bind("[::1]:0");
    assert_eq!(socket_addr(&address).ip(), Ipv6Addr::LOCALHOST);
    exchange(kind, &socket, &address.to_string());
}

#[cfg(not(unix))]
fn unix_sockets(_: Kind) {}

#[cfg(unix)]
fn unix_sockets(kind: Kind) {
    let path = std::env::temp_dir().join(format!("aiomsg-{}-{}.sock", std::process::id(), free_port()));
    let socket = kind.socket(Publish);
    let address = socket.bind(&format!("unix:{}", path.display()));
    assert!(matches!(&address, aiomsg_uring::Address::Unix(bound) if *bound == path), "{address}");
    assert_eq!((address.socket_addr(), address.port()), (None, None));
    exchange(kind, &socket, &address.to_string());
    socket.close();
    std::fs::remove_file(&path).ok();
}

fn nonsense_is_refused(kind: Kind) {
    for endpoint in ["", "no port", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "ftp://127.0.0.1:1", "[::1]", "unix:"]
    {
        assert!(kind.try_bind(endpoint).is_err(), "bound to {endpoint:?}");
    }
    // Port 0 is a free port to bind, and nothing to connect to.
    let socket = aiomsg_uring::blocking::Socket::new().expect("a socket");
    assert!(socket.connect("127.0.0.1:0").is_err());
}
