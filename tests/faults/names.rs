//! A name with several addresses, of which only one is served: it is reached whichever is tried first, and when the listener
//! moves to another address of the same name and port, its peers follow.
//!
//! The addresses are those of a hosts file of the test's own where a process may have one (Linux, with user namespaces), else
//! those of `localhost`.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use aiomsg_uring::{Backend, Engine, Event};

use crate::child::{Child, tell};
use crate::common::{PATIENCE, eventually, free_port, number, say_loudly};
use crate::{hasty, value_of};

on_both!([a_name_with_several_addresses]);

/// Said instead of an address where there is only one.
const ALONE: &str = "alone";

fn a_name_with_several_addresses(backend: Backend) {
    let hosts = "127.0.0.1 several.test\n127.0.0.2 several.test\n::1 several.test\n";
    let mut child = match Child::with_hosts(backend, hosts, "names several.test") {
        Some(child) => child,
        None => Child::start(backend, "names localhost"),
    };
    match child.line() {
        addresses if addresses == ALONE => say_loudly("SKIPPED: names with several addresses: localhost has one here"),
        addresses => {
            assert_eq!(child.line(), "done");
            say_loudly(&format!("a name with the addresses {addresses} on {backend:?}: all reached"));
        }
    }
}

/// The child, which sees its own hosts file.
pub(crate) fn child(name: &str) {
    let port = free_port();
    let mut addresses: Vec<SocketAddr> = (name, port).to_socket_addrs().expect("a name that resolves").collect();
    addresses.dedup();
    addresses.retain(|address| TcpListener::bind(address).is_ok());
    if addresses.len() < 2 {
        return tell(ALONE);
    }
    tell(addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" "));
    let engine = Engine::new().expect("an engine");
    // In no haste to find a link dead: the number of connections is asserted.
    let socket = || hasty(&engine, |builder| builder.handshake_timeout(PATIENCE).receive_timeout(PATIENCE));
    let listening = |address: SocketAddr| {
        let socket = socket();
        socket.bind(address).expect("bound");
        socket
    };
    // Whichever is served first, and from there on to each of the others, and back.
    for first in 0..addresses.len() {
        let mut listener = listening(addresses[first]);
        let dialler = socket();
        dialler.connect(format!("tcp://{name}:{port}")).expect("connecting");
        for round in 0..=addresses.len() {
            if round > 0 {
                listener.close();
                listener = listening(addresses[(first + round) % addresses.len()]);
            }
            let value = round as u64;
            for (sender, receiver) in [(&dialler, &listener), (&listener, &dialler)] {
                sender.send(&number(value)).expect("sent");
                assert_eq!(value_of(&receiver.recv_timeout(PATIENCE).expect("a message in time")), value);
                // Which acknowledges it.
                assert!(receiver.try_recv().is_err());
                let acknowledged = || sender.stats().messages_acknowledged == sender.stats().messages_sent;
                eventually("it is acknowledged", acknowledged);
            }
            if round == 0 {
                // An address that nobody serves costs no delay: the next one is tried in the same round.
                let waited = |event: &Event| matches!(event, Event::Reconnecting { .. });
                assert_eq!(std::iter::from_fn(|| dialler.try_event()).find(waited), None);
            }
        }
        assert_eq!(dialler.stats().connects, addresses.len() as u64 + 1);
        listener.close();
    }
    // At the address that is tried first somebody else answers, and hangs up.
    let somebody = TcpListener::bind(addresses[0]).expect("bound");
    std::thread::spawn(move || somebody.incoming().for_each(drop));
    let listener = listening(addresses[1]);
    let dialler = socket();
    dialler.connect(format!("tcp://{name}:{port}")).expect("connecting");
    listener.wait_for_peers(1, PATIENCE).expect("found behind the one that hangs up");
    tell("done");
}
