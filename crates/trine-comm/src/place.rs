//! Where in a run a rank is.

use crate::Name;
use std::fmt::{self, Display, Write};
use std::time::Duration;

/// Most bytes of an action's text that are kept: `SA12.345>67+RG12.345<67` has 23.
const TEXT_BYTES_MAX: usize = 32;

/// Where in a run a rank is: its phase, such as a training step, and the action of the schedule
/// that it runs. `Copy`, and never allocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// What the rank is about; no label before the first phase.
    pub phase: Phase,
    /// The action of the schedule, in a phase that runs one.
    pub action: Option<ActionText>,
}

/// A part of a run that a rank goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// Its name, such as `training step 12`.
    pub name: Name,
    /// How long others wait for a rank that shows no progress in it, if that is longer than they
    /// wait anyway: for phases that are long by nature, such as writing a checkpoint.
    pub deadline: Option<Duration>,
}

impl Default for Phase {
    fn default() -> Self {
        Self::from(Name::new(""))
    }
}

impl<T: Into<Name>> From<T> for Phase {
    fn from(name: T) -> Self {
        Self { name: name.into(), deadline: None }
    }
}

/// An action of a schedule, by its position in the rank's list and its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActionText {
    position: usize,
    text: [u8; TEXT_BYTES_MAX],
    len: u8,
}

impl ActionText {
    /// The action at `position`. Of a long text, the beginning is kept.
    pub fn new(position: usize, action: impl Display) -> Self {
        let mut new = Self { position, text: [0; TEXT_BYTES_MAX], len: 0 };
        // An error means that the rest was cut off.
        let _ = write!(new, "{action}");
        new
    }

    /// Its position in the rank's list.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Its text.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.text[..usize::from(self.len)])
            .expect("invariant: whole characters were written")
    }
}

impl Write for ActionText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let start = usize::from(self.len);
        let room = text.len().min(TEXT_BYTES_MAX - start);
        let kept = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.text[start..start + kept].copy_from_slice(&text.as_bytes()[..kept]);
        self.len += kept as u8;
        if kept == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.phase.name)?;
        match &self.action {
            Some(action) => write!(f, ", action {} ({})", action.position, action.text()),
            None => Ok(()),
        }
    }
}

impl Place {
    /// Whether no phase has begun yet.
    pub fn is_empty(&self) -> bool {
        self.phase.name.label().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_like_the_schedule() {
        let phase = Phase::from(Name::new("training").with("step", 12));
        assert_eq!(Place { phase, action: None }.to_string(), "training step 12");
        let action = Some(ActionText::new(7, "B0.3/1"));
        let place = Place { phase, action };
        assert_eq!(place.to_string(), "training step 12, action 7 (B0.3/1)");
        assert!(Place::default().is_empty() && !place.is_empty());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = "ä".repeat(20);
        let action = ActionText::new(0, &long);
        assert_eq!(action.text(), "ä".repeat(16));
        let action = ActionText::new(0, format!("{}ä", "x".repeat(31)));
        assert_eq!(action.text(), "x".repeat(31));
    }
}
