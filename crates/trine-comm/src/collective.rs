//! Collectives over all ranks' buffers at once: what the last arriver of a group of threads runs.
//!
//! Work goes block by block, so that a block of every rank stays in the first-level cache while it
//! is combined and written out; the inner loops are plain slice loops that the compiler vectorises.

use crate::tree::split_at;
use crate::{Operation, ReduceOp};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use trine_buffer::{Buf, BufferError, DType, Element, Slice, SliceMut};

/// Elements that are combined at a time.
const BLOCK: usize = 1024;

/// Bytes of each rank's buffer below which a reduction is not worth another thread: starting one takes
/// some tens of microseconds, as long as combining a few hundred KiB.
const SHARE_BYTES_MIN: usize = 2 << 20;

/// One rank's buffers.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) send: Option<Buf>,
    pub(crate) recv: Option<Buf>,
}

/// Elements that can be reduced.
trait Number: Element {
    /// In which sums are accumulated.
    type Acc: Copy + Default;
    fn load(from: &[Self], to: &mut [Self::Acc]);
    fn store(from: &[Self::Acc], to: &mut [Self]);
    fn add(left: Self::Acc, right: Self::Acc) -> Self::Acc;
    fn max(left: Self::Acc, right: Self::Acc) -> Self::Acc;
    fn divide(sum: Self::Acc, ranks: usize) -> Self::Acc;
}

macro_rules! own_accumulator {
    () => {
        type Acc = Self;
        fn load(from: &[Self], to: &mut [Self]) {
            to.copy_from_slice(from);
        }
        fn store(from: &[Self], to: &mut [Self]) {
            to.copy_from_slice(from);
        }
    };
}

macro_rules! float_arithmetic {
    ($acc:ty) => {
        fn add(left: $acc, right: $acc) -> $acc {
            left + right
        }
        // A NaN on either side wins.
        fn max(left: $acc, right: $acc) -> $acc {
            if left > right || left.is_nan() { left } else { right }
        }
        fn divide(sum: $acc, ranks: usize) -> $acc {
            sum / ranks as $acc
        }
    };
}

macro_rules! integer {
    ($type:ty) => {
        impl Number for $type {
            own_accumulator!();
            fn add(left: Self, right: Self) -> Self {
                left.wrapping_add(right)
            }
            fn max(left: Self, right: Self) -> Self {
                Ord::max(left, right)
            }
            fn divide(sum: Self, ranks: usize) -> Self {
                // The quotient is at most `sum`, so it fits.
                (sum as u64 / ranks as u64) as Self
            }
        }
    };
}

impl Number for f64 {
    own_accumulator!();
    float_arithmetic!(f64);
}

impl Number for f32 {
    own_accumulator!();
    float_arithmetic!(f32);
}

integer!(u64);
integer!(u32);
integer!(u8);

impl Number for bf16 {
    type Acc = f32;
    float_arithmetic!(f32);
    // The same bits as the conversions of `half`, without branches, so that they vectorise.
    fn load(from: &[Self], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
    fn store(from: &[f32], to: &mut [Self]) {
        for (to, from) in to.iter_mut().zip(from) {
            let bits = from.to_bits();
            // To nearest, ties to even: half a unit less one, plus the last bit kept, carries if up.
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let nan = (bits >> 16) | 0x40;
            *to = Self::from_bits(if from.is_nan() { nan } else { rounded } as u16);
        }
    }
}

impl Number for f16 {
    type Acc = f32;
    float_arithmetic!(f32);
    // The slice conversions of `half` use the processor's instructions where it has them.
    fn load(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    fn store(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

/// Runs a collective: `payloads` holds every rank's buffers in rank order, of extents that
/// [`Request::check`](crate::Request::check) has accepted on each rank and that are alike on all.
///
/// Large reductions are shared out to at most `helpers` threads more: as many as there are ranks that
/// wait for this and so leave their cores idle. Each element is combined in the same order.
pub(crate) fn execute(
    operation: Operation,
    payloads: &mut [Payload],
    helpers: usize,
) -> Result<(), BufferError> {
    let dtype = payloads.iter().find_map(|payload| payload.send.as_ref()).map(Buf::dtype);
    match dtype {
        None => Ok(()), // a barrier
        Some(DType::F64) => typed::<f64>(operation, payloads, helpers),
        Some(DType::F32) => typed::<f32>(operation, payloads, helpers),
        Some(DType::Bf16) => typed::<bf16>(operation, payloads, helpers),
        Some(DType::F16) => typed::<f16>(operation, payloads, helpers),
        Some(DType::U64) => typed::<u64>(operation, payloads, helpers),
        Some(DType::U32) => typed::<u32>(operation, payloads, helpers),
        Some(DType::U8) => typed::<u8>(operation, payloads, helpers),
    }
}

/// Combines several ranks' contributions in the order of [`tree_fold`](crate::tree_fold), as every
/// backend's reductions do: `contributions` holds ranks × n elements, rank after rank, `out` n.
/// What a backend calls that moves bytes itself.
///
/// ```
/// use trine_buffer::{Buf, DType, Slice};
/// use trine_comm::{ReduceOp, reduce};
///
/// let mut out = Buf::zeros(DType::F32, 2);
/// reduce(ReduceOp::Sum, Slice::new(&[1.0f32, 2.0, 10.0, 20.0]), out.slice_mut())?;
/// assert_eq!(out.typed::<f32>()?, [11.0, 22.0]);
/// # Ok::<(), trine_buffer::BufferError>(())
/// ```
///
/// # Errors
/// Buffers of two types.
///
/// # Panics
/// If the contributions are not a multiple of `out` long.
pub fn reduce(
    op: ReduceOp,
    contributions: Slice<'_>,
    out: SliceMut<'_>,
) -> Result<(), BufferError> {
    fn typed<T: Number>(
        op: ReduceOp,
        contributions: Slice<'_>,
        out: SliceMut<'_>,
    ) -> Result<(), BufferError> {
        let (all, out) = (contributions.typed::<T>()?, out.typed::<T>()?);
        if out.is_empty() {
            return Ok(());
        }
        assert!(all.len().is_multiple_of(out.len()), "contributions of unequal length");
        reduce_scatter(op, &all.chunks_exact(out.len()).collect::<Vec<_>>(), vec![out]);
        Ok(())
    }
    match out.dtype() {
        DType::F64 => typed::<f64>(op, contributions, out),
        DType::F32 => typed::<f32>(op, contributions, out),
        DType::Bf16 => typed::<bf16>(op, contributions, out),
        DType::F16 => typed::<f16>(op, contributions, out),
        DType::U64 => typed::<u64>(op, contributions, out),
        DType::U32 => typed::<u32>(op, contributions, out),
        DType::U8 => typed::<u8>(op, contributions, out),
    }
}

fn typed<T: Number>(
    operation: Operation,
    payloads: &mut [Payload],
    helpers: usize,
) -> Result<(), BufferError> {
    match operation {
        Operation::AllReduce(op) => {
            let shares = shares(sends_mut::<T>(payloads)?, helpers);
            share_out(shares, |mut share| all_reduce(op, &mut share));
        }
        Operation::Broadcast { root } => broadcast(root, &mut sends_mut::<T>(payloads)?),
        Operation::AllGather => {
            let (sends, recvs) = sends_and_recvs::<T>(payloads)?;
            for recv in recvs {
                for (part, send) in recv.chunks_exact_mut(sends[0].len().max(1)).zip(&sends) {
                    part.copy_from_slice(send);
                }
            }
        }
        Operation::AllToAll => {
            let (sends, recvs) = sends_and_recvs::<T>(payloads)?;
            let len = sends[0].len() / sends.len();
            for (rank, recv) in recvs.into_iter().enumerate() {
                for (part, send) in recv.chunks_exact_mut(len.max(1)).zip(&sends) {
                    part.copy_from_slice(&send[rank * len..][..len]);
                }
            }
        }
        Operation::ReduceScatter(op) => {
            let (sends, recvs) = sends_and_recvs::<T>(payloads)?;
            reduce_scatter(op, &sends, recvs);
        }
        // Messages are not executed here, and a barrier has no elements.
        Operation::Send { .. }
        | Operation::Recv { .. }
        | Operation::Exchange { .. }
        | Operation::Barrier => {}
    }
    Ok(())
}

fn sends_mut<T: Number>(payloads: &mut [Payload]) -> Result<Vec<&mut [T]>, BufferError> {
    payloads.iter_mut().filter_map(|p| p.send.as_mut()).map(Buf::typed_mut).collect()
}

type SendsAndRecvs<'a, T> = (Vec<&'a [T]>, Vec<&'a mut [T]>);

fn sends_and_recvs<T: Number>(
    payloads: &mut [Payload],
) -> Result<SendsAndRecvs<'_, T>, BufferError> {
    let mut sends = Vec::with_capacity(payloads.len());
    let mut recvs = Vec::with_capacity(payloads.len());
    for payload in payloads {
        if let (Some(send), Some(recv)) = (&payload.send, &mut payload.recv) {
            sends.push(send.typed()?);
            recvs.push(recv.typed_mut()?);
        }
    }
    Ok((sends, recvs))
}

fn broadcast<T: Number>(root: usize, bufs: &mut [&mut [T]]) {
    let (before, rest) = bufs.split_at_mut(root);
    if let Some((source, after)) = rest.split_first_mut() {
        for buf in before.iter_mut().chain(after) {
            buf.copy_from_slice(source);
        }
    }
}

/// Cuts all ranks' buffers at the same elements, into one share for this thread and one for each
/// helper that is worth it.
fn shares<T: Number>(bufs: Vec<&mut [T]>, helpers: usize) -> Vec<Vec<&mut [T]>> {
    let len = bufs.first().map_or(0, |buf| buf.len());
    let worth = size_of::<T>() * len / SHARE_BYTES_MIN;
    let count = worth.clamp(1, helpers + 1);
    let each = len.div_ceil(count).next_multiple_of(BLOCK);
    let mut shares: Vec<Vec<&mut [T]>> = (0..count).map(|_| Vec::new()).collect();
    for buf in bufs {
        let mut rest = buf;
        for share in &mut shares {
            let (own, after) = rest.split_at_mut(each.min(rest.len()));
            share.push(own);
            rest = after;
        }
    }
    shares
}

/// Works on the last share here and on each other one on a thread of its own; here too if the system
/// has none to give.
fn share_out<S: Send>(mut shares: Vec<S>, work: impl Fn(S) + Sync) {
    let Some(own) = shares.pop() else { return };
    if shares.is_empty() {
        return work(own);
    }
    let (queue, work) = (&Mutex::new(shares), &work);
    // A helper that cannot start leaves its share to the others.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    std::thread::scope(|scope| {
        let helpers = queue.lock().unwrap_or_else(PoisonError::into_inner).len();
        for _ in 0..helpers {
            let help = move || next().into_iter().for_each(work);
            let _ = std::thread::Builder::new().name("reduction".into()).spawn_scoped(scope, help);
        }
        work(own);
        while let Some(left) = next() {
            work(left);
        }
    });
}

fn all_reduce<T: Number>(op: ReduceOp, bufs: &mut [&mut [T]]) {
    let (ranks, len) = (bufs.len(), bufs[0].len());
    let mut sum = [T::Acc::default(); BLOCK];
    for block in blocks(len) {
        let sum = &mut sum[..block.len()];
        tree::<T>(op, &|rank| &bufs[rank][block.clone()], 0..ranks, sum);
        finish::<T>(op, ranks, sum);
        if let Some((first, others)) = bufs.split_first_mut() {
            let first = &mut first[block.clone()];
            T::store(sum, first);
            for other in others {
                other[block.clone()].copy_from_slice(first);
            }
        }
    }
}

fn reduce_scatter<T: Number>(op: ReduceOp, sends: &[&[T]], recvs: Vec<&mut [T]>) {
    let mut sum = [T::Acc::default(); BLOCK];
    for (part, recv) in recvs.into_iter().enumerate() {
        let start = part * recv.len();
        for block in blocks(recv.len()) {
            let sum = &mut sum[..block.len()];
            let leaf = |rank: usize| &sends[rank][start + block.start..start + block.end];
            tree::<T>(op, &leaf, 0..sends.len(), sum);
            finish::<T>(op, sends.len(), sum);
            T::store(sum, &mut recv[block]);
        }
    }
}

fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(len))
}

/// Combines one block of the given ranks in the order of [`crate::tree_fold`].
fn tree<'a, T: Number>(
    op: ReduceOp,
    leaf: &impl Fn(usize) -> &'a [T],
    ranks: Range<usize>,
    out: &mut [T::Acc],
) {
    if ranks.len() == 1 {
        return T::load(leaf(ranks.start), out);
    }
    let middle = ranks.start + split_at(ranks.len());
    tree(op, leaf, ranks.start..middle, out);
    let mut right = [T::Acc::default(); BLOCK];
    let right = &mut right[..out.len()];
    tree(op, leaf, middle..ranks.end, right);
    match op {
        ReduceOp::Sum | ReduceOp::Mean => combine(out, right, T::add),
        ReduceOp::Max => combine(out, right, T::max),
    }
}

fn combine<A: Copy>(out: &mut [A], right: &[A], with: impl Fn(A, A) -> A) {
    for (out, right) in out.iter_mut().zip(right) {
        *out = with(*out, *right);
    }
}

/// What comes after the tree and before rounding.
fn finish<T: Number>(op: ReduceOp, ranks: usize, sum: &mut [T::Acc]) {
    match op {
        ReduceOp::Sum | ReduceOp::Max => {}
        ReduceOp::Mean => sum.iter_mut().for_each(|sum| *sum = T::divide(*sum, ranks)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many threads share the work, the bits are the same.
    #[test]
    fn shares_do_not_change_the_sum() {
        let mut compared = 0;
        for len in [0, 1, BLOCK, (5 << 20) + 3] {
            let payloads = || -> Vec<Payload> {
                let value = |rank: usize, at: usize| ((at * 7 + rank * 13) % 1001) as f32 * 0.37;
                let buf = |rank| Buf::from_vec((0..len).map(|at| value(rank, at)).collect());
                (0..3).map(|rank| Payload { send: Some(buf(rank)), recv: None }).collect()
            };
            let reduced = |helpers| {
                let mut payloads = payloads();
                execute(Operation::AllReduce(ReduceOp::Mean), &mut payloads, helpers).unwrap();
                let sums = payloads.into_iter().filter_map(|payload| payload.send);
                sums.map(|sum| sum.into_vec::<f32>().unwrap()).collect::<Vec<_>>()
            };
            let alone = reduced(0);
            for helpers in [1, 2, 7] {
                assert!(reduced(helpers) == alone, "{len} elements, {helpers} helpers");
                compared += 1;
            }
        }
        assert_eq!(compared, 12);
        let mut bufs = [vec![0f32; 3 << 20], vec![0f32; 3 << 20]];
        let all = bufs.iter_mut().map(Vec::as_mut_slice).collect();
        let lens: Vec<usize> = shares(all, 1).iter().map(|share| share[0].len()).collect();
        assert_eq!(lens, [3 << 19, 3 << 19]);
    }

    #[test]
    fn bf16_is_rounded_as_half_does() {
        let mut checked = 0u32;
        // Every upper half with the lower halves around a tie; NaN, infinities, subnormals included.
        for upper in 0..=u16::MAX {
            for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits((u32::from(upper) << 16) | lower);
                let mut out = [bf16::ZERO];
                bf16::store(&[value], &mut out);
                assert_eq!(out[0].to_bits(), bf16::from_f32(value).to_bits(), "{value}");
                checked += 1;
            }
            let mut wide = [0.0];
            bf16::load(&[bf16::from_bits(upper)], &mut wide);
            let of_half = bf16::from_bits(upper).to_f32();
            assert!(wide[0] == of_half || (wide[0].is_nan() && of_half.is_nan()));
        }
        assert_eq!(checked, 6 << 16);
    }
}
