//! Of documents that are alike, the first stays: no text is trained on twice, and none that is held
//! out is trained on.

use crate::near;
use crate::report::Candidate;
use crate::{SkipReason, Skips};
use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_128;

/// Drops documents that equal an earlier one byte for byte, then those that nearly do.
pub(crate) fn drop_copies(files: Vec<Candidate>, skips: &mut Skips) -> Vec<Candidate> {
    // The search for near copies may miss one among very many relatives; this one misses none.
    let mut seen = HashSet::new();
    let is_first: Vec<bool> =
        files.iter().map(|file| seen.insert(xxh3_128(file.text.as_bytes()))).collect();
    let files = keep(files, is_first, skips);
    let texts: Vec<&str> = files.iter().map(|file| file.text.as_str()).collect();
    let distinct = near::distinct(&texts);
    keep(files, distinct, skips)
}

/// The files of which `is_kept` says so.
fn keep(files: Vec<Candidate>, is_kept: Vec<bool>, skips: &mut Skips) -> Vec<Candidate> {
    let (kept, copies): (Vec<_>, Vec<_>) =
        files.into_iter().zip(is_kept).partition(|(_, is_kept)| *is_kept);
    for (file, _) in copies {
        skips.add(SkipReason::NearDuplicate, &file.name, file.text.len() as u64);
    }
    kept.into_iter().map(|(file, _)| file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More relatives than the search for near copies compares, each of them twice.
    #[test]
    fn no_equal_documents_are_left() {
        let common: String = (0..60).map(|i| format!("line {i} of all\n")).collect();
        let files: Vec<Candidate> = (0..200)
            .map(|i| {
                let own: String = (0..40).map(|j| format!("own {} {j}\n", i % 100)).collect();
                let name = format!("{i:03}");
                Candidate { group: name.clone(), name, text: common.clone() + &own }
            })
            .collect();
        let mut skips = Skips::default();
        let kept = drop_copies(files, &mut skips);
        let texts: HashSet<&str> = kept.iter().map(|file| file.text.as_str()).collect();
        assert_eq!((kept.len(), texts.len()), (100, 100));
        assert_eq!(skips.of(SkipReason::NearDuplicate).count, 100);
        assert!(kept.iter().all(|file| file.name.as_str() < "100"));
    }
}
