//! What ranks share in an operation, as text: JSON has no bytes.

/// One rank's side of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// What all must agree on.
    pub(crate) signature: u64,
    /// The call in words.
    pub(crate) text: String,
    /// Its elements.
    pub(crate) bytes: Vec<u8>,
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The signature, the elements in hexadecimal digits, and the call.
pub(crate) fn encoded(Envelope { signature, text, bytes }: &Envelope) -> String {
    let mut all = format!("{signature:x} ");
    for byte in bytes {
        all.push(char::from(DIGITS[usize::from(byte >> 4)]));
        all.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    all.push(' ');
    all.push_str(text);
    all
}

/// The inverse; `None` for a text that is none.
pub(crate) fn decoded(all: &str) -> Option<Envelope> {
    let (signature, rest) = all.split_once(' ')?;
    let (digits, text) = rest.split_once(' ')?;
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?);
    Some(Envelope {
        signature: u64::from_str_radix(signature, 16).ok()?,
        text: text.to_owned(),
        bytes: digits.as_bytes().chunks(2).map(pair).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_survive_the_journey() {
        let text = "rank 3 in send \"×\" #0".to_owned();
        for bytes in [Vec::new(), (0..=255).collect()] {
            let envelope = Envelope { signature: u64::MAX, text: text.clone(), bytes };
            assert_eq!(decoded(&encoded(&envelope)), Some(envelope));
        }
        for none in ["", "7", "7 0", "x 00 y", "7 0 y", "7 0g y"] {
            assert_eq!(decoded(none), None, "{none}");
        }
    }
}
