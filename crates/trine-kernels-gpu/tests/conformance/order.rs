//! Sums have one order, whatever a call covers.

use crate::machine::Machine;
use trine_buffer::{Buf, DType};
use trine_kernels::{MatRef, NormShape, Ops, RmsShape};
use trine_testkit::ops::{numbers, same};

#[test]
fn rows_of_whole_parts_are_summed_as_in_one_call() {
    let (machine, rows, cols) = (Machine::new(1), 150, 21);
    let x = machine.ops.place().hold(numbers(DType::F32, 1, rows * cols)).unwrap();
    let x = MatRef::new(x.slice(), rows, cols);
    let sums = |bounds: &[usize]| {
        let mut acc = machine.ops.place().hold(numbers(DType::F32, 2, cols)).unwrap();
        for pair in bounds.windows(2) {
            machine.ops.sum_rows(acc.slice_mut(), x.rows(pair[0]..pair[1]).unwrap()).unwrap();
        }
        acc.slice().to_host().unwrap()
    };
    same(&sums(&[0, 64, rows]), &sums(&[0, rows])).unwrap();
}

#[test]
fn a_row_has_the_bits_of_a_call_of_its_own() {
    let (machine, rows, cols) = (Machine::new(2), 5, 300);
    let place = machine.ops.place();
    let x = place.hold(numbers(DType::F32, 1, rows * cols)).unwrap();
    let gamma = place.hold(numbers(DType::F32, 2, cols)).unwrap();
    let norm = |from: usize, to: usize| {
        let shape = NormShape { rows: to - from, cols, eps: 1e-5 };
        let mut y = place.zeros(DType::F32, shape.rows * cols).unwrap();
        let mut rstd = place.zeros(DType::F32, shape.rows).unwrap();
        let x = x.slice().range(from * cols..to * cols).unwrap();
        machine.ops.rms_norm(shape, y.slice_mut(), rstd.slice_mut(), x, gamma.slice()).unwrap();
        (y.slice().to_host().unwrap(), rstd.slice().to_host().unwrap())
    };
    let ((all, rstd), (own, _)) = (norm(0, rows), norm(3, 4));
    let part = all.slice().range(3 * cols..4 * cols).unwrap().to_host().unwrap();
    same(&part, &own).unwrap();
    // In steps, with one block: the same norm.
    let shape = RmsShape { groups: 1, blocks: 1, elements: cols, eps: 1e-5 };
    let mut stats = place.zeros(DType::F32, rows).unwrap();
    let mut y = place.zeros(DType::F32, rows * cols).unwrap();
    let x = MatRef::new(x.slice(), rows, cols);
    machine.ops.rms_squares(shape, stats.slice_mut(), x).unwrap();
    let to = trine_kernels::MatMut::new(y.slice_mut(), rows, cols);
    machine.ops.rms_scale(shape, to, stats.slice_mut(), x, gamma.slice()).unwrap();
    same(&stats.slice().to_host().unwrap(), &rstd).unwrap();
    same(&y.slice().to_host().unwrap(), &all).unwrap();
}

/// Many sums in one row of them, so that `pair_sums` runs more than once.
#[test]
fn a_long_sum_of_squares_has_the_bits_of_the_cpu() {
    let cpu = trine_kernels::CpuOps::new(trine_kernels::Team::new(1));
    let machine = Machine::unchecked();
    let x = numbers(DType::Bf16, 1, 700 * 4096 + 5);
    let (mut expected, mut acc) = (Buf::from_vec(vec![0.5f64]), Buf::from_vec(vec![0.5f64]));
    cpu.sum_squares(expected.slice_mut(), x.slice()).unwrap();
    acc = machine.ops.place().hold(acc).unwrap();
    let x = machine.ops.place().hold(x).unwrap();
    machine.ops.sum_squares(acc.slice_mut(), x.slice()).unwrap();
    same(&acc.slice().to_host().unwrap(), &expected).unwrap();
}
