//! The driver's rules: what it refuses, what a test makes fail, what a host waits for in vain.

use crate::gpu::{Arg, Gpu, one};
use std::ptr::null_mut;
use trine_gpu_sim::{Checks, Settings};
use trine_gpu_sys::driver::{Event, NOT_READY, STREAM_NON_BLOCKING, Stream};

#[test]
fn devices_are_those_of_the_settings() {
    let settings = Settings { devices: 3, memory_bytes: 3 << 20, ..Settings::default() };
    let gpus = Gpu::with(&settings, Checks::On).driver.gpus().unwrap();
    assert_eq!(gpus.len(), 3);
    assert_eq!((gpus[2].memory_bytes, gpus[2].capability), (3 << 20, (8, 0)));
}

#[test]
fn a_machine_without_gpus_has_none() {
    let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("trine-gpu-sim");
    let library = trine_gpu_sim::compile(&kept, &[], Checks::Off).unwrap();
    let none = Settings { devices: 0, ..Settings::default() };
    let sim = trine_gpu_sim::Simulator::start(&library, &none).unwrap();
    let search = trine_gpu_sys::Search::only(vec![sim.folder().to_owned()]);
    let driver =
        trine_gpu_sys::load::<trine_gpu_sys::Driver>(&trine_gpu_sys::driver::CUDA, &search)
            .unwrap();
    assert_eq!(driver.functions.gpus(), Ok(Vec::new()));
}

#[test]
fn memory_ends_and_comes_back_in_stream_order() {
    let settings = Settings { memory_bytes: 1000, ..Settings::default() };
    let gpu = Gpu::with(&settings, Checks::On);
    let stream = gpu.stream();
    let first = gpu.alloc(600, stream).unwrap();
    assert_eq!(gpu.alloc(600, stream).unwrap_err().name, "CUDA_ERROR_OUT_OF_MEMORY");
    gpu.free(first, stream);
    let second = gpu.alloc(600, stream).unwrap();
    assert_ne!(first, second, "an address is never given twice");
    gpu.sync(stream).unwrap();
    let (mut free, mut total) = (0, 0);
    // SAFETY: writes two numbers.
    unsafe { gpu.driver.memory_info(&mut free, &mut total) }.unwrap();
    assert_eq!((free, total), (400, 1000));
    assert_eq!(gpu.sim.reports(), Vec::<String>::new());
}

#[test]
fn a_test_makes_allocations_and_devices_fail() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    gpu.sim.refuse_allocation(1);
    let names: Vec<_> =
        (0..3).map(|_| gpu.alloc(4, stream).map_err(|error| error.name).err()).collect();
    assert_eq!(names, [None, Some("CUDA_ERROR_OUT_OF_MEMORY".to_owned()), None]);

    gpu.sim.lose_device(0);
    let error = gpu.sync(stream).unwrap_err();
    let text =
        "cuStreamSynchronize failed with CUDA_ERROR_DEVICE_UNAVAILABLE (46): the device is lost";
    assert_eq!(error.to_string(), text);
    gpu.on(1);
    let other = gpu.stream();
    gpu.sync(other).unwrap();
}

#[test]
fn an_image_that_is_stale_or_none_is_refused() {
    let gpu = Gpu::new(1);
    assert_eq!(gpu.load("no image").unwrap_err().name, "CUDA_ERROR_INVALID_PTX");
    // As NVRTC writes it.
    let head = "//\n.version 8.0\n.target sm_80\n.address_size 64\n\n\t// .globl\taxpy\n\n";
    let with = |third: &str| {
        format!(
            "{head}.visible .entry axpy(\n\t.param .u64 axpy_param_0,\n\t.param .u64 axpy_param_1,\n\t{third},\n\t\
             .param .u32 axpy_param_3\n)\n{{\n\tret;\n}}\n\n.visible .entry structure(\n\t.param .u64 structure_param_0,\n\t\
             .param .align 4 .b8 structure_param_1[12]\n)\n.maxntid 32, 1, 1\n{{\n\tret;\n}}\n"
        )
    };
    let good = gpu.load(&with(".param .f32 axpy_param_2")).unwrap();
    gpu.function(good, "axpy").unwrap();
    gpu.function(good, "structure").unwrap();
    assert_eq!(gpu.function(good, "gone").unwrap_err().name, "CUDA_ERROR_NOT_FOUND");
    let stale = gpu.load(&with(".param .f64 axpy_param_2")).unwrap();
    assert_eq!(gpu.function(stale, "axpy").unwrap_err().name, "CUDA_ERROR_INVALID_IMAGE");
    let what = "`axpy` takes arguments of (8, 8, 4, 4) bytes in the source and of (8, 8, 8, 4) in the image: the image is stale";
    one(&gpu.sim.reports(), &[what]);
    let other = gpu.load(&with(".param .f32 axpy_param_2").replace("axpy", "unknown")).unwrap();
    assert_eq!(gpu.function(other, "unknown").unwrap_err().name, "CUDA_ERROR_INVALID_IMAGE");
    one(&gpu.sim.reports(), &["`unknown` is in the image and not in the source"]);
}

#[test]
fn an_impossible_launch_is_refused() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let y = gpu.buffer(&[0.0; 32], stream);
    for (grid, block) in [(1, 1025), (0, 32), (1, 0)] {
        let error = gpu.launch("same_element", grid, block, &[Arg::At(y)], stream).unwrap_err();
        assert_eq!(error.name, "CUDA_ERROR_INVALID_VALUE", "{grid} × {block}");
    }
    one(&gpu.sim.reports(), &["cuLaunchKernel: a grid or a block of an impossible size"]);
    let error =
        gpu.launch_as("neighbours", [1; 3], [8, 1, 1], 60_000, &[Arg::At(y)], stream).unwrap_err();
    assert_eq!(error.name, "CUDA_ERROR_INVALID_VALUE");
    one(&gpu.sim.reports(), &["more shared memory than the kernel may have"]);
}

#[test]
fn streams_and_events_that_cannot_be_used_are_named() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let default = Stream(null_mut());
    assert_eq!(gpu.alloc(4, default).unwrap_err().name, "CUDA_ERROR_INVALID_HANDLE");
    one(&gpu.sim.reports(), &["cuMemAllocAsync: the stream is closed, or the default stream"]);
    let mut event = Event(null_mut());
    // SAFETY: writes one handle; what is wrong is said.
    unsafe { gpu.driver.event_create(&mut event, 0) }.unwrap();
    gpu.wait(stream, event);
    one(&gpu.sim.reports(), &["cuStreamWaitEvent: the event was never recorded"]);
    // SAFETY: as above.
    unsafe { gpu.driver.event_destroy(event) }.unwrap();
    // SAFETY: as above.
    let error = unsafe { gpu.driver.event_record(event, stream) }.unwrap_err();
    assert_eq!(error.name, "CUDA_ERROR_INVALID_HANDLE");
    gpu.on(1);
    let there = gpu.buffer(&[0.0; 4], gpu.stream());
    let error = gpu.launch("same_element", 1, 1, &[Arg::At(there)], stream).unwrap_err();
    assert_eq!(error.name, "CUDA_ERROR_INVALID_HANDLE");
    let reports = gpu.sim.reports();
    assert!(
        reports.iter().any(|r| r == "cuLaunchKernel: the stream is of another device"),
        "{reports:?}"
    );
    let mut stream = Stream(null_mut());
    // SAFETY: writes one handle.
    let flags = unsafe { gpu.driver.stream_create(&mut stream, STREAM_NON_BLOCKING - 1, 0) };
    assert_eq!(flags.unwrap_err().name, "CUDA_ERROR_INVALID_VALUE");
}

#[test]
fn host_memory_that_is_not_pinned_is_reported() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let y = gpu.alloc(4, stream).unwrap();
    let value = Box::new(1.0f32);
    // SAFETY: the value lives until the stream has been waited for.
    unsafe { gpu.driver.copy_to_device(y, (&raw const *value).cast(), 4, stream) }.unwrap();
    one(&gpu.sim.reports(), &["cuMemcpyHtoDAsync: the memory of the host is not pinned"]);
}

#[test]
fn questions_make_streams_go_on() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let x = gpu.buffer(&[7.0; 4], stream);
    let out = gpu.download(x, 4, stream);
    let event = gpu.record(stream);
    let mut questions = 0;
    // SAFETY: the event is open.
    while let Err(error) = unsafe { gpu.driver.event_query(event) } {
        assert_eq!(error.code, NOT_READY);
        questions += 1;
        assert!(questions < 100);
    }
    assert_eq!((gpu.read(out, 4), gpu.sim.counters().host_waits), (vec![7.0; 4], 0));
}

/// A stream waits for another that waits for it.
#[test]
fn a_wait_that_cannot_end_says_where_streams_stand() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    // A device that is lost never reaches the event that the other device waits for.
    gpu.on(1);
    let lost = gpu.stream();
    let event = gpu.record(lost);
    gpu.sim.lose_device(1);
    gpu.on(0);
    gpu.wait(stream, event);
    assert_eq!(gpu.sync(stream).unwrap_err().name, "CUDA_ERROR_LAUNCH_TIMEOUT");
    one(
        &gpu.sim.reports(),
        &["nothing goes on; stream 0 stands before `wait`; stream 1 stands before `record`"],
    );
}

/// Memory of this process, in bytes.
fn held() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_machine_that_is_dropped_holds_no_memory() {
    const BYTES: usize = 128 << 20;
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let before = held();
    // One is alive, one was freed, and one is freed later.
    let [_, second, third] = [0; 3].map(|_| gpu.alloc(BYTES, stream).unwrap());
    gpu.free(second, stream);
    gpu.sync(stream).unwrap();
    let most = held();
    assert!(most > before + 2 * BYTES, "{before} {most}");
    let Gpu { sim, driver, .. } = gpu;
    drop(sim);
    let after = held();
    assert!(after < most - 2 * BYTES, "{most} {after}");
    // What is asked afterwards is answered, and needs no memory either.
    // SAFETY: an address and a stream of this driver.
    unsafe { driver.memory_free(third, stream) }.unwrap();
    // SAFETY: a stream of this driver.
    unsafe { driver.stream_synchronize(stream) }.unwrap();
    assert!(held() < most - 2 * BYTES);
}
