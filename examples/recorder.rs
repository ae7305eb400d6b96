//! A market-data recorder that lives inside another io_uring runtime: the socket's futures are
//! awaited in `tokio_uring::start`, whose file operations journal every tick to disk. The two know
//! nothing of each other. (Linux only, as tokio-uring is.)

#[cfg(target_os = "linux")]
mod linux {
    use std::error::Error;
    use std::path::Path;
    use std::thread;
    use std::time::Duration;

    use aiomsg_uring::{Address, Socket};
    use tokio_uring::fs::File;

    const TICKS: u64 = 20_000;
    /// A tick as it is sent and as it stands in the journal: number and price, big-endian.
    const TICK_BYTES: usize = 16;

    pub(crate) fn main() -> Result<(), Box<dyn Error>> {
        let publisher = Socket::builder().build_blocking()?;
        let address = publisher.bind("127.0.0.1:0")?;
        let feed = thread::spawn(move || {
            publisher.wait_for_peers(1, Duration::from_secs(10)).map_err(|error| error.to_string())?;
            for number in 0..TICKS {
                publisher.send(&tick(number)).map_err(|error| error.to_string())?;
            }
            publisher.close();
            Ok::<(), String>(())
        });

        let path = std::env::temp_dir().join(format!("aiomsg-recorder-{}.journal", std::process::id()));
        let recorded = tokio_uring::start(record(address, &path));
        let journal = std::fs::read(&path);
        std::fs::remove_file(&path)?;
        let writes = recorded?;
        feed.join().map_err(|_| "the feed panicked")??;

        let journal = journal?;
        println!("{TICKS} ticks, {} bytes, written by {writes} writes", journal.len());
        let (ticks, rest) = journal.as_chunks::<TICK_BYTES>();
        let complete = rest.is_empty() && ticks.iter().copied().eq((0..TICKS).map(tick));
        if complete { Ok(()) } else { Err("the journal is not what was published".into()) }
    }

    fn tick(number: u64) -> [u8; TICK_BYTES] {
        let price = 480_000 + number % 97;
        let mut tick = [0; TICK_BYTES];
        tick[..8].copy_from_slice(&number.to_be_bytes());
        tick[8..].copy_from_slice(&price.to_be_bytes());
        tick
    }

    /// Writes all ticks to `path`, one write for all that arrived together; how many writes.
    async fn record(address: Address, path: &Path) -> Result<u64, Box<dyn Error>> {
        let socket = Socket::new()?;
        socket.connect(address).await?;
        let journal = File::create(path).await?;
        let (mut position, mut writes) = (0, 0);
        let mut buffer = Vec::new();
        while position < TICKS * TICK_BYTES as u64 {
            buffer.clear();
            for tick in &socket.recv_batch().await? {
                buffer.extend_from_slice(tick);
            }
            let length = buffer.len() as u64;
            // The buffer is the kernel's while it writes, and comes back afterwards.
            let (outcome, returned) = journal.write_all_at(buffer, position).await;
            outcome?;
            buffer = returned;
            position += length;
            writes += 1;
        }
        journal.sync_data().await?;
        journal.close().await?;
        Ok(writes)
    }
}

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("tokio-uring is Linux only: nothing to show here");
}
