//! A proxy: publishers connect to one side, subscribers to the other, and neither has to know where
//! the others are. It is two sockets and a loop.

use std::error::Error;
use std::thread;
use std::time::Duration;

use aiomsg_uring::blocking::Socket;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const PUBLISHERS: usize = 2;
const SUBSCRIBERS: usize = 3;
const MESSAGES: usize = 500;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Outcome {
    let (inside, outside) = (Socket::new()?, Socket::new()?);
    let near = inside.bind("127.0.0.1:0")?.to_string();
    let far = outside.bind("127.0.0.1:0")?.to_string();

    let subscribers: Vec<_> = (0..SUBSCRIBERS)
        .map(|_| {
            let far = far.clone();
            thread::spawn(move || subscriber(&far))
        })
        .collect();
    // What is published before somebody is connected is not for him.
    outside.wait_for_peers(SUBSCRIBERS, PATIENCE)?;
    thread::spawn(move || -> Outcome {
        loop {
            outside.send(inside.recv()?)?;
        }
    });

    for name in 0..PUBLISHERS {
        let publisher = Socket::new()?;
        publisher.connect(&*near)?;
        for number in 0..MESSAGES {
            publisher.send(format!("{name} {number}"))?;
        }
        // Sends what is left before it ends.
        publisher.close();
    }
    for subscriber in subscribers {
        subscriber.join().map_err(|_| "a subscriber panicked")??;
    }
    println!("{SUBSCRIBERS} subscribers had all {MESSAGES} messages of {PUBLISHERS} publishers, in order");
    Ok(())
}

/// Takes all messages; those of one publisher come in order.
fn subscriber(endpoint: &str) -> Outcome {
    let socket = Socket::new()?;
    socket.connect(endpoint)?;
    let mut next = [0; PUBLISHERS];
    for _ in 0..PUBLISHERS * MESSAGES {
        let message = socket.recv_timeout(PATIENCE)?;
        let (name, number) = std::str::from_utf8(&message)?.split_once(' ').ok_or("two numbers were expected")?;
        let next = next.get_mut(name.parse::<usize>()?).ok_or("nobody of that name publishes")?;
        if number.parse::<usize>()? != *next {
            return Err(format!("{next} was expected, not {number}").into());
        }
        *next += 1;
    }
    Ok(())
}
