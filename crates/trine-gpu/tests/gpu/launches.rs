//! Launches that are refused before anything runs.

use crate::machine::{Machine, downloaded, uploaded};
use trine_gpu::{Arg, GpuError, Grid, Kind, Parameter, Priority};

#[test]
fn arguments_are_held_against_the_kernel() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let kernel = machine.kernel("add_f32");
    assert_eq!(kernel.parameters().len(), 4);
    let (x, mut y) = (uploaded(&stream, "x", &[1.0f32; 8]), stream.alloc("y", 32).unwrap());
    let grid = Grid::line(1, 32);
    let mut launch = |args: Vec<Arg<'_>>| {
        let mut all = vec![Arg::Write(y.span_mut()), Arg::Read(x.span())];
        all.extend(args);
        // SAFETY: the simulator holds every access against its buffers.
        unsafe { stream.launch(&kernel, grid, &all) }.map_err(|error| error.to_string())
    };
    let few = launch(vec![Arg::Read(x.span())]).unwrap_err();
    assert_eq!(few, "`add_f32` takes 4 arguments, not 3");
    let wide = launch(vec![Arg::Read(x.span()), Arg::U64(8)]).unwrap_err();
    assert_eq!(wide, "argument 3 of `add_f32` is a value of 4 bytes, not an integer of 8 bytes");
    launch(vec![Arg::Read(x.span()), Arg::U32(8)]).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(machine.sim.counters().launches, 1);
    machine.is_clean();
}

/// Real texts say which numbers are floats.
#[test]
fn a_float_is_no_integer_where_the_text_says_so() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let text =
        machine.sim.image().replace(".b32 rms_norm_f32_param_5", ".f32 rms_norm_f32_param_5");
    let kernel = machine.device.module(&text).unwrap().kernel("rms_norm_f32").unwrap();
    let (x, mut y) = (uploaded(&stream, "x", &[1.0f32; 8]), stream.alloc("y", 32).unwrap());
    let mut rstd = stream.alloc("rstd", 4).unwrap();
    let args = [
        Arg::Write(y.span_mut()),
        Arg::Write(rstd.span_mut()),
        Arg::Read(x.span()),
        Arg::Read(x.span()),
        Arg::U32(8),
        Arg::U32(1),
    ];
    // SAFETY: the simulator holds every access against its buffers.
    let error = unsafe { stream.launch(&kernel, Grid::line(1, 32), &args) }.unwrap_err();
    let of = |kind| Parameter { bytes: 4, kind };
    let (kernel, takes, given) = ("rms_norm_f32".into(), of(Kind::Float), of(Kind::Integer));
    assert_eq!(error, GpuError::Argument { kernel, index: 5, takes, given });
}

#[test]
fn structs_are_handed_over_as_they_lie() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let kernel = machine.kernel("line");
    let x: Vec<f32> = (0..32).map(|i| i as f32 / 8.0).collect();
    let (dx, mut y) = (uploaded(&stream, "x", &x), stream.alloc("y", 96 * 4).unwrap());
    let line = [2.0f32, -1.0, 9.0];
    let mut launch = |bytes: &[u8]| {
        let args = [Arg::Write(y.span_mut()), Arg::Read(dx.span()), Arg::Bytes(bytes)];
        // SAFETY: the simulator holds every access against its buffers.
        unsafe { stream.launch(&kernel, Grid::line(1, 32), &args) }
    };
    let of = |bytes| Parameter { bytes, kind: Kind::Bits };
    let (takes, given) = (of(12), of(8));
    let short = launch(bytemuck::cast_slice(&line[..2])).unwrap_err();
    assert_eq!(short, GpuError::Argument { kernel: "line".into(), index: 2, takes, given });
    launch(bytemuck::cast_slice(&line)).unwrap();
    let y = downloaded::<f32>(&stream, &y);
    let power = |i: usize| (2.0 * x[i] - 1.0).exp2();
    let close = |found: f32, expected: f32| (found - expected).abs() <= 1e-6 * expected.abs();
    for i in 0..32 {
        let other = power(i ^ 1).min(9.0);
        assert!(close(y[i], power(i)), "2^{}: {}", 2.0 * x[i] - 1.0, y[i]);
        assert!(close(y[32 + i], other.ln()), "ln {other}: {}", y[32 + i]);
        assert!(close(y[64 + i], 1.0 / other), "1 / {other}: {}", y[64 + i]);
    }
    machine.is_clean();
}

#[test]
fn grids_that_no_device_runs_are_refused() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let kernel = machine.kernel("sum_without_barrier");
    let (x, mut y) = (uploaded(&stream, "x", &[1.0f32; 8]), stream.alloc("y", 32).unwrap());
    let mut why = |grid: Grid| {
        let args = [Arg::Write(y.span_mut()), Arg::Read(x.span())];
        // SAFETY: nothing is launched.
        unsafe { stream.launch(&kernel, grid, &args) }.unwrap_err().to_string()
    };
    let none = why(Grid::line(0, 32));
    assert_eq!(
        none,
        "`sum_without_barrier` on [0, 1, 1] blocks of [32, 1, 1] threads: a direction has none"
    );
    assert!(why(Grid::line(1, 1025)).contains("a block has at most 1024 threads"));
    assert!(
        why(Grid { threads: [1, 1, 65], ..Grid::line(1, 1) }).contains("64 in the third direction")
    );
    assert!(why(Grid { blocks: [1, 65_536, 1], ..Grid::line(1, 1) }).contains("65535"));
    assert_eq!(machine.sim.counters().launches, 0);
}

#[test]
fn kernels_and_modules_that_are_not_there_are_named() {
    let machine = Machine::new(1);
    let error = machine.module.kernel("add_f64").unwrap_err().to_string();
    assert!(
        error.starts_with("the module has no kernel `add_f64`; it has add_bf16, add_f32, "),
        "{error}"
    );
    let error = machine.device.module("text").unwrap_err();
    assert_eq!(
        error.to_string(),
        "an image of kernels is no PTX: it has no `.version` and `.target`"
    );
    // A text of a newer toolkit than the driver's.
    let newer = machine.sim.image().replace(".version 8.0", ".version 9.1");
    let error = machine.device.module(&newer).unwrap_err().to_string();
    let count = machine.module.kernels().count();
    assert_eq!(
        error,
        format!(
            "the driver does not compile {count} kernels for GPU 0: cuModuleLoadDataEx failed with \
             CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222): the PTX is of a newer toolkit; the PTX is of version 9.1, and \
             this driver takes 8.0"
        )
    );
    // An image of an earlier source.
    let stale = machine.sim.image().replace(".b32 add_f32_param_3", ".b64 add_f32_param_3");
    let error = machine.device.module(&stale).unwrap().kernel("add_f32").unwrap_err().to_string();
    assert!(
        error.starts_with("cannot find the kernel `add_f32` on GPU 0: cuModuleGetFunction failed"),
        "{error}"
    );
    assert!(machine.sim.reports()[0].contains("the image is stale"));
}

#[test]
fn a_kernel_of_one_device_does_not_run_on_another() {
    let machine = Machine::new(1);
    let there = machine.gpus.device(1).unwrap().stream("there", Priority::Normal).unwrap();
    let x = uploaded(&there, "x", &[1.0f32; 64]);
    let mut y = there.alloc("y", 4).unwrap();
    let args = [Arg::Write(y.span_mut()), Arg::Read(x.span())];
    // SAFETY: nothing is launched.
    let error =
        unsafe { there.launch(&machine.kernel("sum_without_barrier"), Grid::line(1, 64), &args) };
    let text = "`sum_without_barrier` is on GPU 0, and the stream `there` on GPU 1";
    assert_eq!(error.unwrap_err().to_string(), text);
}
