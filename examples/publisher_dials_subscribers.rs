//! Who binds and who connects is independent of who sends: here ten subscribers bind, and one
//! publisher connects to all of them. The subscribers are tasks of a smol executor.

use std::error::Error;
use std::time::Duration;

use aiomsg_uring::Socket;
use futures_lite::StreamExt;

const SUBSCRIBERS: usize = 10;
const MESSAGES: usize = 1_000;

fn main() -> Result<(), Box<dyn Error>> {
    smol::block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let publisher = Socket::new()?;
    let mut subscribers = Vec::new();
    for index in 0..SUBSCRIBERS {
        let subscriber = Socket::new()?;
        let address = subscriber.bind("127.0.0.1:0").await?;
        println!("subscriber {index} listens at {address}");
        publisher.connect(address).await?;
        subscribers.push(smol::spawn(collect(subscriber)));
    }
    publisher.wait_for_peers(SUBSCRIBERS, Duration::from_secs(10)).await?;
    for number in 0..MESSAGES {
        publisher.send(&number.to_be_bytes()).await?;
    }
    for (index, subscriber) in subscribers.into_iter().enumerate() {
        let numbers = subscriber.await;
        if !numbers.iter().copied().eq(0..MESSAGES) {
            return Err(format!("subscriber {index} got {} messages, or not in order", numbers.len()).into());
        }
        println!("subscriber {index}: all {MESSAGES} in order");
    }
    publisher.close().await;
    Ok(())
}

/// The numbers that arrive, as many as there should be.
async fn collect(subscriber: Socket) -> Vec<usize> {
    let numbers = subscriber.messages().map(|message| {
        let mut number = [0; size_of::<usize>()];
        let length = message.len().min(number.len());
        number[..length].copy_from_slice(&message[..length]);
        usize::from_be_bytes(number)
    });
    numbers.take(MESSAGES).collect().await
}
