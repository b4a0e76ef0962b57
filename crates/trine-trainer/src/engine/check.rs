//! What an engine's configuration must satisfy before anything is planned.

use super::EngineConfig;
use crate::TrainError;
use trine_mesh::Axis;
use trine_nn::Numerics;

/// Axes that the mesh has and the engine does not split anything on.
const NOT_SPLIT: [Axis; 2] = [Axis::Cp, Axis::Ep];

impl EngineConfig {
    /// Checks the parts against each other. [`super::RankPlan::new`] does it first.
    ///
    /// # Errors
    /// A degree of `cp` or `ep` other than 1, or a model or batch that does not fit the layout.
    pub fn check(&self) -> Result<(), TrainError> {
        for axis in NOT_SPLIT {
            let degree = self.degrees.of(axis);
            if degree != 1 {
                return Err(TrainError::AxisNotSplit { axis, degree });
            }
        }
        self.model.check()?;
        self.model.check_layout(self.degrees.tp, self.degrees.pp)?;
        if self.numerics == Numerics::Reference {
            self.model.check_reference(self.degrees.tp)?;
        }
        self.check_batch()
    }

    fn check_batch(&self) -> Result<(), TrainError> {
        let each = self.degrees.dp * self.micro_batch;
        if each == 0 || self.global_batch == 0 || !self.global_batch.is_multiple_of(each) {
            return Err(TrainError::Batch { global: self.global_batch, each });
        }
        let tokens = self.micro_batch * self.seq;
        if self.sequence_parallel && !tokens.is_multiple_of(self.degrees.tp) {
            return Err(TrainError::SequenceParallel { tokens, tp: self.degrees.tp });
        }
        Ok(())
    }
}
