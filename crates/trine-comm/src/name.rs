//! What operations and phases are called.

use std::fmt;

/// What an operation is for: a label and up to two numbers, such as `act mb 3 stage 1`.
///
/// Every rank that takes part in an operation must give it the same name: two collectives of equal
/// type and length in swapped order differ in nothing else. A name is `Copy` and never allocates.
///
/// ```
/// use trine_comm::Name;
///
/// let name = Name::new("act").with("mb", 3).with("stage", 1);
/// assert_eq!(name.to_string(), "act mb 3 stage 1");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    label: &'static str,
    indices: [Option<(&'static str, u64)>; 2],
}

impl Name {
    /// A name without numbers.
    pub const fn new(label: &'static str) -> Self {
        Self { label, indices: [None, None] }
    }

    /// The same name with one more number; a third one replaces the second.
    #[must_use]
    pub const fn with(mut self, key: &'static str, index: u64) -> Self {
        let slot = if self.indices[0].is_none() { 0 } else { 1 };
        self.indices[slot] = Some((key, index));
        self
    }

    /// The label.
    pub const fn label(&self) -> &'static str {
        self.label
    }

    /// The number called `key`, if the name has one.
    pub fn index(&self, key: &str) -> Option<u64> {
        self.indices.iter().flatten().find(|(own, _)| *own == key).map(|(_, index)| *index)
    }
}

impl From<&'static str> for Name {
    fn from(label: &'static str) -> Self {
        Self::new(label)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label)?;
        for (key, index) in self.indices.iter().flatten() {
            write!(f, " {key} {index}")?;
        }
        Ok(())
    }
}
