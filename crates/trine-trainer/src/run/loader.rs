//! A rank's batches, each made while the rank trains on the one before.

use crate::TrainError;
use crate::engine::Batch;
use crossbeam::channel::{Receiver, bounded};
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Batches of consecutive steps, from a thread that ends with their last or when this is dropped.
#[derive(Debug)]
pub(crate) struct Loader<'scope> {
    batches: Receiver<Result<Batch, TrainError>>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Loader<'scope> {
    /// Starts to make the batches of `steps`, one ahead of what is asked for.
    ///
    /// # Errors
    /// No thread.
    pub(crate) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        steps: Range<u64>,
        make: impl Fn(u64) -> Result<Batch, TrainError> + Send + 'scope,
    ) -> Result<Self, TrainError> {
        // Without room in it: the one that is ready waits with its maker.
        let (hand_over, batches) = bounded(0);
        let body = move || {
            let mut steps = steps;
            let _ = steps.try_for_each(|step| hand_over.send(make(step)));
        };
        let thread = Builder::new().name("loader".into()).spawn_scoped(scope, body);
        let thread =
            thread.map_err(|source| TrainError::Thread { what: "load batches", source })?;
        Ok(Self { batches, thread: Some(thread) })
    }

    /// The next batch.
    ///
    /// # Errors
    /// Why it could not be made.
    ///
    /// # Panics
    /// As its maker did; and after the last batch.
    pub(crate) fn next(&mut self) -> Result<Batch, TrainError> {
        self.batches.recv().unwrap_or_else(|_| {
            let ended = self.thread.take().map(ScopedJoinHandle::join);
            resume_unwind(
                ended.and_then(Result::err).expect("invariant: as many as were asked for"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    fn batch(step: u64) -> Batch {
        Batch { inputs: vec![step as u32], targets: vec![], document_start: None }
    }

    #[test]
    fn one_batch_is_made_ahead_and_no_more() {
        let made = AtomicU64::new(0);
        thread::scope(|scope| {
            let make = |step| {
                made.fetch_add(1, Ordering::SeqCst);
                Ok(batch(step))
            };
            let mut loader = Loader::start(scope, 5..100, make).unwrap();
            for taken in 0..3 {
                assert_eq!(loader.next().unwrap().inputs, [5 + taken as u32]);
                let began = Instant::now();
                while made.load(Ordering::SeqCst) < taken + 2 {
                    assert!(began.elapsed() < Duration::from_secs(20));
                    thread::yield_now();
                }
                thread::sleep(Duration::from_millis(5));
                assert_eq!(made.load(Ordering::SeqCst), taken + 2);
            }
        });
    }

    #[test]
    fn an_error_and_a_panic_arrive_where_the_batch_is_asked_for() {
        thread::scope(|scope| {
            let make = |step| match step {
                0 => Ok(batch(0)),
                1 => Err(TrainError::Quantity("text".into())),
                _ => panic!("made no batch"),
            };
            let mut loader = Loader::start(scope, 0..9, make).unwrap();
            assert_eq!(loader.next().unwrap().inputs, [0]);
            assert_eq!(loader.next().unwrap_err().to_string(), "this run keeps no \"text\"");
            let panic = catch_unwind(AssertUnwindSafe(|| loader.next())).unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"made no batch"));
        });
    }
}
