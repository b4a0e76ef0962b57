//! What goes ahead of every payload: whose it is, what its sender is doing, and, of a short one, the
//! bytes themselves.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Bytes of an envelope with everything in it: within the size that MPI libraries send at once,
/// 4096 in Open MPI between processes of one host, their own header included.
pub(crate) const BYTES_MAX: usize = 3900;

/// Payloads up to this size travel in the envelope.
pub(crate) const INLINE_BYTES_MAX: usize = 2048;

/// Description of the sender's call, longer ones are cut.
const TEXT_BYTES_MAX: usize = BYTES_MAX - INLINE_BYTES_MAX - WORDS * 8;

const WORDS: usize = 9;

/// What the sequence numbers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Channel {
    /// The collectives of the group.
    Collective,
    /// The messages of one MPI rank to another.
    Message {
        /// The sender.
        from: i32,
    },
}

/// Which operation a message belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) group: u64,
    pub(crate) channel: Channel,
    pub(crate) sequence: u64,
}

/// What an envelope announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A payload that comes separately under this tag.
    Tag(i32),
    /// The payload.
    Inline(Vec<u8>),
    /// No payload: the world is to stop, because of what the text says.
    Abort,
}

/// One message's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Its sender in MPI's numbering.
    pub(crate) source: i32,
    pub(crate) slot: Slot,
    pub(crate) round: u64,
    /// See [`trine_comm::Call::signature`].
    pub(crate) signature: u64,
    pub(crate) payload_bytes: usize,
    /// Of the payload of a sealed operation.
    pub(crate) checksum: Option<u64>,
    pub(crate) content: Content,
    /// The sender's call in words; of an abort, the cause.
    pub(crate) text: String,
}

impl Envelope {
    /// The envelope as it travels; the source travels with it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, tag, inline): (u64, i32, &[u8]) = match &self.content {
            Content::Tag(tag) => (0, *tag, &[]),
            Content::Inline(bytes) => (1, 0, bytes),
            Content::Abort => (2, 0, &[]),
        };
        let channel = u64::from(self.slot.channel != Channel::Collective);
        let sealed = u64::from(self.checksum.is_some()) << 1;
        let fits = |len: &usize| self.text.is_char_boundary(*len);
        let most = self.text.len().min(TEXT_BYTES_MAX);
        let text = &self.text[..(0..=most).rev().find(fits).unwrap_or(0)];
        let words = [
            self.slot.group,
            self.slot.sequence,
            channel | sealed | kind << 8 | self.round << 16,
            self.signature,
            self.payload_bytes as u64,
            tag as u64,
            self.source as u64,
            text.len() as u64,
            self.checksum.unwrap_or(0),
        ];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend_from_slice(inline);
        bytes
    }

    /// The inverse; `None` for bytes that are no envelope.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |index: usize| -> Option<u64> {
            Some(u64::from_le_bytes(bytes.get(index * 8..index * 8 + 8)?.try_into().ok()?))
        };
        let number = |index: usize| i32::try_from(word(index)?).ok();
        let source = number(6)?;
        let kinds = word(2)?;
        let rest = bytes.get(WORDS * 8..)?;
        let (text, inline) = rest.split_at_checked(usize::try_from(word(7)?).ok()?)?;
        let payload_bytes = usize::try_from(word(4)?).ok()?;
        let content = match kinds >> 8 & 0xff {
            0 => Content::Tag(number(5)?),
            1 if inline.len() == payload_bytes => Content::Inline(inline.to_vec()),
            2 => Content::Abort,
            _ => return None,
        };
        let channel = match kinds & 0xfd {
            0 => Channel::Collective,
            1 => Channel::Message { from: source },
            _ => return None,
        };
        Some(Self {
            source,
            slot: Slot { group: word(0)?, channel, sequence: word(1)? },
            round: kinds >> 16,
            signature: word(3)?,
            payload_bytes,
            checksum: (kinds & 2 != 0).then_some(word(8)?),
            content,
            text: std::str::from_utf8(text).ok()?.to_owned(),
        })
    }
}

/// The identity of the group that a division makes: the same on all its ranks, and no other's.
pub(crate) fn group_id(parent: u64, division: u64, colour: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (parent, division, colour).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(content: Content, payload_bytes: usize) -> Envelope {
        let slot = Slot { group: u64::MAX, channel: Channel::Message { from: 3 }, sequence: 9 };
        let text = "rank 3 in send \"×\"".to_owned();
        let (source, checksum) = (3, Some(u64::MAX));
        Envelope { source, slot, round: 1, signature: 77, payload_bytes, checksum, content, text }
    }

    #[test]
    fn envelopes_survive_the_journey() {
        let slot = Slot { group: 1, channel: Channel::Collective, sequence: 2 };
        let all = [
            envelope(Content::Tag(32_767), 5 << 30),
            envelope(Content::Inline(vec![7; INLINE_BYTES_MAX]), INLINE_BYTES_MAX),
            envelope(Content::Inline(Vec::new()), 0),
            envelope(Content::Abort, 0),
            Envelope { slot, checksum: None, ..envelope(Content::Tag(2), 1) },
        ];
        for envelope in all {
            let bytes = envelope.encode();
            assert!(bytes.len() <= BYTES_MAX);
            assert_eq!(Envelope::decode(&bytes), Some(envelope));
        }
    }

    #[test]
    fn long_descriptions_are_cut_between_characters() {
        let text = "×".repeat(BYTES_MAX);
        let long = Envelope { text, ..envelope(Content::Inline(vec![1; 2048]), 2048) };
        let bytes = long.encode();
        assert!(bytes.len() <= BYTES_MAX);
        let back = Envelope::decode(&bytes).unwrap();
        assert!(back.text.len() > 1000 && long.text.starts_with(&back.text));
        assert_eq!(back.content, long.content);
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        let bytes = envelope(Content::Inline(vec![1, 2, 3]), 3).encode();
        for len in 0..bytes.len() {
            assert_eq!(Envelope::decode(&bytes[..len]), None, "{len} bytes");
        }
        let mut other = bytes.clone();
        other[17] = 9;
        assert_eq!(Envelope::decode(&other), None);
    }
}
