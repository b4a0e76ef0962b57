//! What can be wrong with a cluster file, a layout or a file of published runs.

/// Why something cannot be planned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A cluster or constants file does not parse, or names what does not exist.
    #[error("{what}: {why}")]
    Data {
        /// Which text.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// No cluster, device or stack has this name.
    #[error("no {kind} is called \"{name}\"; nearest: {nearest}; there are: {all}")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The most similar name there is.
        nearest: String,
        /// Every name there is.
        all: String,
    },
    /// A layout breaks a rule.
    #[error("{field} {value}: {rule}; nearest valid: {nearest}")]
    Layout {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What must hold.
        rule: String,
        /// A value that would do.
        nearest: String,
    },
    /// The model itself, or its split, is wrong.
    #[error(transparent)]
    Spec(#[from] trine_spec::SpecError),
    /// The pipeline's schedule is not defined for the layout.
    #[error(transparent)]
    Schedule(#[from] trine_schedule::ScheduleError),
    /// A CSV file cannot be read.
    #[error("line {line}: {why}")]
    Csv {
        /// Line of the file, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
}

impl PlanError {
    /// The error of a `field`'s degree that has an obstacle, with the nearest of 1 to `most` that have none.
    pub(crate) fn unless_degree(
        (field, degree): (&'static str, usize),
        most: usize,
        obstacle: impl Fn(usize) -> Option<String>,
    ) -> Option<Self> {
        let rule = obstacle(degree)?;
        let works = |degree: &usize| obstacle(*degree).is_none();
        let below = (1..degree.min(most + 1)).rev().find(works);
        let above = (degree + 1..=most).find(works);
        let all: Vec<String> = below.into_iter().chain(above).map(|d| d.to_string()).collect();
        Some(Self::Layout { field, value: degree.to_string(), rule, nearest: all.join(" or ") })
    }

    /// A name that none of `all` has.
    pub fn unknown(kind: &'static str, name: &str, all: &[&str]) -> Self {
        let nearest = trine_schedule::nearest(name, all.iter().copied()).unwrap_or_default();
        Self::Unknown { kind, name: name.into(), nearest: nearest.into(), all: all.join(", ") }
    }
}
