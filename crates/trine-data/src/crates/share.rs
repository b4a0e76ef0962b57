//! No crate may fill more than its share of the corpus.

use crate::report::Candidate;
use crate::{SkipReason, Skips};
use std::collections::BTreeMap;
use trine_rng::{Permutation, Stream};

/// The largest part of the bytes that one crate may have.
const SHARE_MAX: f64 = 0.03;
/// With few crates the share is this many times the even one, or nothing would be left.
const EVEN_SHARES: f64 = 2.0;

/// Files to keep so that no crate has more than 3 % of the bytes that stay, or twice the even share
/// where there are fewer than 67 crates.
///
/// A crate over the limit gives its files in the order of a keyed permutation, so that what stays
/// is a sample of it. The limit depends on the total that stays, which depends on the limit:
/// repeated until the total no longer changes. It falls in every pass, since a smaller limit never
/// lets more bytes through, so this ends.
pub(crate) fn limit_shares(files: Vec<Candidate>, skips: &mut Skips) -> Vec<Candidate> {
    let mut crates = BTreeMap::<&str, Vec<usize>>::new();
    for (index, file) in files.iter().enumerate() {
        crates.entry(&file.group).or_default().push(index);
    }
    let sizes: Vec<u64> = files.iter().map(|file| file.text.len() as u64).collect();
    let share = SHARE_MAX.max(EVEN_SHARES / crates.len().max(1) as f64);
    let mut total: u64 = sizes.iter().sum();
    let keep = loop {
        let limit = (share * total as f64) as u64;
        let kept: Vec<usize> = crates
            .iter()
            .flat_map(|(name, members)| within(limit, name, members, &sizes))
            .collect();
        let kept_total = kept.iter().map(|&index| sizes[index]).sum();
        if kept_total == total {
            break kept;
        }
        total = kept_total;
    };
    let mut is_kept = vec![false; files.len()];
    keep.into_iter().for_each(|index| is_kept[index] = true);
    let (kept, over): (Vec<_>, Vec<_>) = files.into_iter().zip(is_kept).partition(|(_, k)| *k);
    for (file, _) in over {
        skips.add(SkipReason::OverShare, &file.name, file.text.len() as u64);
    }
    kept.into_iter().map(|(file, _)| file).collect()
}

/// The files of one crate that fit into `limit` bytes, in the crate's own order.
fn within(limit: u64, name: &str, members: &[usize], sizes: &[u64]) -> Vec<usize> {
    if members.iter().map(|&index| sizes[index]).sum::<u64>() <= limit {
        return members.to_vec();
    }
    let stream = Stream::new(0, &format!("corpus.share.{name}"));
    let order = Permutation::new(members.len() as u64, stream);
    let mut bytes = 0;
    let mut kept = Vec::new();
    for place in 0..order.len() {
        let index = members[order.get(place) as usize];
        if bytes + sizes[index] <= limit {
            bytes += sizes[index];
            kept.push(index);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(crates: &[(&str, usize, usize)]) -> Vec<Candidate> {
        crates
            .iter()
            .flat_map(|&(name, count, bytes)| {
                (0..count).map(move |i| Candidate {
                    group: name.to_owned(),
                    name: format!("{name}-1.0.0/src/{i}.rs"),
                    text: "x".repeat(bytes),
                })
            })
            .collect()
    }

    fn bytes_by_crate(files: &[Candidate]) -> BTreeMap<&str, u64> {
        let mut bytes = BTreeMap::new();
        for file in files {
            *bytes.entry(file.group.as_str()).or_default() += file.text.len() as u64;
        }
        bytes
    }

    #[test]
    fn a_giant_is_cut_to_its_share_of_what_stays() {
        let names: Vec<String> = (0..100).map(|i| format!("small{i:02}")).collect();
        let mut sizes: Vec<_> = names.iter().map(|name| (name.as_str(), 2, 500)).collect();
        sizes.push(("giant", 500, 101));
        sizes.push(("large", 60, 90));
        let mut skips = Skips::default();
        let kept = limit_shares(files(&sizes), &mut skips);
        let bytes = bytes_by_crate(&kept);
        let total: u64 = bytes.values().sum();
        assert_eq!(bytes.len(), 102);
        for (name, bytes) in &bytes {
            assert!(*bytes as f64 <= 0.03 * total as f64, "{name}: {bytes} of {total}");
        }
        // Little is wasted: within one file of the limit.
        assert!(bytes["giant"] as f64 > 0.03 * total as f64 - 101.0);
        assert_eq!(skips.of(SkipReason::OverShare).count as usize, 100 * 2 + 560 - kept.len());
    }

    #[test]
    fn few_crates_keep_something() {
        let kept = limit_shares(files(&[("a", 10, 100), ("b", 1, 100)]), &mut Skips::default());
        assert_eq!(kept.len(), 11);
        let sizes = [("a", 100, 100), ("b", 1, 100), ("c", 1, 100), ("d", 2, 50)];
        let kept = limit_shares(files(&sizes), &mut Skips::default());
        assert_eq!(bytes_by_crate(&kept)["a"], 300);
        assert!(limit_shares(Vec::new(), &mut Skips::default()).is_empty());
    }
}
