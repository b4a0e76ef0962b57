//! A communicator in front of another: fault injection, and mutants of a working program without a
//! switch in it.

mod faults;
mod link;
mod sealed;

pub use faults::{Fault, Faults, Injection};
pub use link::{Link, LinkSpeed, LinkTime};
pub use sealed::Sealed;

use crate::{CommError, Communicator, Done, Group, Pending, Recorder, Request, Site};
use std::fmt;
use std::sync::Arc;
use trine_buffer::DType;

/// A communicator in front of another: it sees every operation before it is posted; all else goes to
/// the one behind. Subgroups get a wrapper too.
pub trait Wrapper: fmt::Debug + Send + Sync {
    /// The communicator behind.
    fn inner(&self) -> &Arc<dyn Communicator>;

    /// Posts an operation, or what the wrapper makes of it, on the one behind.
    ///
    /// # Errors
    /// As [`Communicator::start`].
    fn forward(&self, request: Request) -> Result<Pending, CommError>;

    /// This wrapper's like for a subgroup of the one behind.
    fn in_front_of(&self, subgroup: Arc<dyn Communicator>) -> Arc<dyn Communicator>;

    /// Called before the group is divided, which is an operation of the backend's own and not shown
    /// to [`Wrapper::forward`].
    fn before_division(&self) {}
}

impl<W: Wrapper> Communicator for W {
    fn group(&self) -> &Group {
        self.inner().group()
    }

    fn start(&self, request: Request) -> Result<Pending, CommError> {
        self.forward(request)
    }

    fn subgroup(
        &self,
        colour: u64,
        name: &str,
        site: Site,
    ) -> Result<Arc<dyn Communicator>, CommError> {
        self.before_division();
        Ok(self.in_front_of(self.inner().subgroup(colour, name, site)?))
    }

    fn abort(&self, cause: &str) {
        self.inner().abort(cause);
    }

    fn check(&self) -> Result<(), CommError> {
        self.inner().check()
    }

    fn recorder(&self) -> &Arc<Recorder> {
        self.inner().recorder()
    }

    fn reserve(&self, dtype: DType, len: usize, messages: usize) -> Result<(), CommError> {
        self.inner().reserve(dtype, len, messages)
    }
}

/// What becomes of a tapped operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It goes on, as the closure has left it.
    Forward,
    /// It is over at once without any communication; its buffers come back as they are.
    Skip,
    /// It fails on this rank, with these words.
    Fail(String),
}

type Closure = dyn Fn(&Group, &mut Request) -> Action + Send + Sync;

/// Shows every operation to a closure before it is posted. The closure may change the request, or
/// sleep to delay it. Subgroups are tapped too; dividing a group is not shown.
///
/// ```
/// use trine_buffer::Buf;
/// use trine_comm::wrap::{Action, Tap};
/// use trine_comm::{CommError, Operation, ReduceOp, threads};
///
/// // What would training make of an all-reduce that never happens?
/// let values = threads::run(2, &Default::default(), |comm| {
///     let comm = Tap::around(comm, |_group, request| match request.operation {
///         Operation::AllReduce(_) if request.name.label() == "grad" => Action::Skip,
///         _ => Action::Forward,
///     });
///     let grad = Buf::from_vec(vec![comm.rank() as f32]);
///     Ok::<_, CommError>(comm.all_reduce(grad, ReduceOp::Sum, "grad")?.typed::<f32>()?[0])
/// });
/// assert_eq!(values.unwrap(), [0.0, 1.0]);
/// ```
pub struct Tap {
    inner: Arc<dyn Communicator>,
    closure: Arc<Closure>,
}

impl Tap {
    /// `inner` with `closure` in front.
    pub fn around(
        inner: Arc<dyn Communicator>,
        closure: impl Fn(&Group, &mut Request) -> Action + Send + Sync + 'static,
    ) -> Arc<dyn Communicator> {
        Arc::new(Self { inner, closure: Arc::new(closure) })
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tap({:?})", self.inner)
    }
}

impl Wrapper for Tap {
    fn inner(&self) -> &Arc<dyn Communicator> {
        &self.inner
    }

    fn forward(&self, mut request: Request) -> Result<Pending, CommError> {
        match (self.closure)(self.group(), &mut request) {
            Action::Forward => self.inner.start(request),
            Action::Skip => Ok(Pending::finished(Done { send: request.send, recv: request.recv })),
            Action::Fail(message) => {
                let call = Box::new(request.call(self.group(), 0));
                Err(CommError::Injected { call, message })
            }
        }
    }

    fn in_front_of(&self, subgroup: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        Arc::new(Self { inner: subgroup, closure: self.closure.clone() })
    }
}
