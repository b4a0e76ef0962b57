//! Collectives over all ranks' buffers at once: what the last arriver of a group of threads runs.
//!
//! Work goes block by block, so that a block of every rank stays in the first-level cache while it
//! is combined and written out; the inner loops are plain slice loops that the compiler vectorises.

use crate::device::{self, Payload};
use crate::tree::split_at;
use crate::{Operation, ReduceOp};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use trine_buffer::{BufferError, DType, Element, Slice, SliceMut};

/// Elements that are combined at a time.
const BLOCK: usize = 1024;

/// Bytes of results, of all ranks together, that are worth another thread: starting one takes some tens
/// of microseconds, as long as filling a few hundred KiB.
const SHARE_BYTES_MIN: usize = 4 << 20;

/// Elements that can be reduced.
trait Number: Element {
    /// In which sums are accumulated.
    type Acc: Copy + Default;
    fn load(from: &[Self], to: &mut [Self::Acc]);
    /// The elements themselves, where sums are of their type.
    fn as_accumulators(_: &[Self]) -> Option<&[Self::Acc]> {
        None
    }
    fn store(from: &[Self::Acc], to: &mut [Self]);
    fn add(left: Self::Acc, right: Self::Acc) -> Self::Acc;
    fn max(left: Self::Acc, right: Self::Acc) -> Self::Acc;
    fn divide(sum: Self::Acc, ranks: usize) -> Self::Acc;
}

macro_rules! own_accumulator {
    () => {
        type Acc = Self;
        fn as_accumulators(elements: &[Self]) -> Option<&[Self]> {
            Some(elements)
        }
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
        vectorised(|| {
            for (to, from) in to.iter_mut().zip(from) {
                *to = f32::from_bits(u32::from(from.to_bits()) << 16);
            }
        });
    }
    fn store(from: &[f32], to: &mut [Self]) {
        vectorised(|| {
            for (to, from) in to.iter_mut().zip(from) {
                let bits = from.to_bits();
                // To nearest, ties to even: half a unit less one, plus the last bit kept, carries if up.
                let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
                let nan = (bits >> 16) | 0x40;
                *to = Self::from_bits(if from.is_nan() { nan } else { rounded } as u16);
            }
        });
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
/// Large ones are shared out to at most `helpers` threads more: as many as there are ranks that wait
/// for this and so leave their cores idle. Each element is combined in the same order.
pub(crate) fn execute(
    operation: Operation,
    payloads: &mut [Payload],
    helpers: usize,
) -> Result<(), BufferError> {
    if let Some(queued) = device::execute(operation, payloads) {
        return queued;
    }
    let send = payloads.iter().find_map(|payload| payload.send.as_ref());
    let dtype = send.map(|send| send.dtype());
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
        let sends: Vec<&[T]> = all.chunks_exact(out.len()).collect();
        reduce_scatter(op, &sends, Share { start: 0, outs: vec![out] });
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
            let outs = sends_mut::<T>(payloads)?;
            share_out(shares(outs, helpers), |share| all_reduce(op, share));
        }
        Operation::Broadcast { root } => {
            let outs = sends_mut::<T>(payloads)?;
            share_out(shares(outs, helpers), |share| broadcast(root, share));
        }
        Operation::AllGather => {
            let (sends, outs) = sends_and_recvs::<T>(payloads)?;
            share_out(shares(outs, helpers), |share| concatenate(|_| sends.clone(), share));
        }
        Operation::AllToAll => {
            let (sends, outs) = sends_and_recvs::<T>(payloads)?;
            let len = sends[0].len() / sends.len();
            let parts = |rank| sends.iter().map(|send| &send[rank * len..][..len]).collect();
            share_out(shares(outs, helpers), |share| concatenate(parts, share));
        }
        Operation::ReduceScatter(op) => {
            let (sends, outs) = sends_and_recvs::<T>(payloads)?;
            share_out(shares(outs, helpers), |share| reduce_scatter(op, &sends, share));
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
    payloads.iter_mut().filter_map(|p| p.send.as_mut()).map(|own| own.typed_mut()).collect()
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

/// The same elements of every rank's result, which one thread fills.
struct Share<'a, T> {
    /// The first of them.
    start: usize,
    /// By rank.
    outs: Vec<&'a mut [T]>,
}

/// Cuts all ranks' results at the same elements, into one share for this thread and one for each helper
/// that is worth it.
fn shares<T: Number>(outs: Vec<&mut [T]>, helpers: usize) -> Vec<Share<'_, T>> {
    let len = outs.first().map_or(0, |out| out.len());
    let worth = size_of::<T>() * len * outs.len() / SHARE_BYTES_MIN;
    let count = worth.clamp(1, helpers + 1);
    let each = len.div_ceil(count).next_multiple_of(BLOCK);
    let share = |index| Share { start: index * each, outs: Vec::with_capacity(outs.len()) };
    let mut shares: Vec<Share<'_, T>> = (0..count).map(share).collect();
    for out in outs {
        let mut rest = out;
        for share in &mut shares {
            let (own, after) = rest.split_at_mut(each.min(rest.len()));
            share.outs.push(own);
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

fn broadcast<T: Number>(root: usize, mut share: Share<'_, T>) {
    let (before, rest) = share.outs.split_at_mut(root);
    if let Some((source, after)) = rest.split_first_mut() {
        for out in before.iter_mut().chain(after) {
            out.copy_from_slice(source);
        }
    }
}

/// Puts the parts of each rank, which are equally long, one behind the other.
fn concatenate<'a, T: Number>(parts: impl Fn(usize) -> Vec<&'a [T]>, share: Share<'_, T>) {
    for (rank, mut out) in share.outs.into_iter().enumerate() {
        let (parts, mut at) = (parts(rank), share.start);
        while !out.is_empty() {
            let from = &parts[at / parts[0].len()][at % parts[0].len()..];
            let (now, later) = out.split_at_mut(from.len().min(out.len()));
            now.copy_from_slice(&from[..now.len()]);
            (at, out) = (at + now.len(), later);
        }
    }
}

fn all_reduce<T: Number>(op: ReduceOp, mut share: Share<'_, T>) {
    let (ranks, len) = (share.outs.len(), share.outs[0].len());
    let mut sum = [T::Acc::default(); BLOCK];
    for block in blocks(len) {
        let sum = &mut sum[..block.len()];
        tree::<T>(op, &|rank| &share.outs[rank][block.clone()], 0..ranks, sum);
        finish::<T>(op, ranks, sum);
        if let Some((first, others)) = share.outs.split_first_mut() {
            let first = &mut first[block.clone()];
            T::store(sum, first);
            for other in others {
                other[block.clone()].copy_from_slice(first);
            }
        }
    }
}

fn reduce_scatter<T: Number>(op: ReduceOp, sends: &[&[T]], share: Share<'_, T>) {
    let each = sends[0].len() / share.outs.len();
    let mut sum = [T::Acc::default(); BLOCK];
    for (part, out) in share.outs.into_iter().enumerate() {
        let start = part * each + share.start;
        for block in blocks(out.len()) {
            let sum = &mut sum[..block.len()];
            let leaf = |rank: usize| &sends[rank][start + block.start..start + block.end];
            tree::<T>(op, &leaf, 0..sends.len(), sum);
            finish::<T>(op, sends.len(), sum);
            T::store(sum, &mut out[block]);
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
    let in_place = if ranks.end - middle == 1 { T::as_accumulators(leaf(middle)) } else { None };
    if let Some(right) = in_place {
        return combine::<T>(op, out, right);
    }
    let mut right = [T::Acc::default(); BLOCK];
    let right = &mut right[..out.len()];
    tree(op, leaf, middle..ranks.end, right);
    combine::<T>(op, out, right);
}

fn combine<T: Number>(op: ReduceOp, out: &mut [T::Acc], right: &[T::Acc]) {
    let both = out.iter_mut().zip(right);
    match op {
        ReduceOp::Sum | ReduceOp::Mean => {
            vectorised(|| both.for_each(|(out, right)| *out = T::add(*out, *right)));
        }
        ReduceOp::Max => {
            vectorised(|| both.for_each(|(out, right)| *out = T::max(*out, *right)));
        }
    }
}

/// Runs a loop as the compiler has vectorised it for the best instructions of this processor.
#[inline(always)]
fn vectorised(work: impl FnOnce()) {
    pulp::Arch::new().dispatch(work);
}

/// What comes after the tree and before rounding.
fn finish<T: Number>(op: ReduceOp, ranks: usize, sum: &mut [T::Acc]) {
    match op {
        ReduceOp::Sum | ReduceOp::Max => {}
        ReduceOp::Mean => {
            vectorised(|| sum.iter_mut().for_each(|sum| *sum = T::divide(*sum, ranks)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Parcel;
    use trine_buffer::Buf;

    /// However many threads share the work, the bits are the same, and those of the plain definition.
    #[test]
    fn shares_do_not_change_the_results() {
        const RANKS: usize = 3;
        let mean = ReduceOp::Mean;
        let operations = [
            (Operation::AllReduce(mean), 1, None),
            (Operation::Broadcast { root: 1 }, 1, None),
            (Operation::AllGather, 1, Some(RANKS)),
            (Operation::ReduceScatter(mean), RANKS, Some(1)),
            (Operation::AllToAll, RANKS, Some(RANKS)),
        ];
        let value = |rank: usize, at: usize| ((at * 7 + rank * 13) % 1001) as f32 * 0.37;
        let mut compared = 0;
        for (operation, send_parts, recv_parts) in operations {
            for each in [0, 1, BLOCK, (1 << 20) + 3] {
                let send = |rank| (0..each * send_parts).map(|at| value(rank, at)).collect();
                let run = |helpers| -> Vec<Vec<f32>> {
                    let payload = |rank| Payload {
                        send: Some(Parcel::plain(Buf::from_vec::<f32>(send(rank)))),
                        recv: recv_parts
                            .map(|parts| Parcel::plain(Buf::zeros(DType::F32, each * parts))),
                    };
                    let mut payloads: Vec<Payload> = (0..RANKS).map(payload).collect();
                    execute(operation, &mut payloads, helpers).unwrap();
                    let outs = payloads.into_iter().filter_map(|own| own.recv.or(own.send));
                    outs.map(|out| out.open().unwrap().into_vec().unwrap()).collect()
                };
                let averaged = |at| ((value(0, at) + value(1, at)) + value(2, at)) / 3.0;
                let expected = |rank: usize, at: usize| match operation {
                    Operation::AllReduce(_) => averaged(at),
                    Operation::Broadcast { root } => value(root, at),
                    Operation::AllGather => value(at / each, at % each),
                    Operation::ReduceScatter(_) => averaged(rank * each + at),
                    _ => value(at / each, rank * each + at % each),
                };
                let len = each * recv_parts.unwrap_or(1);
                for helpers in [0, 1, 2, 7] {
                    for (rank, out) in run(helpers).into_iter().enumerate() {
                        assert_eq!(out.len(), len);
                        let wrong = (0..len).find(|at| out[*at] != expected(rank, *at));
                        assert_eq!(wrong, None, "{operation:?} {each} {helpers} rank {rank}");
                        compared += 1;
                    }
                }
            }
        }
        assert_eq!(compared, 5 * 4 * 4 * RANKS);
    }

    #[test]
    fn results_are_cut_at_the_same_elements_where_it_is_worth_it() {
        let lens = |len: usize, ranks: usize, helpers| -> Vec<(usize, usize)> {
            let mut bufs = vec![vec![0f32; len]; ranks];
            let outs = bufs.iter_mut().map(Vec::as_mut_slice).collect();
            let of = |share: &Share<'_, f32>| {
                assert!(share.outs.iter().all(|out| out.len() == share.outs[0].len()));
                (share.start, share.outs[0].len())
            };
            shares(outs, helpers).iter().map(of).collect()
        };
        assert_eq!(lens(3 << 20, 2, 1), [(0, 3 << 19), (3 << 19, 3 << 19)]);
        assert_eq!(lens(1 << 20, 2, 7), [(0, 1 << 19), (1 << 19, 1 << 19)]);
        // Less than 8 MiB in all, or nobody who helps.
        assert_eq!(lens((1 << 20) - 1, 2, 7), [(0, (1 << 20) - 1)]);
        assert_eq!(lens(3 << 20, 2, 0), [(0, 3 << 20)]);
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
