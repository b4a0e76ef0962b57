//! What is refused, and in which words.

use crate::machine::Machine;
use trine_buffer::{Buf, DType};
use trine_kernels::{CpuOps, MatRef, NormShape, Ops, Product, Team};
use trine_testkit::ops::numbers;

/// The same sentence as on the host.
#[test]
fn arguments_that_do_not_fit_are_refused_as_on_the_host() {
    let (cpu, machine) = (CpuOps::new(Team::new(1)), Machine::new(0));
    type Call = fn(&dyn Ops, &mut [Buf; 3]) -> String;
    let calls: [Call; 4] = [
        |ops, [y, a, b]| ops.add(y.slice_mut(), a.slice(), b.slice()).unwrap_err().to_string(),
        |ops, [y, a, _]| {
            let shape = NormShape { rows: 2, cols: 4, eps: 0.0 };
            let mut rstd = ops.place().zeros(DType::F32, 2).unwrap();
            let result = ops.rms_norm(shape, y.slice_mut(), rstd.slice_mut(), a.slice(), a.slice());
            result.unwrap_err().to_string()
        },
        |ops, [y, a, _]| {
            ops.activation(trine_kernels::Function::Silu, y.slice_mut(), a.slice())
                .unwrap_err()
                .to_string()
        },
        |ops, [y, a, b]| {
            let (a, b) = (MatRef::new(a.slice(), 2, 4), MatRef::new(b.slice(), 2, 5));
            let c = trine_kernels::MatMut::new(y.slice_mut(), 2, 2);
            ops.matmul(Product::Nt, false, a, b, c).unwrap_err().to_string()
        },
    ];
    for call in calls {
        let bufs =
            || [numbers(DType::F32, 1, 8), numbers(DType::Bf16, 2, 8), numbers(DType::F32, 3, 10)];
        let on_host = call(&cpu, &mut bufs());
        let on_gpu =
            call(&machine.ops, &mut bufs().map(|buf| machine.ops.place().hold(buf).unwrap()));
        assert_eq!(on_host, on_gpu);
    }
    machine.is_clean();
}

#[test]
fn a_gpu_does_not_compute_in_f64() {
    let machine = Machine::new(0);
    let mut y = machine.ops.place().zeros(DType::F64, 4).unwrap();
    let text = machine.ops.scale(y.slice_mut(), 2.0).unwrap_err().to_string();
    assert_eq!(text, "scale: a GPU computes in f32 and bf16, not in f64");
    let mut half = machine.ops.place().zeros(DType::F16, 4).unwrap();
    let text = machine.ops.scale(half.slice_mut(), 2.0).unwrap_err().to_string();
    assert_eq!(text, "scale: `y` holds f16; kernels compute in f64, f32 or bf16");
    let mut host = numbers(DType::F32, 1, 4);
    let text = machine.ops.scale(host.slice_mut(), 2.0).unwrap_err().to_string();
    assert_eq!(text, "a buffer of 4 f32 lies on the host, and this work needs it on the GPU");
}
