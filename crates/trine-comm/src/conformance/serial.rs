//! What every rank must get, computed in one thread and written down separately from the code under
//! test: recursively, one element at a time.

use crate::{Operation, ReduceOp};
use half::{bf16, f16};
use trine_buffer::{Buf, DType, Element, Slice};

/// A rank's buffer of a case: a pure function of its arguments. Floats span several binades, so
/// that a sum in another order has other bits.
pub(super) fn data(dtype: DType, len: usize, case: u64, rank: usize) -> Buf {
    let word = |index: usize| mix(case ^ mix(rank as u64 ^ mix(index as u64)));
    let float = |index: usize| {
        let word = word(index);
        let unit = (word >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
        unit * f64::from(1u32 << (word % 7))
    };
    let all = 0..len;
    match dtype {
        DType::F64 => Buf::from_vec(all.map(float).collect()),
        DType::F32 => Buf::from_vec(all.map(|i| float(i) as f32).collect()),
        DType::Bf16 => Buf::from_vec(all.map(|i| bf16::from_f64(float(i))).collect()),
        DType::F16 => Buf::from_vec(all.map(|i| f16::from_f64(float(i))).collect()),
        DType::U64 => Buf::from_vec(all.map(word).collect()),
        DType::U32 => Buf::from_vec(all.map(|i| word(i) as u32).collect()),
        DType::U8 => Buf::from_vec(all.map(|i| word(i) as u8).collect()),
    }
}

/// The finaliser of SplitMix64: enough to make neighbours unlike.
fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The bytes that `rank` must hold after a collective on `sends`: in the buffer that is filled, or
/// the one that is worked on in place.
pub(super) fn collective(operation: Operation, sends: &[Buf], rank: usize) -> Vec<u8> {
    let bytes = |of: usize| sends[of].slice().bytes().unwrap_or_default();
    let part = |all: &[u8], index: usize| {
        let len = all.len() / sends.len();
        all[index * len..][..len].to_vec()
    };
    match operation {
        Operation::Broadcast { root } => bytes(root).to_vec(),
        Operation::AllReduce(op) => reduce(op, sends),
        Operation::ReduceScatter(op) => part(&reduce(op, sends), rank),
        Operation::AllGather => (0..sends.len()).flat_map(|from| bytes(from).to_vec()).collect(),
        Operation::AllToAll => (0..sends.len()).flat_map(|from| part(bytes(from), rank)).collect(),
        Operation::Send { .. }
        | Operation::Recv { .. }
        | Operation::Exchange { .. }
        | Operation::Barrier => Vec::new(),
    }
}

fn reduce(op: ReduceOp, sends: &[Buf]) -> Vec<u8> {
    let n = sends.len();
    macro_rules! reduce {
        ($type:ty, $acc:ty, $load:expr, $store:expr, $add:expr, $max:expr, $mean:expr) => {{
            let (load, store, add, max, mean) = ($load, $store, $add, $max, $mean);
            let combine: &dyn Fn($acc, $acc) -> $acc = match op {
                ReduceOp::Sum | ReduceOp::Mean => &add,
                ReduceOp::Max => &max,
            };
            let value = |rank: usize, at: usize| -> $acc { load(typed::<$type>(&sends[rank])[at]) };
            let one = |at: usize| -> $type {
                let all = tree(&|rank| value(rank, at), combine, 0, n);
                store(if op == ReduceOp::Mean { mean(all) } else { all })
            };
            let all: Vec<$type> = (0..sends[0].len()).map(one).collect();
            Slice::new(&all).bytes().unwrap_or_default().to_vec()
        }};
    }
    macro_rules! float {
        ($type:ty, $acc:ty, $load:expr, $store:expr) => {
            reduce!(
                $type,
                $acc,
                $load,
                $store,
                |l: $acc, r: $acc| l + r,
                |l: $acc, r: $acc| if l.is_nan() || r.is_nan() { <$acc>::NAN } else { l.max(r) },
                |sum: $acc| sum / n as $acc
            )
        };
    }
    macro_rules! integer {
        ($type:ty) => {
            reduce!(
                $type,
                $type,
                |x: $type| x,
                |x: $type| x,
                |l: $type, r: $type| l.wrapping_add(r),
                |l: $type, r: $type| l.max(r),
                |sum: $type| (sum as u64 / n as u64) as $type
            )
        };
    }
    match sends[0].dtype() {
        DType::F64 => float!(f64, f64, |x| x, |x| x),
        DType::F32 => float!(f32, f32, |x| x, |x| x),
        DType::Bf16 => float!(bf16, f32, bf16::to_f32, bf16::from_f32),
        DType::F16 => float!(f16, f32, f16::to_f32, f16::from_f32),
        DType::U64 => integer!(u64),
        DType::U32 => integer!(u32),
        DType::U8 => integer!(u8),
    }
}

fn typed<T: Element>(buf: &Buf) -> &[T] {
    buf.typed().expect("invariant: the suite makes all buffers of a case of one type")
}

/// `first..last` combined: the left part is the largest power of two of ranks that leaves a right
/// part.
fn tree<A>(leaf: &dyn Fn(usize) -> A, combine: &dyn Fn(A, A) -> A, first: usize, last: usize) -> A {
    if last - first == 1 {
        return leaf(first);
    }
    let mut left = 1;
    while left * 2 < last - first {
        left *= 2;
    }
    let middle = first + left;
    combine(tree(leaf, combine, first, middle), tree(leaf, combine, middle, last))
}
