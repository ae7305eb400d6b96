//! The binding half of the hello pair: answers one greeting, then ends.
//!
//! ```text
//! cargo run --example hello_server                 # then, in another terminal:
//! cargo run --example hello_client
//! ```
//!
//! An argument changes the endpoint, 127.0.0.1:25000 by default.

use std::error::Error;
use std::time::Duration;

use aiomsg_uring::{SendMode, Socket};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:25000".into());
    let socket = Socket::builder().send_mode(SendMode::RoundRobin).build()?;
    println!("waiting for a greeting at {}", socket.bind(endpoint).await?);

    let patience = Duration::from_secs(60);
    let (identity, greeting) = tokio::time::timeout(patience, socket.recv_identity()).await??;
    println!("{identity} says: {}", String::from_utf8_lossy(&greeting));
    socket.send(format!("{} to you too", String::from_utf8_lossy(&greeting))).await?;

    // Closing lets the answer out first.
    match socket.close().await.undelivered {
        0 => Ok(()),
        messages => Err(format!("{messages} messages were not delivered").into()),
    }
}
