//! What a message is the newest value of.

/// The key of a message for [`send_keyed`](crate::Socket::send_keyed): some bytes that the peers do not see. A number is its eight bytes,
/// big-endian; keys of the same bytes are the same key.
///
/// ```
/// use aiomsg_uring::Key;
///
/// assert_eq!(Key::from("EURUSD"), Key::from(b"EURUSD"));
/// assert_eq!(Key::from(7_u64), Key::from([0, 0, 0, 0, 0, 0, 0, 7].as_slice()));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Key<'a>(Form<'a>);

#[derive(Clone, Copy, Debug)]
enum Form<'a> {
    Bytes(&'a [u8]),
    Number([u8; 8]),
}

impl AsRef<[u8]> for Key<'_> {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Form::Bytes(bytes) => bytes,
            Form::Number(bytes) => bytes,
        }
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.as_ref() == other.as_ref()
    }
}

impl Eq for Key<'_> {}

impl<'a> From<&'a [u8]> for Key<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Key(Form::Bytes(bytes))
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Key<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Key(Form::Bytes(bytes))
    }
}

impl<'a> From<&'a str> for Key<'a> {
    fn from(text: &'a str) -> Self {
        Key(Form::Bytes(text.as_bytes()))
    }
}

impl<'a> From<&'a String> for Key<'a> {
    fn from(text: &'a String) -> Self {
        Key(Form::Bytes(text.as_bytes()))
    }
}

impl From<u64> for Key<'_> {
    fn from(number: u64) -> Self {
        Key(Form::Number(number.to_be_bytes()))
    }
}
