//! The few functions of MPI that are called directly, and the memory that they work on: all unsafe
//! code of this crate.
//!
//! rsmpi's requests borrow their buffers for a scope; here buffers move into an operation and come
//! back from it. [`Memory`] owns a buffer, lets MPI read and write ranges of it, and hands the
//! buffer out only when MPI is done with it. If it is dropped before, the buffer is leaked: memory
//! that MPI may still write to is never given back.

use crate::envelope::BYTES_MAX;
use mpi::ffi;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::raw::{c_char, c_int};
use std::thread::ThreadId;
use trine_buffer::{Buf, BufferError};
use trine_comm::CommError;

/// The world of MPI, used by the one thread that `MPI_THREAD_FUNNELED` allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    thread: ThreadId,
    /// Bytes of one message at most; longer ones go in several.
    chunk_bytes_max: usize,
    /// A send is over only when its receiver has begun to take it.
    synchronous: bool,
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) bytes: usize,
}

fn check(backend: &'static str, code: c_int) -> Result<(), CommError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut len: c_int = 0;
    // SAFETY: the text has the size that MPI_Error_string asks for, and MPI is initialised.
    let told = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut len) };
    let len = if told == ffi::MPI_SUCCESS as c_int { len.max(0) as usize } else { 0 };
    let message = String::from_utf8_lossy(&text[..len.min(text.len())]).into_owned();
    Err(CommError::Backend { backend, message })
}

impl Link {
    /// Called by the thread that has initialised MPI. Failures of MPI become errors from now on.
    pub(crate) fn new(chunk_bytes_max: usize, synchronous: bool) -> Result<Self, CommError> {
        // SAFETY: MPI is initialised; both handles are MPI's own constants.
        let code = unsafe {
            ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN)
        };
        check("MPI_Comm_set_errhandler", code)?;
        // An envelope goes in one piece.
        let chunk_bytes_max = chunk_bytes_max.clamp(BYTES_MAX, c_int::MAX as usize);
        Ok(Self { thread: std::thread::current().id(), chunk_bytes_max, synchronous })
    }

    /// Whether the calling thread is the one that may call MPI.
    pub(crate) fn is_here(&self) -> bool {
        std::thread::current().id() == self.thread
    }

    /// Refuses every other thread.
    pub(crate) fn check_thread(&self) -> Result<(), CommError> {
        if self.is_here() {
            return Ok(());
        }
        Err(CommError::Backend {
            backend: "MPI_THREAD_FUNNELED",
            message: "only the thread that initialised MPI may communicate".into(),
        })
    }
}

/// A send or receive that MPI works on.
#[derive(Debug)]
struct Flight {
    request: ffi::MPI_Request,
    bytes: Range<usize>,
    /// Whether MPI writes to the range.
    incoming: bool,
}

/// A buffer, and what MPI does with it.
#[derive(Debug)]
pub(crate) struct Memory {
    /// `None` only after [`Memory::into_buf`].
    owner: Option<Buf>,
    start: *mut u8,
    len: usize,
    flights: Vec<Flight>,
}

// SAFETY: `start` points into `owner`, which is owned and may be sent; requests are handles that are
// given to MPI by the thread of the link alone, which every function that does so checks.
unsafe impl Send for Memory {}

impl Memory {
    /// # Errors
    /// If it lies on a device: MPI is given memory of the host only.
    pub(crate) fn new(mut owner: Buf) -> Result<Self, BufferError> {
        let bytes = owner.slice_mut().bytes()?;
        let (start, len) = (bytes.as_mut_ptr(), bytes.len());
        Ok(Self { owner: Some(owner), start, len, flights: Vec::new() })
    }

    /// Whether MPI is done with it.
    pub(crate) fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// The buffer, once MPI is done with it.
    ///
    /// # Panics
    /// If it is not.
    pub(crate) fn into_buf(mut self) -> Buf {
        assert!(self.is_idle(), "the buffer is under way");
        self.owner.take().expect("invariant: taken once, here")
    }

    /// The buffer for the calling rank's own work, while MPI is done with it.
    ///
    /// # Panics
    /// If it is not.
    pub(crate) fn buf_mut(&mut self) -> &mut Buf {
        assert!(self.is_idle(), "the buffer is under way");
        self.owner.as_mut().expect("invariant: only `into_buf` takes it, with `self`")
    }

    /// Where the range begins, if it lies inside and no flight that conflicts overlaps it.
    fn at(&self, bytes: &Range<usize>, written: bool) -> *mut u8 {
        assert!(bytes.start <= bytes.end && bytes.end <= self.len, "a range inside the buffer");
        let overlaps =
            |flight: &Flight| flight.bytes.start < bytes.end && bytes.start < flight.bytes.end;
        let conflict = self.flights.iter().any(|f| overlaps(f) && (written || f.incoming));
        assert!(!conflict, "bytes that MPI works on");
        // SAFETY: the offset was checked to be inside the allocation, or one past its end.
        unsafe { self.start.add(bytes.start) }
    }

    /// A copy of a range that MPI does not write to.
    pub(crate) fn read(&self, bytes: Range<usize>) -> Vec<u8> {
        let at = self.at(&bytes, false);
        // SAFETY: the range is inside the owned, initialised allocation, and nobody writes to it:
        // MPI does not (checked above), and `&self` keeps others out.
        unsafe { std::slice::from_raw_parts(at, bytes.len()) }.to_vec()
    }

    /// Fills a range that MPI does not use.
    ///
    /// # Panics
    /// If `from` is of another length.
    pub(crate) fn write(&mut self, bytes: Range<usize>, from: &[u8]) {
        assert_eq!(bytes.len(), from.len(), "a range as long as what fills it");
        let at = self.at(&bytes, true);
        // SAFETY: both are `from.len()` bytes, `from` is borrowed from elsewhere, the range is
        // inside the owned allocation and MPI does not use it (checked above).
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), at, from.len()) };
    }

    /// Starts sending a range.
    pub(crate) fn send(
        &mut self,
        link: &Link,
        bytes: Range<usize>,
        to: i32,
        tag: i32,
    ) -> Result<(), CommError> {
        link.check_thread()?;
        for chunk in chunks(bytes, link.chunk_bytes_max) {
            let at = self.at(&chunk, false);
            let mut request = MaybeUninit::uninit();
            let count = chunk.len() as c_int;
            // SAFETY: the range stays valid and is not written to until the flight is over: the
            // owner is kept, and leaked if need be, and `at` refuses writers.
            let code = unsafe {
                let start = if link.synchronous { ffi::MPI_Issend } else { ffi::MPI_Isend };
                let (byte, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
                start(at.cast(), count, byte, to, tag, world, request.as_mut_ptr())
            };
            check("MPI_Isend", code)?;
            // SAFETY: a call that succeeds has set the request.
            let request = unsafe { request.assume_init() };
            self.flights.push(Flight { request, bytes: chunk, incoming: false });
        }
        Ok(())
    }

    /// Starts filling a range from the rank `from`, or from anybody.
    pub(crate) fn recv(
        &mut self,
        link: &Link,
        bytes: Range<usize>,
        from: Option<i32>,
        tag: i32,
    ) -> Result<(), CommError> {
        link.check_thread()?;
        for chunk in chunks(bytes, link.chunk_bytes_max) {
            let at = self.at(&chunk, true);
            let mut request = MaybeUninit::uninit();
            let count = chunk.len() as c_int;
            // SAFETY: the range stays valid and unused by others until the flight is over: the
            // owner is kept, and leaked if need be, and `at` refuses everybody else.
            let code = unsafe {
                let (byte, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
                let source = from.unwrap_or(ffi::RSMPI_ANY_SOURCE);
                ffi::MPI_Irecv(at.cast(), count, byte, source, tag, world, request.as_mut_ptr())
            };
            check("MPI_Irecv", code)?;
            // SAFETY: a call that succeeds has set the request.
            let request = unsafe { request.assume_init() };
            self.flights.push(Flight { request, bytes: chunk, incoming: true });
        }
        Ok(())
    }

    /// Lets MPI work, and calls `over` for each flight that has ended.
    pub(crate) fn poll(
        &mut self,
        link: &Link,
        mut over: impl FnMut(Arrival),
    ) -> Result<(), CommError> {
        link.check_thread()?;
        let mut index = 0;
        while index < self.flights.len() {
            let Some(arrival) = test(&mut self.flights[index].request)? else {
                index += 1;
                continue;
            };
            let flight = self.flights.remove(index);
            if flight.incoming {
                over(arrival);
            }
        }
        Ok(())
    }

    /// Takes back a receive that nothing has matched. Waits for MPI's word, which does not depend on
    /// other ranks.
    pub(crate) fn cancel(&mut self, link: &Link) -> Result<(), CommError> {
        link.check_thread()?;
        for flight in &mut self.flights {
            // SAFETY: the request is one that MPI works on; it is completed by `test` below.
            check("MPI_Cancel", unsafe { ffi::MPI_Cancel(&mut flight.request) })?;
            while test(&mut flight.request)?.is_none() {
                std::thread::yield_now();
            }
        }
        self.flights.clear();
        Ok(())
    }
}

/// Whether a request is over. Called on the link's thread.
fn test(request: &mut ffi::MPI_Request) -> Result<Option<Arrival>, CommError> {
    let mut done: c_int = 0;
    let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
    // SAFETY: the request is one that MPI works on; done and status are MPI's to fill.
    check("MPI_Test", unsafe { ffi::MPI_Test(request, &mut done, status.as_mut_ptr()) })?;
    if done == 0 {
        return Ok(None);
    }
    let mut count: c_int = 0;
    // SAFETY: MPI_Test has filled the status (which was zeroed, a valid value of its plain integers,
    // for sends, of which MPI leaves parts unset).
    let code = unsafe { ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &mut count) };
    check("MPI_Get_count", code)?;
    Ok(Some(Arrival { bytes: count.max(0) as usize }))
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.is_idle() {
            // MPI may still read it or write to it.
            std::mem::forget(self.owner.take());
        }
    }
}

/// A range in pieces of at most `most` bytes; none for an empty range.
fn chunks(bytes: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let end = bytes.end;
    bytes.step_by(most).map(move |start| start..end.min(start + most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::AssertUnwindSafe;

    #[test]
    fn long_messages_go_in_pieces() {
        let of = |bytes, most| chunks(bytes, most).collect::<Vec<_>>();
        assert!(of(3..3, 4).is_empty());
        assert_eq!(of(0..8, 4), [0..4, 4..8]);
        assert_eq!(of(1..10, 4), [1..5, 5..9, 9..10]);
    }

    #[test]
    fn memory_is_read_and_written_by_ranges() {
        let mut memory = Memory::new(Buf::from_vec(vec![1u32, 2, 3])).unwrap();
        memory.write(4..8, &9u32.to_ne_bytes());
        assert_eq!(memory.read(0..4), 1u32.to_ne_bytes());
        assert_eq!(memory.into_buf().typed::<u32>().unwrap(), [1, 9, 3]);
    }

    #[test]
    fn a_range_outside_is_refused() {
        let memory = Memory::new(Buf::from_vec(vec![0u8; 3])).unwrap();
        let outside = std::panic::catch_unwind(AssertUnwindSafe(|| memory.read(2..4)));
        assert!(outside.is_err());
    }
}
