//! xxh3-128, as `xxh128sum` prints it.

use std::io::{self, Read};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// The checksum of bytes in memory.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    text(xxh3_128(bytes))
}

/// The checksum of everything that `from` still gives.
pub(crate) fn of_reader(from: &mut dyn Read) -> io::Result<String> {
    let mut hasher = Xxh3::new();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match from.read(&mut block)? {
            0 => return Ok(text(hasher.digest128())),
            count => hasher.update(&block[..count]),
        }
    }
}

/// The checksum as text.
pub(crate) fn text(checksum: u128) -> String {
    format!("{checksum:032x}")
}
