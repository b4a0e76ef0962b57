//! Kernels of trine's against the CPU's, in any order of streams, blocks and threads.

use crate::machine::{Machine, downloaded, uploaded};
use half::bf16;
use trine_buffer::{Buf, Slice};
use trine_gpu::{Arg, Grid, Kernel, Stream};
use trine_kernels::{CpuOps, MatRef, NormShape, Ops, Team};

const SEEDS: u64 = 8;
const EPS: f32 = 1e-5;
/// Half a unit in the last place of a number near 1.
const ULP_F32: f64 = 6e-8;
const ULP_BF16: f64 = 0.004;

/// Numbers between -1 and 1 that bf16 has too.
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_f32()
    };
    (0..len).map(|_| next()).collect()
}

fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().copied().map(bf16::from_f32).collect()
}

fn launch(stream: &Stream, kernel: &Kernel, grid: Grid, args: &[Arg<'_>]) {
    // SAFETY: the simulator holds every access against its buffers.
    unsafe { stream.launch(kernel, grid, args) }.unwrap();
}

/// The largest difference, relative to the largest number.
fn error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let size = expected.iter().fold(0.0f64, |size, value| size.max(value.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |error, difference| if difference <= error { error } else { difference })
        / size
}

#[test]
fn sums_have_the_bits_of_the_cpu() {
    let len = 333;
    let (a, b) = (numbers(1, len), numbers(2, len));
    let ops = CpuOps::new(Team::new(1));
    let mut expected = (Buf::from_vec(vec![0.0f32; len]), Buf::from_vec(vec![bf16::ZERO; len]));
    ops.add(expected.0.slice_mut(), Slice::new(&a), Slice::new(&b)).unwrap();
    let (narrow_a, narrow_b) = (narrow(&a), narrow(&b));
    ops.add(expected.1.slice_mut(), Slice::new(&narrow_a), Slice::new(&narrow_b)).unwrap();
    for seed in 0..SEEDS {
        let machine = Machine::new(seed);
        let stream = machine.stream("compute");
        let n = Arg::U32(len as u32);
        let (x, z) = (uploaded(&stream, "a", &a), uploaded(&stream, "b", &b));
        let mut y = stream.alloc("y", 4 * len).unwrap();
        let args = [Arg::Write(y.span_mut()), Arg::Read(x.span()), Arg::Read(z.span()), n];
        launch(&stream, &machine.kernel("add_f32"), Grid::line(2, 64), &args);
        assert_eq!(downloaded::<f32>(&stream, &y), expected.0.typed::<f32>().unwrap());

        let (x, z) = (uploaded(&stream, "a", &narrow_a), uploaded(&stream, "b", &narrow_b));
        let mut y = stream.alloc("y", 2 * len).unwrap();
        let n = Arg::U32(len as u32);
        let args = [Arg::Write(y.span_mut()), Arg::Read(x.span()), Arg::Read(z.span()), n];
        launch(&stream, &machine.kernel("add_bf16"), Grid::line(3, 32), &args);
        assert_eq!(downloaded::<bf16>(&stream, &y), expected.1.typed::<bf16>().unwrap());
        machine.is_clean();
    }
}

#[test]
fn norms_are_those_of_the_cpu_to_rounding() {
    for (rows, cols, threads) in [(3, 200, 96), (1, 7, 32), (2, 1030, 256)] {
        let (x, gamma) = (numbers(3, rows * cols), numbers(4, cols));
        let shape = NormShape { rows, cols, eps: f64::from(EPS) };
        let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
        let (x64, gamma64) = (wide(&x), wide(&gamma));
        let mut y64 = Buf::from_vec(vec![0.0f64; rows * cols]);
        let mut rstd64 = Buf::from_vec(vec![0.0f64; rows]);
        let ops = CpuOps::new(Team::new(1));
        ops.rms_norm(
            shape,
            y64.slice_mut(),
            rstd64.slice_mut(),
            Slice::new(&x64),
            Slice::new(&gamma64),
        )
        .unwrap();
        let (y64, rstd64) = (y64.to_f64_vec().unwrap(), rstd64.to_f64_vec().unwrap());
        for seed in 0..SEEDS {
            let machine = Machine::new(seed);
            let stream = machine.stream("compute");
            let grid = Grid::line(rows as u32, threads);
            let mut rstd = stream.alloc("rstd", 4 * rows).unwrap();
            let (cols32, eps) = (Arg::U32(cols as u32), Arg::F32(EPS));
            let (dx, dgamma) = (uploaded(&stream, "x", &x), uploaded(&stream, "gamma", &gamma));
            let mut y = stream.alloc("y", 4 * rows * cols).unwrap();
            let args = [
                Arg::Write(y.span_mut()),
                Arg::Write(rstd.span_mut()),
                Arg::Read(dx.span()),
                Arg::Read(dgamma.span()),
                cols32,
                eps,
            ];
            launch(&stream, &machine.kernel("rms_norm_f32"), grid, &args);
            // The mean is a sum of `cols / threads` terms in each thread, then over its warp and the
            // warps; the rest is five roundings.
            let chain = cols.div_ceil(threads as usize) + 5 + threads as usize / 32 + 5;
            let bound = chain as f64 * ULP_F32;
            let found = error(&wide(&downloaded::<f32>(&stream, &y)), &y64);
            assert!(found <= bound, "[{rows}, {cols}] in f32: {found:.1e} > {bound:.1e}");
            let found = error(&wide(&downloaded::<f32>(&stream, &rstd)), &rstd64);
            assert!(found <= bound, "rstd of [{rows}, {cols}]: {found:.1e} > {bound:.1e}");

            let (dx, dgamma) =
                (uploaded(&stream, "x", &narrow(&x)), uploaded(&stream, "gamma", &narrow(&gamma)));
            let mut y = stream.alloc("y", 2 * rows * cols).unwrap();
            let args = [
                Arg::Write(y.span_mut()),
                Arg::Write(rstd.span_mut()),
                Arg::Read(dx.span()),
                Arg::Read(dgamma.span()),
                Arg::U32(cols as u32),
                Arg::F32(EPS),
            ];
            launch(&stream, &machine.kernel("rms_norm_bf16"), grid, &args);
            let y: Vec<f64> =
                downloaded::<bf16>(&stream, &y).iter().map(|value| value.to_f64()).collect();
            let (found, bound) = (error(&y, &y64), bound + ULP_BF16);
            assert!(found <= bound, "[{rows}, {cols}] in bf16: {found:.1e} > {bound:.1e}");
            machine.is_clean();
        }
    }
}

#[test]
fn column_sums_in_two_stages_are_added_to_what_is_there() {
    let (rows, cols, part_rows) = (37usize, 75usize, 8usize);
    let parts = rows.div_ceil(part_rows);
    let x = numbers(5, rows * cols);
    let x64: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let mut expected = Buf::from_vec(vec![1.0f64; cols]);
    let ops = CpuOps::new(Team::new(1));
    ops.sum_rows(expected.slice_mut(), MatRef::new(Slice::new(&x64), rows, cols)).unwrap();
    let expected = expected.to_f64_vec().unwrap();
    for seed in 0..SEEDS {
        let machine = Machine::new(seed);
        let stream = machine.stream("compute");
        for is_narrow in [false, true] {
            let (name, x) = match is_narrow {
                false => ("column_parts_f32", uploaded(&stream, "x", &x)),
                true => ("column_parts_bf16", uploaded(&stream, "x", &narrow(&x))),
            };
            let mut sums = uploaded(&stream, "sums", &vec![1.0f32; cols]);
            let mut between = stream.alloc("parts", 4 * parts * cols).unwrap();
            let args = [
                Arg::Write(between.span_mut()),
                Arg::Read(x.span()),
                Arg::U32(rows as u32),
                Arg::U32(cols as u32),
                Arg::U32(part_rows as u32),
            ];
            let grid = Grid { blocks: [3, parts as u32, 1], ..Grid::line(1, 32) };
            launch(&stream, &machine.kernel(name), grid, &args);
            let args = [
                Arg::Write(sums.span_mut()),
                Arg::Read(between.span()),
                Arg::U32(parts as u32),
                Arg::U32(cols as u32),
            ];
            launch(&stream, &machine.kernel("column_sums"), Grid::line(3, 32), &args);
            let found: Vec<f64> =
                downloaded::<f32>(&stream, &sums).into_iter().map(f64::from).collect();
            let (found, bound) =
                (error(&found, &expected), (part_rows + parts + 1) as f64 * ULP_F32);
            assert!(found <= bound, "{name}: {found:.1e} > {bound:.1e}");
        }
        machine.is_clean();
    }
}

/// `c + a · b` of three matrices `[16, 16]`, each sum a chain over ascending k.
fn product(c: &[f32], a: &[f32], b: &[f32], is_turned: bool) -> Vec<f32> {
    let at = |row: usize, k: usize, col: usize| {
        let b = if is_turned { b[k * 16 + col] } else { b[col * 16 + k] };
        (a[row * 16 + k], b)
    };
    let sum = |i: usize| {
        (0..16).fold(c[i], |sum, k| {
            let (a, b) = at(i / 16, k, i % 16);
            a.mul_add(b, sum)
        })
    };
    (0..256).map(sum).collect()
}

#[test]
fn tiles_lie_in_the_lanes_as_tensor_cores_have_them() {
    let [a, b, c] = [7, 8, 9].map(|seed| numbers(seed, 256));
    for seed in 0..SEEDS {
        let machine = Machine::new(seed);
        let stream = machine.stream("compute");
        for (name, turned) in [
            ("tiles_by_hand", None),
            ("tiles_of_shared_memory", Some(false)),
            ("tiles_of_shared_memory", Some(true)),
        ] {
            let mut y = uploaded(&stream, "c", &c);
            let (da, db) =
                (uploaded(&stream, "a", &narrow(&a)), uploaded(&stream, "b", &narrow(&b)));
            let mut args =
                vec![Arg::Write(y.span_mut()), Arg::Read(da.span()), Arg::Read(db.span())];
            args.extend(turned.map(|turned| Arg::U32(u32::from(turned))));
            launch(&stream, &machine.kernel(name), Grid::line(1, 32), &args);
            let expected = product(&c, &a, &b, turned == Some(true));
            assert_eq!(downloaded::<f32>(&stream, &y), expected, "{name}, {turned:?}");
        }
        machine.is_clean();
    }
}

#[test]
fn tiles_of_a_wrong_place_are_named() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let x = uploaded(&stream, "x", &[1u32; 256]);
    let mut y = stream.alloc("y", 4 * 32).unwrap();
    let args = [Arg::Write(y.span_mut()), Arg::Read(x.span())];
    launch(&stream, &machine.kernel("misplaced_tiles"), Grid::line(1, 32), &args);
    stream.synchronize().unwrap();
    let reports = machine.sim.reports();
    for what in ["loads tiles from memory that is not shared", "no multiple of the element's size"]
    {
        assert!(reports.iter().any(|report| report.contains(what)), "{what}: {reports:?}");
    }

    let mut short = stream.alloc("y", 4 * 256).unwrap();
    let narrow = uploaded(&stream, "narrow", &[0u16; 256]);
    let args = [Arg::Write(short.span_mut()), Arg::Read(narrow.span()), Arg::Read(narrow.span())];
    launch(&stream, &machine.kernel("tiles_by_hand"), Grid::line(1, 16), &args);
    stream.synchronize().unwrap();
    let reports = machine.sim.reports();
    let what = "multiplies tiles, which takes 32 lanes, and its warp has fewer";
    assert!(reports.iter().any(|report| report.contains(what)), "{reports:?}");
}

#[test]
fn a_kernel_without_its_barrier_is_named() {
    for seed in 0..SEEDS {
        let machine = Machine::new(seed);
        let stream = machine.stream("compute");
        let x = uploaded(&stream, "x", &numbers(6, 64));
        let mut sum = stream.alloc("sum", 4).unwrap();
        let args = [Arg::Write(sum.span_mut()), Arg::Read(x.span())];
        launch(&stream, &machine.kernel("sum_without_barrier"), Grid::line(1, 64), &args);
        stream.synchronize().unwrap();
        let reports = machine.sim.reports();
        assert!(!reports.is_empty(), "seed {seed}");
        for report in reports {
            assert!(report.starts_with("`sum_without_barrier` (stream 0), thread "), "{report}");
            let is_race = report.contains("no barrier orders the two");
            assert!(
                is_race || report.contains("shared memory that nothing has written"),
                "{report}"
            );
        }
    }
}
