//! Files that commands write at a path that the user names. One rule for all of them: what is there already is
//! replaced only if trine wrote it, of the same kind, and if it is no input of the command and no part of a run.

use crate::failure::Failure;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use trine_files::is_run;
use trine_trainer::TrainError;
use trine_trainer::bench::STEP_FIRST;
use trine_trainer::run::{TRACE_FIRST, TRACE_PART_FIRST};

/// Of a file that is there, so much tells what it is.
const FIRST_BYTES_MAX: u64 = 512;

/// How the first line of every drawing of trine ends.
const SVG_FONT: &str = "font-family=\"sans-serif\" font-size=\"11\">";

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The trace of a run.
    Trace,
    /// What another process than the first adds to one.
    TracePart,
    /// A drawing.
    Svg,
    /// `trine plan --write-config`.
    Configuration,
    /// `trine plan --measure`.
    Machine,
    /// `trine plan calibrate`.
    Constants,
    /// A page of `trine man`.
    ManualPage,
    /// `trine bench gradients`.
    GradientStep,
}

impl Kind {
    /// For messages.
    fn name(self) -> &'static str {
        match self {
            Self::Trace | Self::TracePart => "a trace",
            Self::Svg => "a drawing",
            Self::Configuration => "a configuration",
            Self::Machine => "a machine",
            Self::Constants => "a set of constants",
            Self::ManualPage => "a manual page",
            Self::GradientStep => "a step",
        }
    }

    /// How each file of this kind begins.
    fn beginning(self) -> &'static str {
        match self {
            Self::Trace => TRACE_FIRST,
            Self::TracePart => TRACE_PART_FIRST,
            Self::Svg => "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ",
            Self::Configuration => "# Written by trine plan --write-config\n",
            Self::Machine => "# Written by trine plan --measure\n",
            Self::Constants => "# Written by trine plan calibrate\n",
            Self::ManualPage => ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n.TH trine",
            Self::GradientStep => STEP_FIRST,
        }
    }

    /// Whether a file begins as trine begins one of this kind, or has nothing in it.
    fn is_in(self, path: &Path) -> std::io::Result<bool> {
        let mut found = Vec::new();
        trine_files::open(path)?.take(FIRST_BYTES_MAX).read_to_end(&mut found)?;
        let found = String::from_utf8_lossy(&found);
        // Other programs draw SVGs that begin alike.
        let first_line = found.lines().next().unwrap_or_default();
        let is_trines = self != Self::Svg || first_line.ends_with(SVG_FONT);
        Ok(found.is_empty() || (found.starts_with(self.beginning()) && is_trines))
    }

    /// Whether its text begins so by itself: another kind gets its first line when it is written.
    fn begins_by_itself(self) -> bool {
        match self {
            Self::Trace | Self::TracePart | Self::Svg | Self::ManualPage | Self::GradientStep => {
                true
            }
            Self::Configuration | Self::Machine | Self::Constants => false,
        }
    }
}

/// A file to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output<'a> {
    /// The option that names it.
    pub(crate) option: &'static str,
    /// Where.
    pub(crate) path: &'a Path,
    pub(crate) kind: Kind,
}

/// A file that will be written. What nothing was written to is removed again: the command was refused later.
#[must_use = "the file is given up when this is dropped"]
#[derive(Debug)]
pub(crate) struct Claimed {
    /// The file, if it was not there.
    made: Option<PathBuf>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(path) = self.made.as_deref()
            && fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == 0)
        {
            let _ = fs::remove_file(path);
        }
    }
}

impl Output<'_> {
    /// Finds out early whether something that must not be lost is there, and whether there is a folder for it.
    ///
    /// # Errors
    /// What it is: usage.
    pub(crate) fn check(&self, inputs: &[&Path]) -> Result<(), TrainError> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(Err(error)) = folder.map(fs::metadata) {
            return Err(self.refused(&format!("cannot create it: {error}")));
        }
        let kept = self.why_kept(inputs);
        kept.map_or(Ok(()), |why| {
            Err(self.refused(&format!("{why}; name another file, or move it away")))
        })
    }

    /// The same, and whether the system lets it be written: makes an empty file where there is none.
    ///
    /// # Errors
    /// As [`Output::check`], or the system's.
    pub(crate) fn claim(&self, inputs: &[&Path]) -> Result<Claimed, TrainError> {
        self.check(inputs)?;
        let made = (!self.path.exists()).then(|| self.path.to_owned());
        let opened = File::options().append(true).create(true).open(self.path);
        let claimed = opened.map(|_| Claimed { made });
        claimed.map_err(|error| self.refused(&format!("cannot create it: {error}")))
    }

    /// A refusal that names the option and the file.
    pub(crate) fn refused(&self, why: &str) -> TrainError {
        TrainError::Refused(format!("{} {}: {why}", self.option, self.path.display()))
    }

    /// Writes it.
    ///
    /// # Errors
    /// As [`Output::claim`], and a failure to write.
    pub(crate) fn write(&self, text: &str, inputs: &[&Path]) -> Result<(), Failure> {
        let _claimed = self.claim(inputs)?;
        let kind = self.kind;
        let first = if kind.begins_by_itself() { "" } else { kind.beginning() };
        fs::write(self.path, format!("{first}{text}")).map_err(|error| {
            let error = anyhow::Error::from(error);
            error
                .context(format!("{} {}: cannot write it", self.option, self.path.display()))
                .into()
        })
    }

    /// Why what is there must stay.
    fn why_kept(&self, inputs: &[&Path]) -> Option<String> {
        let there = fs::canonicalize(self.path).ok()?;
        if there.is_dir() {
            return Some("it is a folder".into());
        }
        // Devices, such as /dev/null, lose nothing. To open a pipe waits for its reader.
        if !there.is_file() {
            let is_pipe = fs::metadata(&there).is_ok_and(|found| found.file_type().is_fifo());
            return is_pipe.then(|| "it is a pipe".to_owned());
        }
        let is_there = |input: &&&Path| fs::canonicalize(input).is_ok_and(|input| input == there);
        if inputs.iter().any(|input| is_there(&input)) {
            return Some("the command reads it".into());
        }
        if let Some(run) = there.ancestors().skip(1).find(|folder| is_run(folder)) {
            return Some(format!("it is a file of the run in {}", run.display()));
        }
        let name = self.kind.name();
        match self.kind.is_in(&there) {
            Ok(true) => None,
            Ok(false) => Some(format!("it is there, and not {name} that trine wrote")),
            Err(error) => Some(format!("it is there, and cannot be read: {error}")),
        }
    }
}

/// The paths among optional ones.
pub(crate) fn given<const N: usize>(paths: [Option<&PathBuf>; N]) -> Vec<&Path> {
    paths.into_iter().flatten().map(PathBuf::as_path).collect()
}
