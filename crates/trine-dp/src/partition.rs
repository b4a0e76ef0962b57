//! Which elements of a bucket, and which samples of a batch, belong to which data-parallel rank.

use crate::DpError;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What data-parallel ranks share out among themselves (Rajbhandari et al., 1910.02054). In a
/// configuration it is the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum ZeroStage {
    /// Nothing: every rank updates all weights and keeps all optimizer state.
    Zero0,
    /// Optimizer state: each rank updates one part of each bucket, and the parts are gathered.
    Zero1,
}

impl TryFrom<u8> for ZeroStage {
    type Error = DpError;

    fn try_from(stage: u8) -> Result<Self, DpError> {
        match stage {
            0 => Ok(Self::Zero0),
            1 => Ok(Self::Zero1),
            stage => Err(DpError::Stage { stage }),
        }
    }
}

impl From<ZeroStage> for u8 {
    fn from(stage: ZeroStage) -> Self {
        match stage {
            ZeroStage::Zero0 => 0,
            ZeroStage::Zero1 => 1,
        }
    }
}

/// One data-parallel rank's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Partition {
    zero: ZeroStage,
    dp: usize,
    index: usize,
}

impl Partition {
    /// The share of rank `index` of `dp`.
    ///
    /// # Errors
    /// No such rank.
    pub fn new(zero: ZeroStage, dp: usize, index: usize) -> Result<Self, DpError> {
        if index >= dp {
            return Err(DpError::Index { index, dp });
        }
        Ok(Self { zero, dp, index })
    }

    /// What is shared out.
    pub fn zero(&self) -> ZeroStage {
        self.zero
    }

    /// Data-parallel degree.
    pub fn dp(&self) -> usize {
        self.dp
    }

    /// This rank's data-parallel index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether ranks own different parts, so that parts have to be scattered and gathered.
    pub(crate) fn is_split(&self) -> bool {
        match self.zero {
            ZeroStage::Zero0 => false,
            ZeroStage::Zero1 => self.dp > 1,
        }
    }

    /// The elements of a bucket of `len` that this rank updates and keeps optimizer state for: its
    /// part under ZeRO-1, all of them under ZeRO-0.
    ///
    /// ```
    /// use trine_dp::{Partition, ZeroStage};
    ///
    /// let second = Partition::new(ZeroStage::Zero1, 4, 1)?;
    /// assert_eq!(second.own(64), 16..32);
    /// assert_eq!(Partition::new(ZeroStage::Zero0, 4, 1)?.own(64), 0..64);
    /// # Ok::<(), trine_dp::DpError>(())
    /// ```
    pub fn own(&self, len: usize) -> Range<usize> {
        match self.zero {
            ZeroStage::Zero0 => 0..len,
            ZeroStage::Zero1 => self.part(len),
        }
    }

    /// This rank's part of `len` elements, whatever the stage: `index · len / dp ..
    /// (index + 1) · len / dp`.
    pub fn part(&self, len: usize) -> Range<usize> {
        part(len, self.dp, self.index)
    }

    /// The samples of a global batch that each data-parallel rank works on, by rank. Trainers refuse
    /// batches that `dp` does not divide; the sums here do not need them to.
    pub fn samples(&self, global_batch: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let dp = self.dp;
        (0..dp).map(move |index| part(global_batch, dp, index))
    }
}

fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    index * len / parts..(index + 1) * len / parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_every_element_once_in_order(len in 0usize..5000, dp in 1usize..40) {
            let mut end = 0;
            for index in 0..dp {
                let part = Partition::new(ZeroStage::Zero1, dp, index).unwrap().own(len);
                prop_assert_eq!(part.start, end);
                prop_assert!(part.len() == len / dp || part.len() == len.div_ceil(dp));
                if len.is_multiple_of(dp) {
                    prop_assert_eq!(part.len(), len / dp);
                }
                end = part.end;
                let all = Partition::new(ZeroStage::Zero0, dp, index).unwrap();
                prop_assert_eq!(all.own(len), 0..len);
                prop_assert_eq!(all.part(len), part);
            }
            prop_assert_eq!(end, len);
            let samples = Partition::new(ZeroStage::Zero0, dp, 0).unwrap().samples(len);
            prop_assert_eq!(samples.flatten().collect::<Vec<_>>(), (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn stages_are_numbers_and_bad_ones_are_refused() {
        let stages = [ZeroStage::Zero0, ZeroStage::Zero1];
        assert_eq!(serde_json::to_string(&stages).unwrap(), "[0,1]");
        assert_eq!(serde_json::from_str::<[ZeroStage; 2]>("[0,1]").unwrap(), stages);
        let error = serde_json::from_str::<ZeroStage>("3").unwrap_err().to_string();
        assert!(
            error.contains("ZeRO stage 3") && error.contains("nearest valid value: 1"),
            "{error}"
        );
        let error = Partition::new(ZeroStage::Zero1, 2, 2).unwrap_err().to_string();
        assert!(error.contains("index 2") && error.contains("0..2"), "{error}");
    }
}
