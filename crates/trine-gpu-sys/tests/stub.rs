//! Tables filled from a stub that g++ compiles: what is found, and every way in which it can be wrong.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::ptr::null;
use tempfile::TempDir;
use trine_gpu_sys::driver::DriverSymbols;
use trine_gpu_sys::{CallError, CublasLt, Driver, LoadError, Nccl, Nvrtc, Search, Version};
use trine_gpu_sys::{Library, cublaslt, driver, load, nccl, nvrtc};
use trine_testkit::gpu::{stub, stubs};

/// A folder with one library.
fn with(file: &str, args: &[&str]) -> (TempDir, Search) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    stub(folder.path(), file, args).expect("g++ compiles the stub");
    let search = only(folder.path());
    (folder, search)
}

fn only(folder: &Path) -> Search {
    Search::only(vec![folder.to_owned()])
}

#[test]
fn a_whole_set_says_its_paths_versions_and_gpus() {
    let folder = tempfile::tempdir().unwrap();
    stubs(folder.path()).unwrap();
    let search = only(folder.path());
    let driver = load::<Driver>(&driver::CUDA, &search).unwrap();
    let cublaslt = load::<CublasLt>(&cublaslt::CUDA, &search).unwrap();
    let nccl = load::<Nccl>(&nccl::CUDA, &search).unwrap();
    let nvrtc = load::<Nvrtc>(&nvrtc::CUDA, &search).unwrap();
    let found = [
        (driver.path, driver.version.to_string()),
        (cublaslt.path, cublaslt.version.to_string()),
        (nccl.path, nccl.version.to_string()),
        (nvrtc.path, nvrtc.version.to_string()),
    ];
    let expected = [
        ("libcuda.so.1", "12.4"),
        ("libcublasLt.so.12", "12.8.3"),
        ("libnccl.so.2", "2.19.3"),
        ("libnvrtc.so.12", "12.0"),
    ];
    assert_eq!(found, expected.map(|(file, text)| (folder.path().join(file), text.to_owned())));

    let gpus = driver.functions.gpus().unwrap();
    let gpus: Vec<_> =
        gpus.iter().map(|gpu| (&*gpu.name, gpu.memory_bytes, gpu.capability)).collect();
    assert_eq!(gpus, [("Stub 80", 80 << 30, (9, 0)), ("Stub 24", 24 << 30, (8, 6))]);
}

#[test]
fn nothing_found_lists_names_and_folders() {
    let folders: Vec<PathBuf> = vec![tempfile::tempdir().unwrap().path().into(), "gone".into()];
    let error = load::<CublasLt>(&cublaslt::CUDA, &Search::only(folders.clone())).unwrap_err();
    let files = &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"];
    let refused = Vec::new();
    let expected =
        LoadError::Missing { library: "cuBLASLt", files, system: false, folders, refused };
    assert_eq!(error, expected);
}

#[test]
fn a_library_without_a_symbol_is_named_with_it() {
    let (folder, search) = with("libcuda.so.1", &["-DcuMemAllocAsync=gone"]);
    let error = load::<Driver>(&driver::CUDA, &search).unwrap_err();
    let path = folder.path().join("libcuda.so.1");
    let text = format!(
        "the CUDA driver in {} has no function cuMemAllocAsync: it is too old, or another library",
        path.display()
    );
    assert_eq!(error.to_string(), text);
    let (library, symbol) = ("the CUDA driver", "cuMemAllocAsync");
    assert_eq!(error, LoadError::Symbol { library, path, symbol });
}

#[test]
fn an_old_library_is_refused_with_both_versions() {
    let (folder, search) = with("libcuda.so", &["-DDRIVER=11080"]);
    let error = load::<Driver>(&driver::CUDA, &search).unwrap_err();
    let (found, least) = (Version::new(11, 8), Version::new(12, 0));
    let path = folder.path().join("libcuda.so");
    assert_eq!(error, LoadError::Old { library: "the CUDA driver", path, found, least });

    let old = |file, arg| with(file, &[arg]);
    let (_folder, search) = old("libcublasLt.so.11", "-DLT=11605");
    let error = load::<CublasLt>(&cublaslt::CUDA, &search).unwrap_err();
    let text = error.to_string();
    assert!(text.ends_with("is of version 11.6.5; the oldest that can be used is 11.9"), "{text}");
    let (_folder, search) = old("libnccl.so.2", "-DNCCL=2804");
    let text = load::<Nccl>(&nccl::CUDA, &search).unwrap_err().to_string();
    assert!(text.ends_with("is of version 2.8.4; the oldest that can be used is 2.18"), "{text}");
}

#[test]
fn a_library_that_does_not_say_its_version_is_refused() {
    let (folder, search) = with("libnccl.so.2", &["-DNCCL_CODE=2"]);
    let error = load::<Nccl>(&nccl::CUDA, &search).unwrap_err();
    let source = CallError {
        function: "ncclGetVersion",
        code: 2,
        name: "ncclSystemError".into(),
        text: "unhandled system error".into(),
    };
    let path = folder.path().join("libnccl.so.2");
    assert_eq!(error, LoadError::Version { library: "NCCL", path, source });
}

#[test]
fn a_call_that_fails_has_its_function_code_name_and_text() {
    let (_folder, search) = with("libcuda.so.1", &["-DINIT=803"]);
    let error = load::<Driver>(&driver::CUDA, &search).unwrap().functions.gpus().unwrap_err();
    assert_eq!((error.function, error.code), ("cuInit", 803));
    assert_eq!(
        error.to_string(),
        "cuInit failed with CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803): system has unsupported display \
         driver / cuda driver combination"
    );

    let (_folder, search) = with("libcuda.so.1", &["-DINIT=100"]);
    let loaded = load::<Driver>(&driver::CUDA, &search).unwrap();
    assert_eq!(loaded.functions.gpus(), Ok(Vec::new()));

    // A code that the library does not know itself.
    let (_folder, search) = with("libcuda.so.1", &["-DINIT=4711"]);
    let error = load::<Driver>(&driver::CUDA, &search).unwrap().functions.gpus().unwrap_err();
    assert_eq!(error.to_string(), "cuInit failed with an unknown code (4711)");

    let (_folder, search) = with("libcublasLt.so.13", &[]);
    let cublaslt = load::<CublasLt>(&cublaslt::CUDA, &search).unwrap().functions;
    let mut handle = cublaslt::Handle(std::ptr::null_mut());
    // SAFETY: the stub takes a pointer and writes nothing.
    let error = unsafe { cublaslt.create(&mut handle) }.unwrap_err();
    let text =
        "cublasLtCreate failed with CUBLAS_STATUS_NOT_INITIALIZED (1): the stub computes nothing";
    assert_eq!(error.to_string(), text);
}

/// What another maker's library calls its functions.
static OTHER: Library<DriverSymbols> = Library {
    name: "another driver",
    files: &["libother.so.6"],
    companions: None,
    version_min: Version::new(12, 0),
    symbols: DriverSymbols { init: "otherInit", launch: "otherLaunch", ..DriverSymbols::CUDA },
};

#[test]
fn the_same_table_is_filled_by_other_names() {
    let args = ["-DcuInit=otherInit", "-DcuLaunchKernel=otherLaunch", "-DINIT=803"];
    let (_folder, search) = with("libother.so.6", &args);
    let loaded = load::<Driver>(&OTHER, &search).unwrap();
    assert_eq!(loaded.functions.gpus().unwrap_err().function, "otherInit");

    let (_folder, search) = with("libother.so.6", &["-DcuInit=otherInit"]);
    let error = load::<Driver>(&OTHER, &search).unwrap_err();
    assert!(matches!(error, LoadError::Symbol { symbol: "otherLaunch", .. }), "{error}");
}

/// The first folder decides, whatever the version in the next one is; inside, the newest name does.
#[test]
fn wheels_and_toolkits_are_found_in_the_order_of_their_folders() {
    let root = tempfile::tempdir().unwrap();
    let wheel = root.path().join("venv/lib/python3.12/site-packages/nvidia/cublas/lib");
    let toolkit = root.path().join("local/cuda-12.4/lib64");
    stub(&wheel, "libcublasLt.so.12", &[]).unwrap();
    stub(&toolkit, "libcublasLt.so.13", &["-DLT=130100"]).unwrap();
    stub(&toolkit, "libcublasLt.so.12", &[]).unwrap();
    let find = |folders: [&str; 2]| {
        let folders = folders.map(|folder| root.path().join(folder));
        load::<CublasLt>(&cublaslt::CUDA, &Search::only(folders.into())).unwrap()
    };
    assert_eq!(find(["venv", "local"]).path, wheel.join("libcublasLt.so.12"));
    let newest = find(["local", "venv"]);
    assert_eq!((newest.path, newest.version.major), (toolkit.join("libcublasLt.so.13"), 13));
}

#[test]
fn a_broken_file_is_passed_over_and_told_where_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let (good, broken) = (folder.path().join("good"), folder.path().join("broken"));
    stub(&good, "libnccl.so.2", &[]).unwrap();
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("libnccl.so.2"), "not a library").unwrap();
    let both = Search::only(vec![broken.clone(), good.clone()]);
    let found = load::<Nccl>(&nccl::CUDA, &both).unwrap();
    assert_eq!(found.path, good.join("libnccl.so.2"));
    let text = load::<Nccl>(&nccl::CUDA, &only(&broken)).unwrap_err().to_string();
    assert!(text.contains("libnccl.so.2 cannot be opened: "), "{text}");
}

/// NVRTC opens its built-in headers by their name alone, and no loader knows the folder of a wheel.
#[test]
fn what_a_library_opens_by_name_is_opened_beside_it() {
    const BUILTINS: &str = "libnvrtc-builtins.so.77.0";
    let compile = |search: &Search| {
        let nvrtc = load::<Nvrtc>(&nvrtc::CUDA, search).unwrap().functions;
        // SAFETY: the stub looks at no argument.
        unsafe { nvrtc.program_compile(nvrtc::Program(std::ptr::null_mut()), 0, null()) }
    };
    let name = format!("-DBUILTINS=\"{BUILTINS}\"");
    let (_alone, search) = with("libnvrtc.so.12", &[&name]);
    let error = compile(&search).unwrap_err();
    let text = "nvrtcCompileProgram failed with NVRTC_ERROR_BUILTIN_OPERATION_FAILURE (7)";
    assert_eq!(error.to_string(), text);

    let (folder, search) = with("libnvrtc.so.12", &[&name]);
    stub(folder.path(), BUILTINS, &[&format!("-Wl,-soname,{BUILTINS}")]).unwrap();
    assert_eq!(compile(&search), Ok(()));
}
