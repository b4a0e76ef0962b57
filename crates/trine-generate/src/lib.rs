//! Text from a trained model: a prompt in, tokens out, one by one.
//!
//! * [`Sampling`] and [`sample`]: which token follows, given the logits. Pure.
//! * [`Generator`]: the serial model with weights from anywhere, and the loop around it.
//!
//! ```
//! use trine_generate::{Generator, Sampling};
//! use trine_nn::initial_weights;
//!
//! let model = trine_testkit::toy::gpt();
//! // A run would read a checkpoint here; this model is untrained.
//! let generator = Generator::new(&model, 1, &mut |layout, bucket, out| {
//!     let weights = initial_weights(layout, bucket, 1, trine_buffer::DType::F32)?;
//!     out.copy_from_slice(weights.typed()?);
//!     Ok(())
//! })?;
//! let sampling = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, seed: 1 };
//! let mut seen = Vec::new();
//! let made = generator.generate(&[3, 1, 4], 5, None, &sampling, &mut |token| seen.push(token))?;
//! assert_eq!((made.len(), made == seen), (5, true));
//! # Ok::<(), trine_generate::GenerateError>(())
//! ```

mod error;
mod generator;
mod sampling;

pub use error::{GenerateError, LoadError};
pub use generator::{Generator, LoadWeights};
pub use sampling::{Sampling, sample};
