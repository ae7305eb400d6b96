//! A relay: what clients ask goes on to servers that the clients do not know, and each reply goes
//! back to the client that asked, by identity. The relay puts the client's identity before the
//! request, and the server leaves it there.

use std::error::Error;
use std::thread;
use std::time::Duration;

use aiomsg_uring::{Identity, SendError, SendMode, blocking::Socket};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const CLIENTS: u64 = 5;
const REQUESTS: u64 = 200;
const SERVERS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(20);
const IDENTITY_BYTES: usize = 16;

fn main() -> Outcome {
    let front = Socket::new()?;
    let back = Socket::builder().send_mode(SendMode::RoundRobin).build_blocking()?;
    let front_endpoint = front.bind("127.0.0.1:0")?.to_string();
    let back_endpoint = back.bind("127.0.0.1:0")?.to_string();
    for _ in 0..SERVERS {
        let endpoint = back_endpoint.clone();
        thread::spawn(move || server(&endpoint));
    }
    back.wait_for_peers(SERVERS, PATIENCE)?;

    let (to_back, from_back) = (back.clone(), back);
    let (from_front, to_front) = (front.clone(), front);
    thread::spawn(move || -> Outcome {
        loop {
            let (client, request) = from_front.recv_identity()?;
            to_back.send([client.as_bytes(), &request[..]].concat())?;
        }
    });
    thread::spawn(move || -> Outcome {
        loop {
            let reply = from_back.recv()?;
            let (client, reply) = reply.split_first_chunk::<IDENTITY_BYTES>().ok_or("a reply to nobody")?;
            match to_front.send_to(Identity::from(*client), reply) {
                // A client that did not wait.
                Ok(()) | Err(SendError::PeerGone(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    });

    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let endpoint = front_endpoint.clone();
            thread::spawn(move || client(&endpoint, number))
        })
        .collect();
    for client in clients {
        client.join().map_err(|_| "a client panicked")??;
    }
    println!("{CLIENTS} clients had their own {REQUESTS} replies each, from {SERVERS} servers");
    Ok(())
}

/// Knows of no client: it answers with what it was given before the request.
fn server(endpoint: &str) -> Outcome {
    let socket = Socket::new()?;
    socket.connect(endpoint)?;
    loop {
        let mut message = socket.recv()?.to_vec();
        message[IDENTITY_BYTES..].make_ascii_uppercase();
        socket.send(message)?;
    }
}

fn client(endpoint: &str, number: u64) -> Outcome {
    let socket = Socket::new()?;
    socket.connect(endpoint)?;
    for request in 0..REQUESTS {
        let text = format!("client {number} asks {request}");
        socket.send(&text)?;
        let reply = socket.recv_timeout(PATIENCE)?;
        if reply != text.to_uppercase() {
            return Err(format!("{text:?} was answered with {reply:?}").into());
        }
    }
    Ok(())
}
