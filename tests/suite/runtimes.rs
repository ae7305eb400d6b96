//! The same exchange inside every kind of async runtime: a socket needs none in particular.

use std::time::Duration;

use aiomsg_uring::{Backend, Engine, SendMode, Socket};
use futures_lite::StreamExt;

use crate::common::{PATIENCE, number};

backend_tests!([tokio_current_thread, tokio_multi_thread, smol_executor, pollster_alone, tokio_uring_runtime]);

/// Two sockets, one of which echoes; streams, waits and closing.
async fn exchange(backend: Backend) {
    let engine = Engine::builder().backend(backend).shards(1).build().expect("an engine");
    let new_socket = || Socket::builder().engine(&engine).send_mode(SendMode::RoundRobin).build().expect("a socket");
    let (server, client) = (new_socket(), new_socket());
    client.connect(server.bind("127.0.0.1:0").await.expect("bound")).await.expect("connecting");
    client.wait_for_peers(1, PATIENCE).await.expect("a peer");
    assert!(client.wait_for_peers(2, Duration::from_millis(10)).await.is_err());

    for value in 0..1_000 {
        match value % 2 {
            0 => client.send(&number(value)).await,
            _ => client.send_with(8, |message| message.copy_from_slice(&number(value))).await,
        }
        .expect("sent");
    }
    let mut requests = Box::pin(server.messages().take(1_000));
    while let Some(request) = requests.next().await {
        server.send(request).await.expect("sent");
    }
    for value in 0..1_000 {
        assert_eq!(client.recv().await.expect("received"), &number(value)[..]);
    }
    assert_eq!(server.close().await.undelivered, 0);
    assert_eq!(client.close().await.undelivered, 0);
}

fn tokio_current_thread(backend: Backend) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(exchange(backend));
}

fn tokio_multi_thread(backend: Backend) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    runtime.block_on(async {
        // Spawned, so the futures can move between threads.
        let exchanges = [tokio::spawn(exchange(backend)), tokio::spawn(exchange(backend))];
        for exchange in exchanges {
            exchange.await.expect("no panic");
        }
    });
}

fn smol_executor(backend: Backend) {
    smol::block_on(async {
        let exchanges = [smol::spawn(exchange(backend)), smol::spawn(exchange(backend))];
        for exchange in exchanges {
            exchange.await;
        }
    });
}

fn pollster_alone(backend: Backend) {
    pollster::block_on(exchange(backend));
}

#[cfg(target_os = "linux")]
fn tokio_uring_runtime(backend: Backend) {
    // That runtime needs a ring itself, whatever the sockets run on.
    if crate::common::is_available(Backend::Uring) {
        tokio_uring::start(exchange(backend));
    }
}

#[cfg(not(target_os = "linux"))]
fn tokio_uring_runtime(_: Backend) {}
