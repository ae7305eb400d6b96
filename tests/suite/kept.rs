//! Messages that find no peer are kept, at both ends and across restarts.

use aiomsg_uring::SendMode::{self, Publish, RoundRobin};

use crate::common::{Kind, Sock, eventually, expect_numbers, free_port, number, send_numbers};

pair_tests!([
    kept_until_a_peer_connects,
    kept_until_a_peer_binds,
    backlog_goes_to_the_first_peer,
    binding_end_restarts,
    connecting_end_restarts,
]);

const MODES: [SendMode; 2] = [Publish, RoundRobin];

fn kept_until_a_peer_connects(one: Kind, other: Kind) {
    for mode in MODES {
        let sender = one.socket(mode);
        let address = sender.bind_loopback();
        sender.run(|socket| send_numbers(socket, 0..1_000));
        let receiver = other.socket(mode);
        receiver.connect(address);
        receiver.run(|socket| expect_numbers(socket, 0..1_000));
    }
}

fn kept_until_a_peer_binds(one: Kind, other: Kind) {
    for mode in MODES {
        let endpoint = format!("127.0.0.1:{}", free_port());
        let sender = one.socket(mode);
        sender.connect(&endpoint);
        sender.run(|socket| send_numbers(socket, 0..1_000));
        let receiver = other.socket(mode);
        receiver.bind(&endpoint);
        receiver.run(|socket| expect_numbers(socket, 0..1_000));
    }
}

fn backlog_goes_to_the_first_peer(one: Kind, other: Kind) {
    let publisher = one.socket(Publish);
    let address = publisher.bind_loopback();
    publisher.run(|socket| send_numbers(socket, 0..100));
    let first = other.socket(Publish);
    first.connect(&address);
    first.run(|socket| expect_numbers(socket, 0..100));
    let second = other.socket(Publish);
    second.connect(&address);
    publisher.wait_for_peers(2);
    publisher.send(&number(100));
    first.run(|socket| expect_numbers(socket, 100..101));
    second.run(|socket| expect_numbers(socket, 100..101));
}

fn binding_end_restarts(one: Kind, other: Kind) {
    for mode in MODES {
        let endpoint = format!("127.0.0.1:{}", free_port());
        let sender = other.socket(mode);
        sender.connect(&endpoint);
        for round in 0..3 {
            let receiver = talkative(one, mode, &endpoint);
            sender.run(move |socket| send_numbers(socket, round * 100..round * 100 + 50));
            receiver.run(move |socket| expect_numbers(socket, round * 100..round * 100 + 50));
            receiver.close();
            eventually("the sender sees that its peer is gone", || sender.peers().is_empty());
            // Nobody is there: these wait for the next round.
            sender.run(move |socket| send_numbers(socket, round * 100 + 50..round * 100 + 100));
            let receiver = talkative(one, mode, &endpoint);
            receiver.run(move |socket| expect_numbers(socket, round * 100 + 50..round * 100 + 100));
            receiver.close();
            eventually("the sender sees that its peer is gone", || sender.peers().is_empty());
        }
    }
}

/// A bound socket that says something to its peer. A link that ends soon after its HELLO and brought nothing else looks
/// like a refusal, after which a connecting end waits for seconds.
fn talkative(kind: Kind, mode: SendMode, endpoint: &str) -> Sock {
    let socket = kind.socket(mode);
    socket.bind(endpoint);
    socket.send(b"here I am");
    socket
}

fn connecting_end_restarts(one: Kind, other: Kind) {
    for mode in MODES {
        let sender = one.socket(mode);
        let address = sender.bind_loopback();
        for round in 0..5 {
            let receiver = other.socket(mode);
            receiver.connect(&address);
            sender.run(move |socket| send_numbers(socket, round * 100..round * 100 + 100));
            receiver.run(move |socket| expect_numbers(socket, round * 100..round * 100 + 100));
            if round % 2 == 0 {
                receiver.close();
            } else {
                drop(receiver);
            }
            eventually("the sender sees that its peer is gone", || sender.peers().is_empty());
        }
    }
}
