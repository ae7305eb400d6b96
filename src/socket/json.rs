//! Messages as JSON, behind the feature `json`: thin helpers over [`Socket::send`] and [`Socket::recv`].

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{RecvError, SendError, Socket};
use crate::protocol::Identity;

/// Why a value was not sent or received as JSON.
#[derive(Debug)]
#[non_exhaustive]
pub enum JsonError {
    /// The value cannot be written as JSON, or the message is not JSON of that shape. A message that was not understood has been
    /// taken.
    Json(serde_json::Error),
    /// The message was not accepted.
    Send(SendError),
    /// No message will come any more.
    Recv(RecvError),
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(error) => write!(f, "not the JSON that was expected: {error}"),
            Self::Send(error) => error.fmt(f),
            Self::Recv(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for JsonError {}

impl Socket {
    /// Sends a value as JSON, see [`send`](Self::send).
    ///
    /// # Errors
    /// When the value cannot be written as JSON, or as `send`.
    pub async fn send_json<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), JsonError> {
        let text = serde_json::to_vec(value).map_err(JsonError::Json)?;
        self.send(text).await.map_err(JsonError::Send)
    }

    /// Sends a value as JSON to one peer, see [`send_to`](Self::send_to).
    ///
    /// # Errors
    /// When the value cannot be written as JSON, or as `send_to`.
    pub async fn send_json_to<T: Serialize + ?Sized>(&self, identity: Identity, value: &T) -> Result<(), JsonError> {
        let text = serde_json::to_vec(value).map_err(JsonError::Json)?;
        self.send_to(identity, text).await.map_err(JsonError::Send)
    }

    /// The next message, read as JSON.
    ///
    /// # Errors
    /// When it is not JSON of that shape, or as [`recv`](Self::recv).
    pub async fn recv_json<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        let message = self.recv().await.map_err(JsonError::Recv)?;
        serde_json::from_slice(&message).map_err(JsonError::Json)
    }

    /// The next message, read as JSON, and who sent it.
    ///
    /// # Errors
    /// As [`recv_json`](Self::recv_json).
    pub async fn recv_json_identity<T: DeserializeOwned>(&self) -> Result<(Identity, T), JsonError> {
        let (identity, message) = self.recv_identity().await.map_err(JsonError::Recv)?;
        serde_json::from_slice(&message).map(|value| (identity, value)).map_err(JsonError::Json)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::Socket;

    #[test]
    fn values_go_and_come_back() {
        pollster::block_on(async {
            let server = Socket::new().unwrap();
            let address = server.bind("127.0.0.1:0").await.unwrap();
            let client = Socket::new().unwrap();
            client.connect(&address).await.unwrap();
            client.wait_for_peers(1, Duration::from_secs(10)).await.unwrap();
            client.send_json(&("add", [1, 2])).await.unwrap();
            let (identity, (verb, numbers)) = server.recv_json_identity::<(String, Vec<i32>)>().await.unwrap();
            assert_eq!((verb.as_str(), numbers.iter().sum::<i32>()), ("add", 3));
            server.send_json_to(identity, &3).await.unwrap();
            assert_eq!(client.recv_json::<i32>().await.unwrap(), 3);
            server.send_to(identity, "{").await.unwrap();
            assert!(client.recv_json::<i32>().await.is_err());
        });
    }
}
