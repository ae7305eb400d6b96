//! The 16 bytes that name a socket (protocol, "Handshake"): public type [`Identity`].
//!
//! An identity names the socket, not a connection: it stays the same for the socket's life and across reconnects. What
//! a peer claims in its HELLO is a claim, not a proof. Used by every layer above and by applications.

use std::fmt;
use std::str::FromStr;

use super::rng::{Rng, fill_from_system};

/// The name of a socket, as its peers know it: 16 bytes, written as 32 hexadecimal digits.
///
/// A socket has one for its whole life, random unless it was set. A peer that comes back under the same identity is the
/// same peer: messages that wait for it go to it. Two sockets that are connected to a third one at the same time must
/// not share an identity; the later one is turned away.
///
/// An identity received from a peer is a claim and not a proof; authentication is the business of TLS and of the
/// application.
///
/// # Examples
///
/// ```
/// use aiomsg_uring::Identity;
///
/// let recorder: Identity = "6ba7b810-9dad-41d1-80b4-00c04fd430c8".parse()?;
/// assert_eq!(recorder.to_string(), "6ba7b8109dad41d180b400c04fd430c8");
/// assert_eq!(Identity::from_bytes(*recorder.as_bytes()), recorder);
/// assert_ne!(Identity::random(), Identity::random());
/// # Ok::<(), aiomsg_uring::IdentityError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity([u8; 16]);

impl Identity {
    /// The identity with these bytes; any bytes will do.
    ///
    /// ```
    /// # use aiomsg_uring::Identity;
    /// assert_eq!(Identity::from_bytes([0x2a; 16]).to_string(), "2a".repeat(16));
    /// ```
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, as they go over the wire.
    ///
    /// ```
    /// # use aiomsg_uring::Identity;
    /// assert_eq!(Identity::from_bytes([7; 16]).as_bytes(), &[7; 16]);
    /// ```
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A fresh identity from the operating system's source of randomness: a UUID of version 4, so 122 random bits.
    ///
    /// ```
    /// # use aiomsg_uring::Identity;
    /// assert_eq!(Identity::random().as_bytes()[6] >> 4, 4);
    /// ```
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        fill_from_system(&mut bytes);
        Self::version_4(bytes)
    }

    /// The identity that `seed` determines, for tests and simulations that must replay. Different seeds give different
    /// identities for all practical purposes.
    ///
    /// ```
    /// # use aiomsg_uring::Identity;
    /// assert_eq!(Identity::from_seed(1), Identity::from_seed(1));
    /// assert_ne!(Identity::from_seed(1), Identity::from_seed(2));
    /// ```
    pub fn from_seed(seed: u64) -> Self {
        let mut bytes = [0; 16];
        Rng::new(seed).fill(&mut bytes);
        Self::version_4(bytes)
    }

    /// Sets the version and variant bits of RFC 9562, section 5.4.
    const fn version_4(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<[u8; 16]> for Identity {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    /// Reads 32 hexadecimal digits of either case; dashes are skipped wherever they stand.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let mut value: u128 = 0;
        let mut digits = 0usize;
        for (at, found) in text.char_indices().filter(|&(_, found)| found != '-') {
            let digit = found.to_digit(16).ok_or(IdentityError::NotHex { at, found })?;
            value = value << 4 | u128::from(digit);
            digits += 1;
        }
        if digits != 32 {
            return Err(IdentityError::WrongLength { digits });
        }
        Ok(Self(value.to_be_bytes()))
    }
}

/// Why a text is not an [`Identity`].
///
/// ```
/// # use aiomsg_uring::{Identity, IdentityError};
/// assert_eq!("1234".parse::<Identity>(), Err(IdentityError::WrongLength { digits: 4 }));
/// assert_eq!("12x4".parse::<Identity>(), Err(IdentityError::NotHex { at: 2, found: 'x' }));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityError {
    /// A character is neither a hexadecimal digit nor a dash.
    NotHex {
        /// Its byte offset in the text.
        at: usize,
        /// The character.
        found: char,
    },
    /// The text does not have 32 digits.
    WrongLength {
        /// How many it has, dashes not counted.
        digits: usize,
    },
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityError::NotHex { at, found } => {
                write!(f, "an identity is 32 hexadecimal digits: found {found:?} at byte {at}")
            }
            IdentityError::WrongLength { digits } => {
                write!(f, "an identity is 32 hexadecimal digits, not {digits}")
            }
        }
    }
}

impl std::error::Error for IdentityError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_and_bytes_round_trip(bytes: [u8; 16]) {
            let identity = Identity::from_bytes(bytes);
            let text = identity.to_string();
            prop_assert_eq!(text.len(), 32);
            prop_assert_eq!(text.parse(), Ok(identity));
            prop_assert_eq!(text.to_uppercase().parse(), Ok(identity));
            prop_assert_eq!(format!("{identity:?}"), text);
        }

        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = text.parse::<Identity>();
        }
    }

    #[test]
    fn too_many_digits_are_refused() {
        assert_eq!("0".repeat(33).parse::<Identity>(), Err(IdentityError::WrongLength { digits: 33 }));
        assert_eq!("".parse::<Identity>(), Err(IdentityError::WrongLength { digits: 0 }));
    }

    #[test]
    fn made_identities_are_version_4() {
        for identity in [Identity::random(), Identity::from_seed(0), Identity::from_seed(u64::MAX)] {
            assert_eq!((identity.as_bytes()[6] >> 4, identity.as_bytes()[8] >> 6), (4, 2));
        }
    }
}
