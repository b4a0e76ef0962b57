//! An engine's configuration: usual values, and what it must satisfy before anything is planned.

use super::EngineConfig;
use crate::TrainError;
use trine_buffer::DType;
use trine_dp::ZeroStage;
use trine_mesh::{Axis, Degrees};
use trine_nn::Numerics;
use trine_optim::OptimizerConfig;
use trine_schedule::ScheduleKind;
use trine_spec::{BUCKET_ELEMENTS, ModelSpec};

/// Axes that the mesh has and the engine does not split anything on.
const NOT_SPLIT: [Axis; 2] = [Axis::Cp, Axis::Ep];

impl EngineConfig {
    /// One rank, one sequence of the model's full length a step, in f32 by AdamW with usual
    /// constants: where a loop of one's own begins.
    pub fn serial(model: ModelSpec) -> Self {
        Self {
            degrees: Degrees::SERIAL,
            layers: None,
            sequence_parallel: true,
            schedule: ScheduleKind::OneFOneB,
            numerics: Numerics::Fast,
            compute: DType::F32,
            recompute: false,
            zero: ZeroStage::Zero1,
            global_batch: 1,
            micro_batch: 1,
            seq: model.seq_max,
            seed: 1,
            optimizer: OptimizerConfig::AdamW {
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
            },
            clip_norm: 1.0,
            threads: 1,
            bucket_elements: BUCKET_ELEMENTS,
            model,
        }
    }

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
