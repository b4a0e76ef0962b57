//! The compiler of kernels, as far as libraries that only answer show it. `cargo xtask gpu kernels --check` is the real
//! one.

use trine_gpu::{Compiler, GpuError};
use trine_gpu_sys::{LoadError, Search, Version};
use trine_testkit::gpu::stub;

const NAME: &str = "libnvrtc.so.12";
const OPTIONS: [&str; 1] = ["--gpu-architecture=compute_80"];

#[test]
fn a_compiler_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Compiler::open(&Search::only(vec![folder.path().to_owned()])).unwrap_err();
    assert!(
        matches!(&error, GpuError::Library(LoadError::Missing { library: "NVRTC", .. })),
        "{error}"
    );
}

#[test]
fn what_does_not_compile_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // Without the library that it looks for, the compiler fails.
    stub(folder.path(), NAME, &["-DBUILTINS=\"libno-such-library.so\""]).unwrap();
    let compiler = Compiler::open(&Search::only(vec![folder.path().to_owned()])).unwrap();
    assert_eq!(compiler.version(), Version::new(12, 0));
    assert!(compiler.path().ends_with(NAME));
    let headers = [("trine.cuh", "// empty")];
    let error = compiler.ptx("sums.cu", "void k() {}", &headers, &OPTIONS).unwrap_err();
    let GpuError::Source { name, source, log } = &error else { panic!("{error}") };
    assert_eq!((name.as_str(), source.code, log.as_str()), ("sums.cu", 7, "it says no more"));
    assert!(
        error.to_string().starts_with("`sums.cu` does not compile: nvrtcCompileProgram "),
        "{error}"
    );
    let error = compiler.ptx("sums.cu", "void k() {}\0", &headers, &OPTIONS).unwrap_err();
    assert_eq!(error.to_string(), "an image of kernels has a zero byte in its source");
}

/// This one has no text to give.
#[test]
fn a_text_has_the_length_that_the_compiler_says() {
    let folder = tempfile::tempdir().unwrap();
    stub(folder.path(), NAME, &["-DBUILTINS=\"libc.so.6\""]).unwrap();
    let compiler = Compiler::open(&Search::only(vec![folder.path().to_owned()])).unwrap();
    assert_eq!(compiler.ptx("sums.cu", "", &[], &OPTIONS).unwrap(), "");
}
