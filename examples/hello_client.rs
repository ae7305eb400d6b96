//! The connecting half of the hello pair: greets, prints the answer, and ends. See `hello_server`.
//!
//! It may be started first: a message that finds no peer is kept until there is one.

use std::error::Error;

use aiomsg_uring::{SendMode, Socket};

fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:25000".into());
    pollster::block_on(greet(endpoint))
}

async fn greet(endpoint: String) -> Result<(), Box<dyn Error>> {
    let socket = Socket::builder().send_mode(SendMode::RoundRobin).build()?;
    socket.connect(endpoint).await?;
    socket.send("hello").await?;
    let answer = socket.recv().await?;
    println!("the answer: {}", String::from_utf8_lossy(&answer));
    socket.close().await;
    if answer == "hello to you too" { Ok(()) } else { Err("that is not how one answers a greeting".into()) }
}
