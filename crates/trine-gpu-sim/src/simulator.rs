//! A simulated machine: a copy of the library with a state of its own, and what a test asks it.

use std::ffi::{CString, c_char, c_uint};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use tempfile::TempDir;

/// The files that loaders look for: one library is all of them.
const DRIVER: &str = "libcuda.so.1";
const OTHERS: [&str; 2] = ["libcublasLt.so.12", "libnccl.so.2"];

/// Beside the library: the settings of the machine of each process, what was found wrong in it, and its counters.
const MACHINE: &str = "machine";
const REPORTS: &str = "reports.";
const COUNTERS: &str = "counters.";

/// A machine before it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Its GPUs; none is possible.
    pub devices: u32,
    /// The memory of each in bytes.
    pub memory_bytes: usize,
    /// Decides in which order streams, blocks and threads go on.
    pub seed: u64,
    /// How long a host waits while nothing can go on, in seconds.
    pub patience_seconds: f64,
}

impl Default for Settings {
    /// Two GPUs with 1 GiB each.
    fn default() -> Self {
        Self { devices: 2, memory_bytes: 1 << 30, seed: 1, patience_seconds: 5.0 }
    }
}

/// What was asked of the driver so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Buffers that were made: of devices, and of pinned memory.
    pub allocations: u64,
    /// Times that a thread of the host has waited for a stream or an event.
    pub host_waits: u64,
    /// Kernels.
    pub launches: u64,
    /// Copies.
    pub copies: u64,
}

/// A machine with simulated GPUs. Loaders find its driver in [`Simulator::folder`]. It is apart from every other:
/// its library is a file of its own. The library stays open as long as the process runs.
#[derive(Debug)]
pub struct Simulator {
    folder: TempDir,
    functions: &'static Functions,
}

/// `sim_functions` of `world.cpp`.
#[derive(Debug)]
#[repr(C)]
struct Functions {
    start: unsafe extern "C" fn(c_uint, usize, u64, f64),
    reports: unsafe extern "C" fn(*mut u8, usize) -> usize,
    image: unsafe extern "C" fn(*mut u8, usize) -> usize,
    count: unsafe extern "C" fn(*mut Counters),
    name: unsafe extern "C" fn(u64, *const c_char),
    refuse_allocation: unsafe extern "C" fn(i64),
    lose_device: unsafe extern "C" fn(c_uint),
    fail_call: unsafe extern "C" fn(i64),
    slow_link: unsafe extern "C" fn(f64),
    rest: unsafe extern "C" fn(),
}

/// A folder with a copy of the library under the names that loaders look for.
fn installed(library: &Path) -> io::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    fs::copy(library, folder.path().join(DRIVER))?;
    for other in OTHERS {
        std::os::unix::fs::symlink(DRIVER, folder.path().join(other))?;
    }
    Ok(folder)
}

/// Machines for programs that a test runs: each process that opens the driver of the folder has one of its own.
#[derive(Debug)]
pub struct Installed(TempDir);

/// What goes wrong in a process with an [`Installed`] machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// After so many launches of kernels the device of the next one is lost.
    LoseDevice {
        /// Launches before it.
        launches: u32,
    },
    /// The allocation of device memory after so many fails, as if the device were full.
    RefuseAllocation {
        /// Allocations before it.
        allocations: u32,
    },
}

impl Installed {
    /// A folder whose driver is a copy of `library`, which [`compile`](crate::compile) has made.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(library: &Path, settings: &Settings) -> io::Result<Self> {
        let folder = installed(library)?;
        let Settings { devices, memory_bytes, seed, patience_seconds } = *settings;
        let machine = format!("{devices} {memory_bytes} {seed} {patience_seconds}\n");
        fs::write(folder.path().join(MACHINE), machine)?;
        Ok(Self(folder))
    }

    /// In each process that begins from now on, `fault` happens.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn plant(&self, fault: Fault) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().append(true).open(self.folder().join(MACHINE))?;
        match fault {
            Fault::LoseDevice { launches } => writeln!(file, "lose {launches}"),
            Fault::RefuseAllocation { allocations } => writeln!(file, "refuse {allocations}"),
        }
    }

    /// Where the driver is.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// What was found wrong in each process that has ended so far and had a machine.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn reports(&self) -> io::Result<Vec<String>> {
        self.left(REPORTS)
    }

    /// What was asked of the driver in each of these processes.
    ///
    /// # Errors
    /// As [`Installed::reports`].
    pub fn counters(&self) -> io::Result<Vec<Counters>> {
        let wrong = |text: &str| io::Error::other(format!("no counters: {text:?}"));
        let all = self.left(COUNTERS)?.into_iter().map(|text| {
            let numbers: Vec<u64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
            let [allocations, host_waits, launches, copies] =
                numbers.try_into().map_err(|_| wrong(&text))?;
            Ok(Counters { allocations, host_waits, launches, copies })
        });
        all.collect()
    }

    /// The files that these processes have left.
    fn left(&self, begin: &str) -> io::Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.folder())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(begin) {
                all.push(fs::read_to_string(entry.path())?);
            }
        }
        Ok(all)
    }
}

impl Simulator {
    /// A machine whose driver is a copy of `library`, which [`compile`](crate::compile) has made.
    ///
    /// # Errors
    /// If the library cannot be copied or opened.
    pub fn start(library: &Path, settings: &Settings) -> io::Result<Self> {
        let folder = installed(library)?;
        let functions = open(&folder.path().join(DRIVER))?;
        let Settings { devices, memory_bytes, seed, patience_seconds } = *settings;
        // SAFETY: takes numbers, before any other call.
        unsafe { (functions.start)(devices, memory_bytes, seed, patience_seconds) };
        Ok(Self { folder, functions })
    }

    /// Where its driver is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What was found wrong since the last call, each fault once: the operation, the buffer, what is wrong with it.
    pub fn reports(&self) -> Vec<String> {
        // SAFETY: writes at most as many bytes as it is told, and returns how many there are.
        let text = text(|to, room| unsafe { (self.functions.reports)(to, room) });
        text.lines().map(str::to_owned).collect()
    }

    /// An image of its kernels for a module: PTX with their names and arguments, and nothing in them.
    pub fn image(&self) -> String {
        // SAFETY: writes at most as many bytes as it is told, and returns how many there are.
        text(|to, room| unsafe { (self.functions.image)(to, room) })
    }

    /// What was asked of it so far.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        // SAFETY: writes one value of this layout.
        unsafe { (self.functions.count)(&mut counters) };
        counters
    }

    /// Reports call the buffer at this address so.
    ///
    /// # Errors
    /// If the name has a zero byte.
    pub fn name(&self, address: u64, name: &str) -> io::Result<()> {
        let name = CString::new(name)?;
        // SAFETY: the name ends with a zero byte and is copied.
        unsafe { (self.functions.name)(address, name.as_ptr()) };
        Ok(())
    }

    /// The allocation of a device's memory after `after` more fails, as if it were full.
    pub fn refuse_allocation(&self, after: u32) {
        // SAFETY: takes a number.
        unsafe { (self.functions.refuse_allocation)(i64::from(after)) };
    }

    /// The call of NCCL after `after` more fails, and with it its communicator: its ranks are told, and what is on its
    /// way stands still until they abort.
    pub fn fail_call(&self, after: u32) {
        // SAFETY: takes a number.
        unsafe { (self.functions.fail_call)(i64::from(after)) };
    }

    /// From now on a call of NCCL begins so many seconds later than its last rank has come.
    pub fn slow_link(&self, seconds: f64) {
        // SAFETY: takes a number.
        unsafe { (self.functions.slow_link)(seconds) };
    }

    /// From now on every call for this device fails.
    pub fn lose_device(&self, device: u32) {
        // SAFETY: takes a number; one that no device has does nothing.
        unsafe { (self.functions.lose_device)(device) };
    }
}

impl Drop for Simulator {
    /// Gives back what the machine holds of the process; the library stays open.
    fn drop(&mut self) {
        // SAFETY: waits for calls of other threads, and frees what the next one would make again.
        unsafe { (self.functions.rest)() };
    }
}

fn open(path: &Path) -> io::Result<&'static Functions> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero byte; the library's start-up code is the simulator's.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    let no_simulator = || io::Error::other(format!("{} is no simulator", path.display()));
    let library = NonNull::new(library).ok_or_else(no_simulator)?;
    // SAFETY: the library is open and the name ends with a zero byte.
    let found = unsafe { libc::dlsym(library.as_ptr(), c"sim_functions".as_ptr()) };
    let functions = NonNull::new(found.cast::<Functions>()).ok_or_else(no_simulator)?;
    // SAFETY: the constant of `world.cpp`, which has this layout, in a library that is never closed.
    Ok(unsafe { functions.as_ref() })
}

/// A text of which only the function that writes it knows the length.
fn text(write: impl Fn(*mut u8, usize) -> usize) -> String {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let len = write(bytes.as_mut_ptr(), bytes.len());
        if len <= bytes.len() {
            bytes.truncate(len);
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        bytes.resize(len, 0);
    }
}
