//! Sound kernels compute what they should, in any order, and nothing is reported.

use crate::gpu::{Arg, Gpu};
use trine_gpu_sim::{Checks, Settings};

const SEEDS: u64 = 8;

#[test]
fn sound_kernels_compute_and_are_not_reported() {
    for checks in [Checks::On, Checks::Off] {
        for seed in 0..SEEDS {
            let gpu = Gpu::with(&Settings { seed, ..Settings::default() }, checks);
            let stream = gpu.stream();
            let (rows, cols) = (3, 200);
            let values: Vec<f32> = (0..rows * cols).map(|i| (i % 7) as f32).collect();
            let x = gpu.buffer(&values, stream);
            let sums = gpu.alloc(4 * rows, stream).unwrap();
            let args = [Arg::At(sums), Arg::At(x), Arg::U32(cols as u32)];
            gpu.launch("row_sums", rows as u32, 96, &args, stream).unwrap();
            gpu.axpy(sums, x, 2.0, rows as u32, stream);
            let out = gpu.download(sums, rows, stream);
            gpu.sync(stream).unwrap();
            let row = |r: usize| values[r * cols..(r + 1) * cols].iter().sum::<f32>();
            let expected: Vec<f32> = (0..rows).map(|r| row(r) + 2.0 * values[r]).collect();
            assert_eq!(gpu.read(out, rows), expected, "seed {seed}");
            assert_eq!(gpu.sim.reports(), Vec::<String>::new(), "seed {seed}");
        }
    }
}

#[test]
fn indices_arguments_and_shared_memory_are_those_of_the_launch() {
    let gpu = Gpu::new(3);
    let stream = gpu.stream();
    let y = gpu.alloc(4 * 6 * 24, stream).unwrap();
    gpu.launch_as("volume", [3, 1, 2], [2, 3, 4], 0, &[Arg::At(y)], stream).unwrap();
    let out = gpu.download(y, 6 * 24, stream);
    let z = gpu.alloc(4 * 64, stream).unwrap();
    gpu.launch_as("neighbours", [1, 1, 1], [64, 1, 1], 4 * 64, &[Arg::At(z)], stream).unwrap();
    let next = gpu.download(z, 64, stream);
    let s = gpu.alloc(4, stream).unwrap();
    let pair = [2.5f32.to_ne_bytes(), 4.0f32.to_ne_bytes(), [0; 4]].concat();
    gpu.launch("structure", 1, 32, &[Arg::At(s), Arg::Bytes(pair)], stream).unwrap();
    let sum = gpu.download(s, 1, stream);
    gpu.sync(stream).unwrap();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let expected: Vec<u32> = (0..6 * 24).map(|i| i / 24 * 100 + i % 24).collect();
    assert_eq!(bits(gpu.read(out, 6 * 24)), expected);
    assert_eq!(bits(gpu.read(next, 64)), (0..64).map(|i| (i + 1) % 64).collect::<Vec<u32>>());
    assert_eq!(gpu.read(sum, 1), [6.5]);
    assert_eq!(gpu.sim.reports(), Vec::<String>::new());
}

/// Two threads of a pair of bytes do not race.
#[test]
fn neighbouring_bytes_are_apart() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let bytes = gpu.buffer(&[0.0; 8], stream);
    gpu.launch("bytes_up", 1, 32, &[Arg::At(bytes), Arg::U32(31)], stream).unwrap();
    let out = gpu.download(bytes, 8, stream);
    gpu.sync(stream).unwrap();
    let words: Vec<u32> = gpu.read(out, 8).into_iter().map(f32::to_bits).collect();
    assert_eq!(words, [[0x0101_0101; 7].as_slice(), &[0x0001_0101]].concat());
    assert_eq!(gpu.sim.reports(), Vec::<String>::new());
}

/// Each thread of a kernel takes mappings, of which a process has 65,530: a machine that is gone has none.
#[test]
fn machines_that_are_gone_take_no_memory() {
    for seed in 0..40 {
        let gpu = Gpu::new(seed);
        let stream = gpu.stream();
        let y = gpu.alloc(4 * 1024, stream).unwrap();
        gpu.launch_as("neighbours", [1, 1, 1], [1024, 1, 1], 4 * 1024, &[Arg::At(y)], stream)
            .unwrap();
        let out = gpu.download(y, 1024, stream);
        gpu.sync(stream).unwrap();
        assert_eq!(gpu.read(out, 1024)[1023].to_bits(), 0, "machine {seed}");
    }
}
