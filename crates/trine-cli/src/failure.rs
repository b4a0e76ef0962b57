//! How a command ends when it does not succeed: one message, one exit code.

use std::fmt::Display;
use trine_trainer::TrainError;
use trine_trainer::config::ConfigError;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments, the configuration or a file that was handed in: exit code 2.
    Usage(anyhow::Error),
    /// Something went wrong while working: exit code 1.
    Run(anyhow::Error),
    /// Another process says why; this is the code to end with.
    Silent(u8),
}

impl Failure {
    /// The arguments are wrong.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::Usage(anyhow::anyhow!("{message}"))
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Run(_) => 1,
            Self::Silent(code) => *code,
        }
    }

    /// Whether this process is the one that says why.
    pub(crate) fn is_said_here(&self) -> bool {
        match self {
            Self::Usage(_) | Self::Run(_) => true,
            Self::Silent(_) => false,
        }
    }

    /// Whether another rank has failed first, and this one was only stopped.
    #[cfg(feature = "mpi")]
    pub(crate) fn is_aborted(&self) -> bool {
        let Self::Run(error) = self else { return false };
        error.downcast_ref().is_some_and(TrainError::is_aborted)
    }

    /// The rank that has failed, if that is another one than this process's, and what it said.
    #[cfg(feature = "mpi")]
    pub(crate) fn elsewhere(&self) -> Option<(usize, &str)> {
        let Self::Run(error) = self else { return None };
        error.downcast_ref().and_then(TrainError::elsewhere)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage(error) | Self::Run(error) => f.write_str(&said_once(error)),
            Self::Silent(_) => Ok(()),
        }
    }
}

/// An error and its causes on one line. Some messages hold their cause's already: it is not said
/// again.
fn said_once(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

impl From<TrainError> for Failure {
    /// What the user can mend by other arguments or files is usage; the rest happened while working.
    fn from(error: TrainError) -> Self {
        if error.is_usage() { Self::Usage(error.into()) } else { Self::Run(error.into()) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Run(error)
    }
}
