//! Attention against the CPU's in f64, within bounds from the roundings of each sum.

use crate::machine::{Machine, SEEDS};
use std::ops::Range;
use trine_buffer::{Buf, DType};
use trine_kernels::{AttentionShape, CpuOps, KernelError, MatMut, MatRef, Ops, Qkv, Team};
use trine_testkit::ops::attention::{CASE, Case, Problem, SHAPE, cases, check_merge};

/// The numbers of a buffer anywhere.
fn values(buf: &Buf) -> Vec<f64> {
    buf.slice().to_host().unwrap().to_f64_vec().unwrap()
}

#[test]
fn attention_is_that_of_the_cpu() {
    let cpu = CpuOps::new(Team::new(1));
    for case in cases() {
        let problem = Problem::new(case);
        let expected = problem.expected(&cpu).unwrap();
        for seed in 0..SEEDS {
            let machine = Machine::new(seed);
            problem.check(&machine.ops, &expected).unwrap();
            machine.is_clean();
        }
    }
}

/// `o` and `lse` of the last rows of a sequence of one head, in a call over a part of it.
fn part(machine: &Machine, case: Case, queries: Range<usize>, keys: Range<usize>) -> Vec<f64> {
    let (ops, place) = (&machine.ops, machine.ops.place());
    let problem = Problem::new(case);
    let inputs = problem.held(place).unwrap();
    let shape = AttentionShape {
        queries: queries.len(),
        keys: keys.len(),
        query_start: queries.start,
        key_start: keys.start,
        ..case.shape
    };
    let Qkv { q, k, v } = problem.qkv(&inputs.q, &inputs.kv).unwrap();
    let qkv = Qkv {
        q: q.rows(queries.clone()).unwrap(),
        k: k.rows(keys.clone()).unwrap(),
        v: v.rows(keys).unwrap(),
    };
    let (rows, cols) = (queries.len(), problem.q_cols());
    let mut o = place.zeros(case.dtype, rows * cols).unwrap();
    let mut lse = place.zeros(DType::F32, rows).unwrap();
    let out = MatMut::new(o.slice_mut(), rows, cols);
    ops.attention(shape, out, lse.slice_mut(), qkv, None, None).unwrap();
    machine.is_clean();
    let (o, lse, last) = (values(&o), values(&lse), rows.min(50));
    [&o[(rows - last) * cols..], &lse[rows - last..]].concat()
}

#[test]
fn a_row_has_the_bits_of_its_position() {
    let narrow = Case { dtype: DType::Bf16, ..CASE };
    let shape = |head_dim| AttentionShape {
        queries: 150,
        keys: 150,
        window: Some(40),
        heads: 1,
        kv_heads: 1,
        head_dim,
        ..SHAPE
    };
    for case in [Case { shape: shape(64), ..narrow }, Case { shape: shape(8), ..CASE }] {
        let machine = Machine::new(0);
        let whole = part(&machine, case, 0..150, 0..150);
        // All that the queries see; and a row more, which they do not.
        for first in [61, 60] {
            assert!(whole == part(&machine, case, 100..150, first..150), "{first}: {case:?}");
        }
    }
}

#[test]
fn merged_results_are_those_of_the_cpu() {
    let cpu = CpuOps::new(Team::new(1));
    for seed in 0..SEEDS {
        let machine = Machine::new(seed);
        check_merge(&machine.ops, &cpu).unwrap();
        machine.is_clean();
    }
}

#[test]
fn what_no_gpu_counts_up_to_is_refused() {
    let machine = Machine::new(0);
    let ops = &machine.ops;
    let place = ops.place();
    let shape = AttentionShape { queries: 1, keys: 1, heads: 1, kv_heads: 1, ..SHAPE };
    let x = place.zeros(DType::F32, 8).unwrap();
    let (mut o, mut lse) =
        (place.zeros(DType::F32, 8).unwrap(), place.zeros(DType::F32, 1).unwrap());
    let whole = MatRef::new(x.slice(), 1, 8);
    let wide = MatRef { stride: 1 << 33, ..whole };
    let mut run = |qkv| {
        ops.attention(shape, MatMut::new(o.slice_mut(), 1, 8), lse.slice_mut(), qkv, None, None)
    };
    let error = run(Qkv { q: whole, k: whole, v: wide }).unwrap_err();
    let message = "a stride of 8589934592; a GPU's kernels take 4294967295 at most".to_owned();
    assert_eq!(error, KernelError::Dims { op: "attention", message });
    run(Qkv { q: whole, k: whole, v: whole }).unwrap();
    machine.is_clean();
}
