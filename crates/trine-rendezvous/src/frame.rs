//! Messages on a byte stream: four bytes of length, little end first, then JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

/// Most bytes of a message. The largest is a flight recorder, some tens of KiB.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// A frame begins with its length.
pub(crate) const LENGTH_BYTES: usize = 4;

/// The announced length, if it is one of at most `bytes_max`.
pub(crate) fn length(bytes: [u8; LENGTH_BYTES], bytes_max: usize) -> io::Result<usize> {
    let length = u32::from_le_bytes(bytes) as usize;
    if length > bytes_max {
        let text = format!("a frame of {length} bytes is longer than {bytes_max}");
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    Ok(length)
}

/// What a wait for a frame came to.
#[derive(Debug)]
pub(crate) enum Incoming<T> {
    /// A message.
    Frame(T),
    /// Nothing has come yet.
    Idle,
    /// The other side has ended the connection between two frames.
    Closed,
}

/// A stream whose reads can be given a timeout.
pub(crate) trait Timed {
    fn read_timeout(&self, timeout: Duration) -> io::Result<()>;
}

impl Timed for std::net::TcpStream {
    fn read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))
    }
}

/// Waits at most `idle` for a frame to begin and `within` for it to be complete: a peer that sends a
/// byte now and then does not hold the reader.
pub(crate) fn read<T: DeserializeOwned, S: Read + Timed>(
    stream: &mut S,
    idle: Duration,
    within: Duration,
) -> io::Result<Incoming<T>> {
    let mut length = [0; LENGTH_BYTES];
    stream.read_timeout(idle)?;
    let began = match stream.read(&mut length) {
        Ok(0) => return Ok(Incoming::Closed),
        Ok(read) => read,
        Err(error) if is_timeout(&error) => return Ok(Incoming::Idle),
        Err(error) => return Err(error),
    };
    let until = Instant::now() + within;
    fill(stream, &mut length[began..], until)?;
    let length = self::length(length, FRAME_BYTES_MAX)?;
    // Memory grows with what has come, not with what was announced.
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let (start, more) = (bytes.len(), (length - bytes.len()).min(64 << 10));
        bytes.resize(start + more, 0);
        fill(stream, &mut bytes[start..], until)?;
    }
    serde_json::from_slice(&bytes).map(Incoming::Frame).map_err(io::Error::from)
}

/// A timeout has one of two names, depending on the system; an interrupted read is as if nothing had
/// come yet.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn fill<S: Read + Timed>(stream: &mut S, mut bytes: &mut [u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "a frame stopped in the middle"));
        }
        stream.read_timeout(left)?;
        match stream.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => bytes = &mut bytes[read..],
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The frame of a message; `Err` is its size, if that is too large.
pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>, usize> {
    let json = serde_json::to_vec(message).expect("invariant: messages are plain data");
    if json.len() > FRAME_BYTES_MAX {
        return Err(json.len());
    }
    let mut frame = (json.len() as u32).to_le_bytes().to_vec();
    frame.extend(json);
    Ok(frame)
}

/// Writes a frame; the stream has a write timeout.
pub(crate) fn write(stream: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    stream.write_all(frame).and_then(|()| stream.flush())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Timed for &[u8] {
        fn read_timeout(&self, _: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    fn parse(mut bytes: &[u8]) -> io::Result<Incoming<Vec<u32>>> {
        read(&mut bytes, Duration::from_secs(1), Duration::from_secs(1))
    }

    #[test]
    fn a_frame_comes_back_and_nothing_else_is_one() {
        let frame = encode(&vec![1u32, 2]).unwrap();
        assert!(matches!(parse(&frame), Ok(Incoming::Frame(got)) if got == [1, 2]));
        assert!(matches!(parse(&[]), Ok(Incoming::Closed)));
        // Every prefix, and every byte altered: an error or another message, never a panic.
        let mut refused = 0;
        for end in 1..frame.len() {
            assert!(parse(&frame[..end]).is_err(), "{end}");
            refused += 1;
        }
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut altered = frame.clone();
                altered[at] ^= 1 << bit;
                refused += usize::from(parse(&altered).is_err());
            }
        }
        assert!(refused > frame.len(), "{refused}");
        let huge = [&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes()[..], b"[]"].concat();
        assert!(parse(&huge).unwrap_err().to_string().contains("longer than"));
        assert_eq!(encode(&"x".repeat(FRAME_BYTES_MAX)).unwrap_err(), FRAME_BYTES_MAX + 2);
    }
}
