//! Planted faults of kernels and of host code: each is found by its name.

use crate::gpu::{Arg, Gpu, one};

/// Runs a kernel of one block over a buffer of zeros and returns what was reported.
fn reports(name: &str, threads: u32, blocks: u32, floats: usize) -> Vec<String> {
    let gpu = Gpu::new(4);
    let stream = gpu.stream();
    let y = gpu.buffer(&vec![0.0; floats], stream);
    gpu.launch(name, blocks, threads, &[Arg::At(y)], stream).unwrap();
    gpu.sync(stream).unwrap();
    gpu.sim.reports()
}

#[test]
fn an_access_behind_a_buffer() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let (x, y) = (gpu.buffer(&[1.0; 1001], stream), gpu.buffer(&[1.0; 1000], stream));
    gpu.sim.name(y, "gradient").unwrap();
    gpu.axpy(y, x, 1.0, 1001, stream);
    gpu.sync(stream).unwrap();
    let reports = gpu.sim.reports();
    assert_eq!(reports.len(), 1, "{reports:#?}");
    one(
        &reports,
        &[
            "`axpy` (stream 0) ",
            "bytes 4000..4004 of `gradient` (4000 bytes)",
            "block 15: it ends before",
        ],
    );
}

#[test]
fn a_copy_behind_a_buffer() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let y = gpu.alloc(16, stream).unwrap();
    gpu.upload(y, &[1.0; 5], stream);
    gpu.sync(stream).unwrap();
    one(
        &gpu.sim.reports(),
        &["`copy to device` (stream 0) writes bytes 0..20 of buffer 1 (16 bytes): it ends before"],
    );
}

#[test]
fn a_buffer_that_was_freed() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let (x, y) = (gpu.buffer(&[1.0; 8], stream), gpu.buffer(&[1.0; 8], stream));
    gpu.free(x, stream);
    gpu.axpy(y, x, 1.0, 8, stream);
    gpu.sync(stream).unwrap();
    one(
        &gpu.sim.reports(),
        &["`axpy` (stream 0) reads bytes", "of buffer 1 (32 bytes)", "it was freed before"],
    );
    gpu.free(x, stream);
    gpu.sync(stream).unwrap();
    one(&gpu.sim.reports(), &["`free` (stream 0): the buffer was freed before"]);
}

#[test]
fn a_buffer_that_is_freed_in_flight() {
    for seed in 0..8 {
        let gpu = Gpu::new(seed);
        let (first, second) = (gpu.stream(), gpu.stream());
        let x = gpu.buffer(&[1.0; 8], first);
        let y = gpu.buffer(&[1.0; 8], second);
        gpu.wait(second, gpu.record(first));
        gpu.axpy(y, x, 1.0, 8, second);
        gpu.free(x, first);
        gpu.sync(second).unwrap();
        gpu.sync(first).unwrap();
        let reports = gpu.sim.reports();
        assert!(!reports.is_empty(), "seed {seed}");
        let late = "`axpy` (stream 1), and no event orders the two";
        let early = "it is freed by `free` (stream 0), and no event orders the two";
        assert!(reports.iter().all(|r| r.contains(late) || r.contains(early)), "{reports:#?}");
    }
}

#[test]
fn a_buffer_before_its_allocation_is_reached() {
    let mut found = 0;
    for seed in 0..8 {
        let gpu = Gpu::new(seed);
        let (first, second) = (gpu.stream(), gpu.stream());
        let x = gpu.alloc(32, first).unwrap();
        gpu.upload(x, &[1.0; 8], second);
        gpu.sync(second).unwrap();
        gpu.sync(first).unwrap();
        let reports = gpu.sim.reports();
        found +=
            usize::from(reports.iter().any(|r| r.contains("its allocation has not been reached")));
        assert!(!reports.is_empty());
        let other = "it is allocated by `alloc` (stream 0), and no event orders the two";
        assert!(
            reports[0].contains("not been reached") || reports[0].contains(other),
            "{reports:#?}"
        );
    }
    assert!((1..8).contains(&found), "{found}");
}

#[test]
fn memory_that_nothing_has_written() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let x = gpu.alloc(32, stream).unwrap();
    let y = gpu.buffer(&[1.0; 8], stream);
    gpu.axpy(y, x, 1.0, 8, stream);
    gpu.sync(stream).unwrap();
    one(
        &gpu.sim.reports(),
        &["`axpy` (stream 0) reads bytes", "of buffer 1 (32 bytes)", "nothing has written it"],
    );
}

#[test]
fn memory_of_another_device() {
    let gpu = Gpu::new(1);
    let far = gpu.stream();
    let x = gpu.buffer(&[1.0; 8], far);
    gpu.sync(far).unwrap();
    gpu.on(1);
    let near = gpu.stream();
    let y = gpu.buffer(&[1.0; 8], near);
    gpu.axpy(y, x, 1.0, 8, near);
    gpu.sync(near).unwrap();
    one(
        &gpu.sim.reports(),
        &["`axpy` (stream 1) reads", "it is on another device, to which access was not enabled"],
    );
    // SAFETY: a context of this driver.
    unsafe { gpu.driver.context_reach(gpu.contexts[0], 0) }.unwrap();
    gpu.axpy(y, x, 1.0, 8, near);
    let (here, there) = (gpu.contexts[1], gpu.contexts[0]);
    // SAFETY: addresses of two devices, each with its context.
    unsafe { gpu.driver.copy_between(y, here, x, there, 32, near) }.unwrap();
    gpu.sync(near).unwrap();
    assert_eq!(gpu.sim.reports(), Vec::<String>::new());
}

#[test]
fn threads_of_a_block_without_a_barrier() {
    let gpu = Gpu::new(4);
    let stream = gpu.stream();
    let (x, y) = (gpu.buffer(&[1.0; 64], stream), gpu.buffer(&[0.0; 64], stream));
    for name in ["without_barrier", "without_second_barrier"] {
        gpu.launch(name, 1, 64, &[Arg::At(y), Arg::At(x)], stream).unwrap();
        gpu.sync(stream).unwrap();
        let reports = gpu.sim.reports();
        let races =
            ["it, and no barrier orders the two", "reads shared memory that nothing has written"];
        assert!(reports.iter().any(|report| report.contains(races[0])), "{reports:#?}");
        for report in reports {
            assert!(report.starts_with(&format!("`{name}` (stream 0), thread ")), "{report}");
            assert!(races.iter().any(|race| report.contains(race)), "{report}");
        }
    }
}

#[test]
fn shared_memory_that_is_unwritten_or_too_small() {
    one(
        &reports("unwritten_shared", 32, 1, 32),
        &["`unwritten_shared` (stream 0), thread", "reads shared memory that nothing has written"],
    );
    one(
        &reports("beyond_shared", 32, 1, 32),
        &["thread 31 of block 0", "touches shared memory beyond what the block has"],
    );
}

#[test]
fn threads_and_blocks_that_share_an_element() {
    one(
        &reports("same_element", 2, 1, 1),
        &["`same_element` (stream 0) writes bytes 0..4", "another thread writes it too"],
    );
    let blocks = reports("blocks_share", 1, 2, 1);
    assert!(blocks.iter().all(|report| report.contains("another block writes it")), "{blocks:#?}");
    assert!(!blocks.is_empty());
}

/// Whoever comes last, the writer or the other reader: of the same warp, another warp, another block.
#[test]
fn an_element_that_one_thread_reads_and_another_reads_and_writes() {
    for (second, other) in [(1, "another thread"), (32, "another thread"), (64, "another block")] {
        let mut last = [0, 0];
        for seed in 0..16 {
            let gpu = Gpu::new(seed);
            let stream = gpu.stream();
            let y = gpu.buffer(&[0.0; 129], stream);
            let args = [Arg::At(y), Arg::U32(0), Arg::U32(second)];
            gpu.launch("reader_and_writer", 2, 64, &args, stream).unwrap();
            gpu.sync(stream).unwrap();
            let reports = gpu.sim.reports();
            assert!(
                reports.len() == 1 && reports[0].contains(other),
                "0 and {second}: {reports:?}"
            );
            last[usize::from(reports[0].contains("reads it"))] += 1;
        }
        assert!(last[0] > 0 && last[1] > 0, "both orders are tried: {last:?}");
    }
}

#[test]
fn an_address_that_is_not_aligned() {
    one(
        &reports("unaligned", 1, 1, 2),
        &["`unaligned` (stream 0), thread 0 of block 0: touches an address that is no multiple"],
    );
}

#[test]
fn threads_that_do_not_come_to_a_barrier_or_an_exchange() {
    one(
        &reports("divergent_barrier", 32, 1, 32),
        &["threads wait at a barrier, and others of the block have ended"],
    );
    one(
        &reports("divergent_exchange", 32, 1, 32),
        &["threads of a warp exchange values, and others of it have ended"],
    );
}

#[test]
fn threads_that_would_hang_end_the_context() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let y = gpu.buffer(&[0.0; 32], stream);
    gpu.launch("hangs", 1, 32, &[Arg::At(y)], stream).unwrap();
    let error = gpu.sync(stream).unwrap_err();
    assert_eq!(error.name, "CUDA_ERROR_LAUNCH_TIMEOUT");
    one(&gpu.sim.reports(), &["`hangs` (stream 0)", "they would hang"]);
    assert_eq!(gpu.alloc(4, stream).unwrap_err().name, "CUDA_ERROR_LAUNCH_TIMEOUT");
}

#[test]
fn an_address_of_no_device_ends_the_context() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let y = gpu.buffer(&[0.0; 32], stream);
    gpu.launch("null_address", 1, 32, &[Arg::At(y), Arg::At(8)], stream).unwrap();
    assert_eq!(gpu.sync(stream).unwrap_err().name, "CUDA_ERROR_ILLEGAL_ADDRESS");
    one(
        &gpu.sim.reports(),
        &["`null_address` (stream 0), thread 5 of block 0: writes to an address of no device"],
    );
}
