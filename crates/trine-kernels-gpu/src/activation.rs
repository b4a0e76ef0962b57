//! Activation functions, alone and as gates.

use crate::gpu::{GpuOps, vector, vectors};
use crate::views::{Shape, bytes_of, named, read, write};
use trine_buffer::{Slice, SliceMut};
use trine_gpu::Arg;
use trine_kernels::{Function, GateUpMut, KernelError, MatMut, MatRef};

type Done = Result<(), KernelError>;

/// What kernels call a function.
fn curve(function: Function) -> &'static str {
    match function {
        Function::GeluTanh => "gelu_tanh",
        Function::GeluErf => "gelu_erf",
        Function::Silu => "silu",
        Function::Relu => "relu",
    }
}

pub(crate) fn activation(ops: &GpuOps, function: Function, y: SliceMut<'_>, x: Slice<'_>) -> Done {
    let kernel = format!("activation_{}", curve(function));
    let (name, len) = (named("activation", &kernel, &[x.dtype()])?, x.len());
    let args = [Arg::Write(write(y)?), Arg::Read(read(x)?), Arg::U64(len as u64)];
    // SAFETY: both have `len` elements.
    unsafe { ops.run(&name, vector(len), &args) }
}

pub(crate) fn activation_backward(
    ops: &GpuOps,
    function: Function,
    dx: SliceMut<'_>,
    x: Slice<'_>,
    dy: Slice<'_>,
) -> Done {
    let kernel = format!("activation_backward_{}", curve(function));
    let (name, len) = (named("activation_backward", &kernel, &[x.dtype()])?, x.len());
    let args =
        [Arg::Write(write(dx)?), Arg::Read(read(x)?), Arg::Read(read(dy)?), Arg::U64(len as u64)];
    // SAFETY: all have `len` elements.
    unsafe { ops.run(&name, vector(len), &args) }
}

/// What kernels call `Strides`: those of y or dy, gate, up and their gradients.
type Strides = [u64; 5];

pub(crate) fn gated(
    ops: &GpuOps,
    function: Function,
    y: MatMut<'_>,
    gate: MatRef<'_>,
    up: MatRef<'_>,
) -> Done {
    let name = named("gated", &format!("gated_{}", curve(function)), &[gate.dtype()])?;
    let [rows, cols, of_gate] = gate.dims();
    let at: Strides = [y.dims()[2], of_gate, up.dims()[2], 0, 0].map(|stride| stride as u64);
    let args = [
        Arg::Write(write(y.data)?),
        Arg::Read(read(gate.data)?),
        Arg::Read(read(up.data)?),
        Arg::U64(rows as u64),
        Arg::U64(cols as u64),
        Arg::Bytes(bytes_of(&at)),
    ];
    // SAFETY: all are matrices of these rows and columns, with these strides.
    unsafe { ops.run(&name, vectors(rows, cols), &args) }
}

pub(crate) fn gated_backward(
    ops: &GpuOps,
    function: Function,
    d: GateUpMut<'_>,
    gate: MatRef<'_>,
    up: MatRef<'_>,
    dy: MatRef<'_>,
) -> Done {
    let (function, dtype) = (curve(function), gate.dtype());
    let [rows, cols, of_gate] = gate.dims();
    let (kernel, outputs, of_outputs) = match d {
        GateUpMut::Fused(all) => {
            let stride = all.dims()[2];
            (format!("gated_backward_fused_{function}"), vec![all.data], [stride, stride])
        }
        GateUpMut::Separate { gate, up } => {
            let strides = [gate.dims()[2], up.dims()[2]];
            (format!("gated_backward_{function}"), vec![gate.data, up.data], strides)
        }
    };
    let name = named("gated_backward", &kernel, &[dtype])?;
    let at = [dy.dims()[2], of_gate, up.dims()[2], of_outputs[0], of_outputs[1]];
    let at: Strides = at.map(|stride| stride as u64);
    let mut args = Vec::new();
    for output in outputs {
        args.push(Arg::Write(write(output)?));
    }
    for input in [gate, up, dy] {
        args.push(Arg::Read(read(input.data)?));
    }
    args.extend([Arg::U64(rows as u64), Arg::U64(cols as u64), Arg::Bytes(bytes_of(&at))]);
    // SAFETY: all are matrices of these rows and columns, with these strides; a fused one has both halves.
    unsafe { ops.run(&name, vectors(rows, cols), &args) }
}
