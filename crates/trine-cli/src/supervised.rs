//! What `trine launch` and the ranks that it supervises have in common: where they meet, what they tell one another,
//! and how flight recorders are kept.

use crate::output;
use trine_comm::PostMortem;
use trine_trainer::run::write_post_mortem;

/// Where `trine launch` listens.
pub(crate) const STORE: &str = "TRINE_STORE";
/// What it asks for.
pub(crate) const TOKEN: &str = "TRINE_TOKEN";
/// Under which key rank 0 says where the run is.
pub(crate) const DIRECTORY: &str = "directory";
/// Under which key rank 0 says that the run has begun its first step: there is something to save.
pub(crate) const STEPPING: &str = "stepping";

/// Writes the flight recorders, and says where they are.
pub(crate) fn keep(directory: &str, post_mortem: &PostMortem) {
    match write_post_mortem(directory.as_ref(), post_mortem) {
        Ok(folder) => output::complain(&format!("flight recorders: {}", folder.display())),
        Err(error) => output::complain(&format!("no flight recorders: {error}")),
    }
}
