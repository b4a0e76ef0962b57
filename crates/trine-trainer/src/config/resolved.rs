//! What follows from a configuration: sizes and shapes that several parts need, computed once.

use super::{Config, Numerics};
use std::path::PathBuf;
use trine_mesh::{Degrees, Mesh, MeshError};
use trine_spec::{Piece, SpecError, StageRequest, split_layers};

/// A gradient bucket is closed once it holds this many elements (1 MiB in f32): about a block of a
/// small model, so that reductions begin early in the backward; larger blocks have one bucket each.
pub const BUCKET_ELEMENTS: usize = 1 << 18;

impl Config {
    /// The degrees of the mesh.
    pub fn degrees(&self) -> Degrees {
        let layout = &self.layout;
        Degrees { dp: layout.dp, pp: layout.pp, tp: layout.tp, ..Degrees::SERIAL }
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.degrees().world()
    }

    /// The mesh of all ranks.
    ///
    /// # Errors
    /// A degree of zero, which a checked configuration does not have.
    pub fn mesh(&self) -> Result<Mesh, MeshError> {
        Mesh::new(self.degrees(), self.world())
    }

    /// The pieces of each stage.
    ///
    /// # Errors
    /// More stages than layers or a bad split, which a checked configuration does not have.
    pub fn stages(&self) -> Result<Vec<Vec<Piece>>, SpecError> {
        let given = &self.layout.layers;
        let given = (!given.is_empty()).then_some(given.as_slice());
        split_layers(&self.model, self.layout.pp, given)
    }

    /// How one rank lays out the pieces of its stage: the one description that the run and every
    /// plan of it share, so that their bytes agree.
    pub fn stage_request<'a>(&'a self, pieces: &'a [Piece], tp_index: usize) -> StageRequest<'a> {
        StageRequest {
            model: &self.model,
            pieces,
            tp: self.layout.tp,
            tp_index,
            dp: self.layout.dp,
            tied_apart: self.tied_apart(),
            bucket_elements: BUCKET_ELEMENTS,
        }
    }

    /// Whether a tied output layer is a parameter of its own, summed with the embedding after the
    /// backward: always over several stages, and in reference numerics, where one stage must add
    /// up as several would.
    pub fn tied_apart(&self) -> bool {
        self.model.tied && (self.layout.pp > 1 || self.train.numerics == Numerics::Reference)
    }

    /// Sequences of one data-parallel replica in a step.
    pub fn sequences_per_replica(&self) -> usize {
        self.batch.global / self.layout.dp
    }

    /// Micro-batches of one rank in a step.
    pub fn micro_batches(&self) -> usize {
        self.sequences_per_replica() / self.batch.micro
    }

    /// Tokens of one micro-batch.
    pub fn tokens_per_micro_batch(&self) -> usize {
        self.batch.micro * self.data.seq
    }

    /// Tokens of an optimizer step, over all ranks.
    pub fn tokens_per_step(&self) -> usize {
        self.batch.global * self.data.seq
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        if self.output.dir.as_os_str().is_empty() {
            PathBuf::from("runs").join(&self.name)
        } else {
            self.output.dir.clone()
        }
    }
}
