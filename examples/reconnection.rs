//! Peers come and go, and nobody has to do anything about it. A client connects before its server exists, keeps what
//! it sends while there is none, and finds each new server by itself. What happens is told by events.

use std::error::Error;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use aiomsg_uring::Event;
use aiomsg_uring::blocking::Socket;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const LIVES: u32 = 3;
const ORDERS: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome {
    // A place where nobody listens yet.
    let endpoint = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    // The pause doubles from the first value to the second, with jitter: a thousand clients do not come back as one.
    let (shortest, longest) = (Duration::from_millis(20), Duration::from_millis(500));
    let client = Socket::builder().reconnect_delay(shortest, longest).build_blocking()?;
    client.connect(&endpoint)?;
    until(&client, |event| matches!(event, Event::Reconnecting { attempt: 2.., .. }))?;

    for life in 1..=LIVES {
        // Nobody is connected: these wait in the client's log, in order.
        for order in 0..ORDERS {
            client.send(format!("order {order} of life {life}"))?;
        }
        let server = Socket::new()?;
        server.bind(&endpoint)?;
        for order in 0..ORDERS {
            assert_eq!(server.recv_timeout(PATIENCE)?, format!("order {order} of life {life}"));
        }
        println!("server {life} has all orders that were kept for it");
        // An answer is a sign of life. A server that took a connection and closed it without a word, again and again, would
        // be tried less and less often.
        server.send("thanks")?;
        assert_eq!(client.recv_timeout(PATIENCE)?, "thanks");
        server.close();
        // What is sent to a peer that is about to go may be lost with it: AT_LEAST_ONCE is for that.
        until(&client, |event| matches!(event, Event::Disconnected { .. }))?;
    }
    let stats = client.stats();
    println!("{} connections, {} messages, {} dropped", stats.connects, stats.messages_sent, stats.messages_dropped);
    Ok(())
}

/// Shows events until one is what is waited for.
fn until(socket: &Socket, is_it: impl Fn(&Event) -> bool) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while let Some(event) = socket.event_timeout(deadline.saturating_duration_since(Instant::now())) {
        println!("  {event}");
        if is_it(&event) {
            return Ok(());
        }
    }
    Err("the event did not come".into())
}
