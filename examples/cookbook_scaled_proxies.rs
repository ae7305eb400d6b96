//! Proxies by the dozen: publishers connect to one side, subscribers to the other, and all of them
//! use every proxy of `PROXIES`, a list in the environment. Each message goes through one of them, in
//! turn, so that proxies share the load, and when one ends the others go on.
//!
//! Without `PROXIES` the program starts three of its own. An entry is `IN|OUT`: where publishers
//! connect to, and where subscribers do.

use std::error::Error;
use std::thread;
use std::time::Duration;

use aiomsg_uring::{SendMode, TryRecvError, blocking::Socket};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const MESSAGES: u64 = 1_500;
const SUBSCRIBERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome {
    let list = match std::env::var("PROXIES") {
        Ok(list) => list,
        Err(_) => (0..3).map(|_| proxy()).collect::<Outcome<Vec<_>>>()?.join(","),
    };
    println!("PROXIES={list}");
    let proxies: Vec<(String, String)> = list
        .split(',')
        .map(|entry| entry.split_once('|').map(|(inside, outside)| (inside.trim().into(), outside.trim().into())))
        .collect::<Option<_>>()
        .ok_or("PROXIES: entries are IN|OUT, separated by commas")?;

    let subscribers: Vec<_> = (0..SUBSCRIBERS)
        .map(|_| {
            let proxies = proxies.clone();
            let socket = Socket::new()?;
            for (_, outside) in &proxies {
                socket.connect(&**outside)?;
            }
            // What is published before they are connected is not for them.
            socket.wait_for_peers(proxies.len(), PATIENCE)?;
            Ok(thread::spawn(move || subscriber(&socket)))
        })
        .collect::<Outcome<_>>()?;

    let publisher = Socket::builder().send_mode(SendMode::RoundRobin).build_blocking()?;
    for (inside, _) in &proxies {
        publisher.connect(&**inside)?;
    }
    publisher.wait_for_peers(proxies.len(), PATIENCE)?;
    // The proxies have their subscribers' handshakes behind them as soon as these have; theirs with them may last
    // a moment longer.
    thread::sleep(Duration::from_millis(200));
    for message in 0..MESSAGES {
        publisher.send(&message.to_be_bytes())?;
    }
    for subscriber in subscribers {
        subscriber.join().map_err(|_| "a subscriber panicked")??;
    }
    println!("{SUBSCRIBERS} subscribers had each of {MESSAGES} messages once, through {} proxies", proxies.len());
    Ok(())
}

/// Starts a proxy; its entry in the list. It needs no more than two sockets and a loop.
fn proxy() -> Outcome<String> {
    let (inside, outside) = (Socket::new()?, Socket::new()?);
    let entry = format!("{}|{}", inside.bind("127.0.0.1:0")?, outside.bind("127.0.0.1:0")?);
    thread::spawn(move || -> Outcome {
        loop {
            outside.send(inside.recv()?)?;
        }
    });
    Ok(entry)
}

/// Takes all messages, which come over several ways and so in any order.
fn subscriber(socket: &Socket) -> Outcome {
    let mut messages = Vec::new();
    while messages.len() < MESSAGES as usize {
        messages.push(u64::from_be_bytes(socket.recv_timeout(PATIENCE)?[..].try_into()?));
    }
    messages.sort_unstable();
    match socket.try_recv() {
        Err(TryRecvError::Empty) if messages.into_iter().eq(0..MESSAGES) => Ok(()),
        _ => Err("a message was lost or came twice".into()),
    }
}
