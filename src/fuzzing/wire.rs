//! What comes from a peer or a person: frames in any pieces, handshakes, endpoints.

use arbitrary::Unstructured;

use crate::protocol::deframe::Deframer;
use crate::protocol::frame::{self, MsgId};
use crate::protocol::{Handshake, Identity, Role};
use crate::socket::Endpoint;
use crate::transport::{Sniff, admit, sniff};

/// What an application or the delivery layer is to see of a stream.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    messages: Vec<(Vec<u8>, Option<[u8; 16]>)>,
    acks: Vec<[u8; 16]>,
    /// A frame beyond the limit came.
    too_long: bool,
}

impl Seen {
    /// An independent reader of a whole stream, as simple as the protocol's text.
    fn naive(mut rest: &[u8], limit: usize) -> Seen {
        let mut seen = Seen::default();
        while let Some((length, envelope)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            let kind = envelope.first().copied().filter(|_| length > 0);
            // The limit is that of the longest head.
            if length > limit || (kind == Some(3) && length > limit.saturating_sub(16)) {
                seen.too_long = true;
                break;
            }
            if envelope.len() < length {
                break;
            }
            let (envelope, after) = envelope.split_at(length);
            let id = envelope.get(1..17).map(|id| id.try_into().unwrap_or_default());
            match (kind, id) {
                (Some(3), _) => seen.messages.push((envelope[1..].to_vec(), None)),
                (Some(4), Some(id)) => seen.messages.push((envelope[17..].to_vec(), Some(id))),
                (Some(5), Some(id)) => seen.acks.push(id),
                _ => {}
            }
            rest = after;
        }
        seen
    }

    fn walk(&mut self, run: &[u8]) {
        let mut at = 0;
        while let Some(message) = frame::next_message(run, &mut at) {
            self.messages.push((run[message.payload].to_vec(), message.msg_id.map(|id| id.0)));
        }
        assert_eq!(at, run.len(), "a run consists of whole frames");
    }
}

/// A stream in any pieces gives what it gives as a whole.
pub(super) fn deframer(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(head) = input.bytes(10.min(data.len())) else { return };
    let (Some(&limit), pieces) = (head.first(), &head[head.len().min(1)..]) else { return };
    let limit = [20, 64, 300, 5_000, 100_000, u32::MAX][usize::from(limit) % 6];
    let stream = input.take_rest();
    let expected = Seen::naive(stream, limit as usize);

    let mut deframer = Deframer::new(limit);
    let mut seen = Seen::default();
    let mut rest = stream;
    let mut turn = 0;
    while !rest.is_empty() && !seen.too_long {
        let piece = usize::from(pieces.get(turn % pieces.len().max(1)).copied().unwrap_or(255));
        turn += 1;
        let piece = if piece > 200 { piece * 64 } else { piece };
        // A message in progress is received straight into place, now and then.
        if piece.is_multiple_of(3) && deframer.missing().is_some() {
            let missing = deframer.missing().unwrap_or(0);
            let mut buffer = deframer.lend();
            assert!(buffer.capacity() - buffer.len() <= missing && buffer.capacity() > buffer.len());
            let take = piece.max(1).min(rest.len()).min(buffer.capacity() - buffer.len());
            buffer.extend_from_slice(&rest[..take]);
            rest = &rest[take..];
            if let Some(whole) = deframer.restore(buffer) {
                seen.walk(&whole);
            }
            continue;
        }
        let (now, later) = rest.split_at(piece.max(1).min(rest.len()));
        rest = later;
        let acks = &mut seen.acks;
        match deframer.feed(now, |id| acks.push(id.0)) {
            Ok(scan) => {
                let before = seen.messages.len();
                if let Some(whole) = &scan.assembled {
                    seen.walk(whole);
                }
                seen.walk(&now[scan.run]);
                assert_eq!(seen.messages.len() - before, scan.messages as usize);
                assert_eq!(seen.messages[before..].iter().any(|(_, id)| id.is_some()), scan.needs_ack);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                seen.too_long = true;
            }
        }
    }
    assert_eq!(seen.too_long, expected.too_long);
    if seen.too_long {
        // Of the input with the offending frame, messages are not told.
        assert!(expected.messages.starts_with(&seen.messages));
        assert!(expected.acks.starts_with(&seen.acks));
    } else {
        assert_eq!(seen, expected);
    }
}

/// What is written is read; and readers of single frames take any bytes.
pub(super) fn frames(data: &[u8]) {
    let mut at = 0;
    while let Some(message) = frame::next_message(data, &mut at) {
        assert!(message.payload.end <= at && at <= data.len());
    }
    if let Some((_, payload)) = frame::payload_of(data) {
        assert_eq!(Some(payload.end), frame::frame_len(data));
    }

    let mut input = Unstructured::new(data);
    let (mut stream, mut sent) = (Vec::new(), Seen::default());
    while !input.is_empty() {
        let kind = super::next!(input, u8);
        let id: [u8; 16] = super::next!(input, [u8; 16]);
        let length = usize::from(super::next!(input, u16) % 700).min(input.len());
        let Ok(payload) = input.bytes(length) else { break };
        match kind % 5 {
            0 => stream.extend(frame::hello(&Identity::from(id))),
            1 => stream.extend(frame::HEARTBEAT),
            2 => {
                stream.extend([&frame::data_head(length)[..], payload].concat());
                sent.messages.push((payload.to_vec(), None));
            }
            3 => {
                stream.extend([&frame::data_req_head(MsgId(id), length)[..], payload].concat());
                sent.messages.push((payload.to_vec(), Some(id)));
            }
            _ => {
                stream.extend(frame::ack(MsgId(id)));
                sent.acks.push(id);
            }
        }
    }
    let mut seen = Seen::default();
    seen.walk(&stream);
    assert_eq!(seen.messages, sent.messages);
    assert_eq!(Seen::naive(&stream, usize::MAX), sent);
}

/// A HELLO in any pieces is accepted, everything else is refused at its first wrong byte, never later.
pub(super) fn handshake(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else { return };
    let role = if first & 1 == 0 { Role::Connecting } else { Role::Binding };
    let step = usize::from(first >> 1) % 23;
    let mut handshake = Handshake::new(role, Identity::from([7; 16]));
    assert_eq!(handshake.poll_transmit().is_some(), role == Role::Connecting);
    let right = [0, 0, 0, 18, 1, 1];
    let wrong_at = bytes.iter().zip(right).position(|(byte, right)| *byte != right);
    let mut at = 0;
    let mut answers = u32::from(role == Role::Connecting);
    while at < bytes.len() && handshake.want() > 0 {
        let take = handshake.want().min(step.max(1)).min(bytes.len() - at);
        let result = handshake.handle_bytes(&bytes[at..at + take]);
        at += take;
        answers += u32::from(handshake.poll_transmit().is_some());
        assert_eq!(answers, 1, "one HELLO, once");
        match result {
            Ok(Some(identity)) => {
                assert_eq!((at, wrong_at, handshake.want()), (22, None, 0));
                assert_eq!(identity.as_bytes()[..], bytes[6..22]);
                return;
            }
            // LENGTH is judged when it is whole.
            Ok(None) => assert!(at < 22 && wrong_at.is_none_or(|wrong| at <= wrong.max(3))),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                let wrong = wrong_at.unwrap_or(usize::MAX);
                assert!(at > wrong, "refused without a cause: {error}");
                return;
            }
        }
    }
    assert!(!handshake.handle_end().to_string().is_empty());
}

/// A text names a place or it does not; what it names is written so that it names the same again.
pub(super) fn endpoint(data: &[u8]) {
    if let Some(&first) = data.first() {
        match (sniff(first), admit(first)) {
            (Sniff::Raw, Ok(())) => assert_eq!(first, 0),
            (Sniff::Raw, _) | (_, Ok(())) => panic!("{first} is and is not a raw peer"),
            (_, Err(error)) => assert!(!error.to_string().is_empty()),
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Endpoint>() {
        Ok(endpoint) => {
            let written = endpoint.to_string();
            let again = written.parse::<Endpoint>();
            assert_eq!(again.as_ref(), Ok(&endpoint), "{text:?} is written as {written:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
