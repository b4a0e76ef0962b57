//! Sums: the bits of the CPU.

use crate::machine::{Machine, SEEDS, downloaded, numbers, uploaded};
use trine_buffer::{Buf, DType};
use trine_kernels::{CpuOps, Ops, Team};

#[test]
fn sums_have_the_bits_of_the_cpu() {
    let cpu = CpuOps::new(Team::new(1));
    for seed in 0..SEEDS {
        let machine = Machine::new(seed);
        let stream = machine.ops.stream();
        for (of_y, of_b) in
            [(DType::F32, DType::F32), (DType::F32, DType::Bf16), (DType::Bf16, DType::Bf16)]
        {
            for len in [0, 1, 777] {
                let (a, b) = (numbers(of_y, 1, len), numbers(of_b, 2, len));
                let mut y = Buf::zeros(of_y, len);
                cpu.add(y.slice_mut(), a.slice(), b.slice()).unwrap();
                let (a, b) = (uploaded(stream, "a", &a), uploaded(stream, "b", &b));
                let mut sum = stream.alloc("y", y.size_bytes()).unwrap();
                machine.ops.add((sum.span_mut(), of_y), a.span(), (b.span(), of_b)).unwrap();
                assert_eq!(
                    downloaded(stream, &sum),
                    y.slice().bytes().unwrap(),
                    "{of_y} + {of_b}, {len}"
                );
            }
        }
        machine.is_clean();
    }
}

#[test]
fn lengths_that_differ_are_refused() {
    let machine = Machine::new(0);
    let stream = machine.ops.stream();
    let (x, mut y) = (stream.alloc("x", 8).unwrap(), stream.alloc("y", 12).unwrap());
    let y = (y.span_mut(), DType::F32);
    let text = machine.ops.add(y, x.span(), (x.span(), DType::F32)).unwrap_err().to_string();
    assert_eq!(text, "a copy of 8 bytes to 12");
}
