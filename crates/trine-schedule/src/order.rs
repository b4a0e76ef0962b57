//! The order of work that a run is given: a name, or a schedule of one's own.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::kind::untimed;
use crate::{Schedule, ScheduleError, ScheduleKind, Shape, UniformStage};

/// The order of work in a pipeline.
///
/// As a text it is a name, or the text form of a schedule, which has several lines.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Order {
    /// A schedule that has a name; its lists are made for the shape of the pipeline.
    Named(ScheduleKind),
    /// A schedule of one's own, which has its shape. (Shared: configurations are copied.)
    Own(Arc<Schedule>),
}

impl Order {
    /// Whether a text is meant as the text form of a schedule.
    pub fn is_own(text: &str) -> bool {
        text.contains('\n')
    }

    /// The lists for a pipeline of this shape, made for these times if some are given. Of a schedule of one's own the
    /// chunks are not asked for: it says which stages a rank has.
    ///
    /// # Errors
    /// As [`Order::check_shape`] and [`Order::check_times`], or [`ScheduleKind::generate_shape`].
    pub fn generate(
        &self,
        shape: Shape,
        times: Option<&UniformStage>,
    ) -> Result<Schedule, ScheduleError> {
        self.check_shape(&shape)?;
        self.check_times(times)?;
        match (self, times) {
            (Self::Named(kind), Some(times)) => kind.generate_for(shape, times),
            (Self::Named(kind), None) => kind.generate_shape(shape),
            (Self::Own(own), _) => Ok(Schedule::clone(own)),
        }
    }

    /// Says whether it can be made for times.
    ///
    /// # Errors
    /// [`ScheduleError::Untimed`].
    pub fn check_timed(&self) -> Result<(), ScheduleError> {
        let takes = match self {
            Self::Named(kind) => kind.info().takes_times,
            Self::Own(_) => false,
        };
        if takes { Ok(()) } else { Err(untimed(&self.to_string())) }
    }

    /// [`Order::check_timed`], if times are given.
    ///
    /// # Errors
    /// [`ScheduleError::Untimed`].
    pub fn check_times(&self, times: Option<&UniformStage>) -> Result<(), ScheduleError> {
        times.map_or(Ok(()), |_| self.check_timed())
    }

    /// Says whether it is defined for a shape.
    ///
    /// # Errors
    /// As [`ScheduleKind::check_shape`]; [`ScheduleError::OtherShape`] of a schedule of one's own with other ranks or
    /// micro-batches.
    pub fn check_shape(&self, shape: &Shape) -> Result<(), ScheduleError> {
        let own = match self {
            Self::Named(kind) => return kind.check_shape(shape),
            Self::Own(own) => own,
        };
        let parts = [
            ("pipeline rank", own.ranks(), shape.ranks),
            ("micro-batch", own.micro_batches, shape.micro_batches),
        ];
        match parts.into_iter().find(|(_, has, asked)| has != asked) {
            None => Ok(()),
            Some((what, has, asked)) => {
                Err(ScheduleError::OtherShape { name: own.name.clone(), what, has, asked })
            }
        }
    }

    /// Stages of the pipeline: those of one's own, or `chunks` on each of `ranks` ranks.
    pub fn stages(&self, ranks: usize, chunks: usize) -> usize {
        match self {
            Self::Named(_) => ranks * chunks,
            Self::Own(own) => own.stages(),
        }
    }

    /// Stages of a rank where no number is asked for; of one's own those of the rank with the most.
    pub fn chunks_usual(&self) -> usize {
        match self {
            Self::Named(kind) => kind.info().chunks_usual,
            Self::Own(own) => {
                (0..own.ranks()).map(|rank| own.stages_of(rank).count()).max().unwrap_or(0)
            }
        }
    }
}

impl From<ScheduleKind> for Order {
    fn from(kind: ScheduleKind) -> Self {
        Self::Named(kind)
    }
}

impl fmt::Display for Order {
    /// Its name, one word.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(kind) => kind.fmt(f),
            Self::Own(own) => f.pad(&own.name),
        }
    }
}

impl FromStr for Order {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if Self::is_own(text) {
            Ok(Self::Own(Arc::new(text.parse()?)))
        } else {
            Ok(Self::Named(text.parse()?))
        }
    }
}

impl TryFrom<String> for Order {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, ScheduleError> {
        text.parse()
    }
}

impl From<Order> for String {
    fn from(order: Order) -> String {
        match order {
            Order::Named(kind) => kind.into(),
            Order::Own(own) => own.to_string(),
        }
    }
}
