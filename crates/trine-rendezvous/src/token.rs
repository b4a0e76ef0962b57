//! The secret that the processes of one run share.

use crate::RendezvousError;
use std::fmt;
use std::str::FromStr;

/// 128 random bits that the processes of a run share, handed to them by whoever starts them. Its
/// `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 16]);

impl Token {
    /// A new one, from the system's random numbers.
    ///
    /// # Errors
    /// A system that gives none.
    pub fn generate() -> Result<Self, RendezvousError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| RendezvousError::System {
            what: "draw random numbers",
            source: error.into(),
        })?;
        Ok(Self(bytes))
    }

    /// Compares in a time that does not depend on where they differ.
    pub(crate) fn admits(&self, text: &str) -> bool {
        let Ok(other) = text.parse::<Self>() else { return false };
        self.0.iter().zip(other.0).fold(0, |differs, (own, other)| differs | (own ^ other)) == 0
    }

    /// The text to hand over: 32 hexadecimal digits, which [`FromStr`] reads.
    pub fn reveal(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl FromStr for Token {
    type Err = RendezvousError;

    fn from_str(text: &str) -> Result<Self, RendezvousError> {
        let refused = || RendezvousError::Token { chars: text.chars().count() };
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refused());
        }
        let mut bytes = [0; 16];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let pair = &text[2 * at..2 * at + 2];
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refused())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_through_text_and_differ() {
        let (one, two) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.reveal().parse::<Token>().unwrap(), one);
        assert!(one.admits(&one.reveal()) && !one.admits(&two.reveal()));
        assert_eq!(format!("{one:?}"), "Token");
        let digits = "0".repeat(31);
        for wrong in ["", &digits, &(digits.clone() + "g"), "00000000000000000000000000000ää"] {
            assert!(!one.admits(wrong), "{wrong}");
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
        // Almost one: the message keeps the secret.
        let error = format!("{}\n", one.reveal()).parse::<Token>().unwrap_err().to_string();
        assert!(error.contains("33 characters") && !error.contains(&one.reveal()), "{error}");
    }
}
