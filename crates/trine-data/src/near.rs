//! Near-identical documents, found in near-linear time.
//!
//! A document is the set of its shingles: runs of three lines, white space at their ends and blank
//! lines ignored. MinHash signatures (Broder, "On the resemblance and containment of documents",
//! 1997) in bands find candidates; candidates are then compared exactly.

use std::collections::HashMap;
use xxhash_rust::xxh3::xxh3_64;

/// Lines of a shingle.
const SHINGLE_LINES: usize = 3;
/// Jaccard overlap from which on two documents count as copies.
const OVERLAP: f64 = 0.85;
/// Bands of a signature and rows of a band: two documents that overlap by 0.85 share no band once
/// in 10⁵ cases, two that overlap by 0.2 share one in 40.
const BANDS: usize = 16;
const ROWS: usize = 4;
/// Kept documents compared in one bucket. Bounds the time on families of half-similar files.
const BUCKET_MAX: usize = 32;

/// Which documents to keep: all but those that nearly equal an earlier kept one.
pub(crate) fn distinct(texts: &[&str]) -> Vec<bool> {
    let mut buckets = HashMap::<(usize, u64), Vec<usize>>::new();
    let mut kept_shingles = Vec::<Vec<u64>>::new();
    let mut keep = Vec::with_capacity(texts.len());
    for text in texts {
        let shingles = shingles(text);
        let bands = bands(&shingles);
        let copied = bands.iter().enumerate().any(|band| {
            let bucket = buckets.get(&(band.0, *band.1));
            bucket.into_iter().flatten().any(|&i| overlap(&kept_shingles[i], &shingles) >= OVERLAP)
        });
        keep.push(!copied);
        if copied {
            continue;
        }
        for (band, hash) in bands.into_iter().enumerate() {
            let bucket = buckets.entry((band, hash)).or_default();
            if bucket.len() < BUCKET_MAX {
                bucket.push(kept_shingles.len());
            }
        }
        kept_shingles.push(shingles);
    }
    keep
}

/// Sorted hashes of the shingles; at least one.
fn shingles(text: &str) -> Vec<u64> {
    let lines: Vec<u64> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| xxh3_64(line.as_bytes()))
        .collect();
    let combine = |run: &[u64]| run.iter().fold(0, |hash, &line| mix(hash ^ line));
    let mut set: Vec<u64> = if lines.len() < SHINGLE_LINES {
        vec![combine(&lines)]
    } else {
        lines.windows(SHINGLE_LINES).map(combine).collect()
    };
    set.sort_unstable();
    set.dedup();
    set
}

/// One hash for each band of the MinHash signature.
fn bands(shingles: &[u64]) -> [u64; BANDS] {
    let mut minima = [[u64::MAX; ROWS]; BANDS];
    for &shingle in shingles {
        for (row, minimum) in minima.as_flattened_mut().iter_mut().enumerate() {
            let salt = (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *minimum = (*minimum).min(mix(shingle ^ salt));
        }
    }
    minima.map(|rows| rows.into_iter().fold(0, |hash, row| mix(hash ^ row)))
}

/// Jaccard overlap of two sorted sets.
fn overlap(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut common) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        common += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    common as f64 / (a.len() + b.len() - common) as f64
}

/// A bijection that spreads every bit (the finaliser of MurmurHash3, with its constants).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(lines: std::ops::Range<usize>, salt: &str) -> String {
        lines.map(|i| format!("    let x{i} = {salt}({i});\n")).collect()
    }

    #[test]
    fn copies_go_and_relatives_stay() {
        let original = file(0..200, "f");
        let reformatted = original.replace("    let", "\n\tlet");
        let touched = original.replace("x50 =", "y50 =").replace("x150 =", "y150 =");
        let half = file(0..100, "f") + &file(100..200, "g");
        let other = file(0..200, "g");
        let texts = [&original, &reformatted, &touched, &half, &other, &original];
        let texts: Vec<&str> = texts.iter().map(|text| text.as_str()).collect();
        assert_eq!(distinct(&texts), [true, false, false, true, true, false]);
    }

    #[test]
    fn overlap_threshold() {
        // 200 lines give 198 shingles; each changed line breaks three of them.
        let shingles_of = |changed: usize| {
            let mut text = file(0..200, "f");
            for k in 0..changed {
                text = text.replace(&format!("x{} ", 10 + 15 * k), "changed ");
            }
            shingles(&text)
        };
        let whole = shingles_of(0);
        assert_eq!(whole.len(), 198);
        for changed in [1, 4, 5, 9] {
            let broken = 3.0 * changed as f64;
            let expected = (198.0 - broken) / (198.0 + broken);
            assert!((overlap(&whole, &shingles_of(changed)) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn tiny_documents() {
        assert_eq!(distinct(&["mod a;", "mod b;", "mod a;\n", "", "\n\n"]).len(), 5);
        assert_eq!(distinct(&["mod a;", "mod b;", "mod a;\n"]), [true, true, false]);
    }
}
