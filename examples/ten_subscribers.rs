//! One publisher that binds, ten subscribers that connect; each gets every message, in order.
//! Every subscriber is a task of a tokio runtime; all sockets share the process's engine.

use std::error::Error;
use std::time::Duration;

use aiomsg_uring::{Address, Socket};

const SUBSCRIBERS: usize = 10;
const MESSAGES: u64 = 1_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // PUBLISH is what a socket does unless told otherwise.
    let publisher = Socket::new()?;
    let address = publisher.bind("127.0.0.1:0").await?;
    println!("publishing at {address}");

    let subscribers: Vec<_> = (0..SUBSCRIBERS).map(|_| tokio::spawn(subscribe(address.clone()))).collect();
    // A peer gets what is sent from the moment it is connected.
    publisher.wait_for_peers(SUBSCRIBERS, Duration::from_secs(10)).await?;
    for number in 0..MESSAGES {
        publisher.send(format!("tick {number}")).await?;
    }
    for (index, subscriber) in subscribers.into_iter().enumerate() {
        let ticks = tokio::time::timeout(Duration::from_secs(10), subscriber).await???;
        println!("subscriber {index}: {ticks} ticks");
    }
    publisher.close().await;
    Ok(())
}

/// Receives all ticks; their number, or what was wrong with them.
async fn subscribe(address: Address) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let socket = Socket::new()?;
    socket.connect(address).await?;
    for number in 0..MESSAGES {
        let tick = socket.recv().await?;
        if tick != format!("tick {number}") {
            return Err(format!("tick {number} expected, got {}", String::from_utf8_lossy(&tick)).into());
        }
    }
    Ok(MESSAGES)
}
