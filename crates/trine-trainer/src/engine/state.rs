//! What a rank holds: weights and moments, whole buckets at a time for a checkpoint, and bytes.

use super::{Engine, WEIGHTS};
use crate::TrainError;
use crate::planned::RankMemory;
use trine_buffer::{Buf, Place, Pool, Slice};
use trine_comm::Name;

impl Engine {
    /// The names of the quantities that a checkpoint holds beside the weights.
    pub fn moments(&self) -> &'static [&'static str] {
        self.plan.config.optimizer.moments()
    }

    /// One whole bucket of a quantity in the accumulator type: `weights` (the masters) or one of
    /// [`Engine::moments`], gathered where ranks share it out. A collective call among the ranks that
    /// share the bucket's states. Moments that are not kept, of what is frozen, are zero. The copy is the host's.
    ///
    /// # Errors
    /// No such quantity, or a failed collective.
    pub fn full_bucket(&self, quantity: &str, bucket: usize) -> Result<Buf, TrainError> {
        let dtype = self.plan.config.compute.accumulator();
        let (len, states, trainable) = {
            let bucket = &self.layout.buckets[bucket];
            (bucket.len, bucket.shared.states, bucket.trainable)
        };
        if !trainable && self.moments().contains(&quantity) {
            return Ok(Buf::zeros(dtype, len));
        }
        let state = if trainable { self.optimizer.state(bucket) } else { Vec::new() };
        let wanted = if quantity == WEIGHTS { trine_optim::MASTER } else { quantity };
        let part = match state.iter().find(|(name, _)| *name == wanted) {
            Some((_, part)) => part,
            // Weights that are their own masters are whole on every rank.
            None if quantity == WEIGHTS => self.weights.bucket(bucket)?,
            None => return Err(TrainError::Quantity(quantity.into())),
        };
        let place = self.ops.place();
        let mut copy = place.zeros(dtype, part.len())?;
        if part.dtype() == dtype {
            copy.slice_mut().copy_from(part.slice())?;
        } else {
            // Frozen weights have no masters.
            self.ops.cast(copy.slice_mut(), part.slice())?;
        }
        if part.len() == len {
            return on_host(copy);
        }
        let name = Name::new("state").with("bucket", bucket as u64);
        let room = place.zeros(dtype, len)?;
        let (_, all) = self.groups.of(states)?.all_gather(copy, room, name)?;
        on_host(all)
    }

    /// Sets one whole bucket of a quantity from the host: the inverse of [`Engine::full_bucket`], without
    /// collectives.
    ///
    /// # Errors
    /// No such quantity, or another length.
    pub fn load_bucket(
        &mut self,
        quantity: &str,
        bucket: usize,
        all: &Buf,
    ) -> Result<(), TrainError> {
        let own = self.optimizer.own(bucket);
        if quantity != WEIGHTS {
            let part = self.optimizer.state_mut(bucket, quantity)?;
            return Ok(part.slice_mut().copy_from(all.slice().range(own)?)?);
        }
        if self.plan.config.compute != self.plan.config.compute.accumulator() {
            let master = self.optimizer.state_mut(bucket, trine_optim::MASTER)?;
            master.slice_mut().copy_from(all.slice().range(own)?)?;
        }
        match self.ops.place() {
            Place::Host => self.weights.load(bucket, all.slice(), &*self.ops)?,
            device => {
                let held = Pool::on(device.clone()).copy_of(all.slice())?;
                self.weights.load(bucket, held.slice(), &*self.ops)?;
            }
        }
        Ok(())
    }
}

/// The buffer itself, if it is there.
fn on_host(buf: Buf) -> Result<Buf, TrainError> {
    Ok(if let Slice::Device(_) = buf.slice() { buf.slice().to_host()? } else { buf })
}

impl RankMemory {
    /// What a rank has held so far.
    pub fn measured(engine: &Engine) -> Self {
        let pool = engine.pool().stats();
        Self {
            state: engine.bytes(),
            buffers: Some(engine.buffer_bytes_max()),
            activations: Some(pool.bytes_in_use_max),
            arena: Some(pool.bytes_in_use + pool.bytes_idle),
        }
    }
}
