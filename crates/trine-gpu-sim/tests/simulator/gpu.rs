//! A simulated machine and the calls of its driver, as short as tests want them.

use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr::null_mut;
use trine_gpu_sim::{Checks, Settings, Simulator, Source, compile};
use trine_gpu_sys::driver::{self, Context, DevicePtr, Event, Function, Module, Stream};
use trine_gpu_sys::{CallError, Driver, Search, load};

const KERNELS: Source<'static> = Source { name: "kernels.cu", text: include_str!("kernels.cu") };

type Done = Result<(), CallError>;

/// One argument of a kernel.
pub(crate) enum Arg {
    At(DevicePtr),
    F32(f32),
    U32(u32),
    Bytes(Vec<u8>),
}

pub(crate) struct Gpu {
    pub(crate) sim: Simulator,
    pub(crate) driver: Driver,
    pub(crate) contexts: Vec<Context>,
    module: Module,
}

// SAFETY: the driver takes its handles from any thread.
unsafe impl Sync for Gpu {}

impl Gpu {
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(&Settings { seed, patience_seconds: 0.05, ..Settings::default() }, Checks::On)
    }

    pub(crate) fn with(settings: &Settings, checks: Checks) -> Self {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trine-gpu-sim");
        let library = compile(&kept, &[KERNELS], checks).unwrap_or_else(|error| panic!("{error}"));
        let sim = Simulator::start(&library, settings).expect("the simulator starts");
        let search = Search::only(vec![sim.folder().to_owned()]);
        let driver = load::<Driver>(&driver::CUDA, &search).expect("a whole driver").functions;
        let mut gpu = Self { sim, driver, contexts: Vec::new(), module: Module(null_mut()) };
        // SAFETY: no argument is of memory.
        unsafe { gpu.driver.init(0) }.unwrap();
        for device in 0..settings.devices {
            let mut context = Context(null_mut());
            // SAFETY: writes one handle.
            unsafe { gpu.driver.context_retain(&mut context, device as i32) }.unwrap();
            gpu.contexts.push(context);
        }
        gpu.on(0);
        let image = gpu.sim.image();
        gpu.module = gpu.load(&image).unwrap();
        gpu
    }

    pub(crate) fn on(&self, device: usize) {
        // SAFETY: a context of this driver.
        unsafe { self.driver.context_set_current(self.contexts[device]) }.unwrap();
    }

    pub(crate) fn load(&self, image: &str) -> Result<Module, CallError> {
        let (image, mut module) = (CString::new(image).unwrap(), Module(null_mut()));
        let image = image.as_ptr().cast();
        // SAFETY: the text ends with a zero byte; no option is given.
        unsafe { self.driver.module_load(&mut module, image, 0, null_mut(), null_mut()) }?;
        Ok(module)
    }

    pub(crate) fn function(&self, module: Module, name: &str) -> Result<Function, CallError> {
        let (name, mut function) = (CString::new(name).unwrap(), Function(null_mut()));
        // SAFETY: the name ends with a zero byte.
        unsafe { self.driver.module_function(&mut function, module, name.as_ptr()) }?;
        Ok(function)
    }

    pub(crate) fn stream(&self) -> Stream {
        let mut stream = Stream(null_mut());
        // SAFETY: writes one handle.
        unsafe { self.driver.stream_create(&mut stream, driver::STREAM_NON_BLOCKING, 0) }.unwrap();
        stream
    }

    pub(crate) fn record(&self, stream: Stream) -> Event {
        let mut event = Event(null_mut());
        // SAFETY: writes one handle; both handles are open.
        unsafe { self.driver.event_create(&mut event, driver::EVENT_WITHOUT_TIME) }.unwrap();
        // SAFETY: as above.
        unsafe { self.driver.event_record(event, stream) }.unwrap();
        event
    }

    pub(crate) fn wait(&self, stream: Stream, event: Event) {
        // SAFETY: both handles are open.
        unsafe { self.driver.stream_wait(stream, event, 0) }.unwrap();
    }

    pub(crate) fn sync(&self, stream: Stream) -> Done {
        // SAFETY: the handle is open, or the simulator says that it is not.
        unsafe { self.driver.stream_synchronize(stream) }
    }

    pub(crate) fn alloc(&self, bytes: usize, stream: Stream) -> Result<DevicePtr, CallError> {
        let mut address = 0;
        // SAFETY: writes one address.
        unsafe { self.driver.memory_alloc(&mut address, bytes, stream) }?;
        Ok(address)
    }

    pub(crate) fn free(&self, address: DevicePtr, stream: Stream) {
        // SAFETY: the simulator holds the address against its buffers.
        unsafe { self.driver.memory_free(address, stream) }.unwrap();
    }

    /// Pinned memory of the host with these values.
    pub(crate) fn pinned(&self, values: &[f32]) -> *mut f32 {
        let mut address: *mut c_void = null_mut();
        // SAFETY: writes an address of so many bytes, which then hold the values.
        unsafe { self.driver.host_alloc(&mut address, size_of_val(values), 0) }.unwrap();
        let address = address.cast::<f32>();
        // SAFETY: as above.
        unsafe { address.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        address
    }

    pub(crate) fn read(&self, pinned: *mut f32, len: usize) -> Vec<f32> {
        // SAFETY: pinned memory of at least so many values.
        unsafe { std::slice::from_raw_parts(pinned, len) }.to_vec()
    }

    pub(crate) fn upload(&self, to: DevicePtr, values: &[f32], stream: Stream) {
        let (from, bytes) = (self.pinned(values), size_of_val(values));
        // SAFETY: pinned memory that stays.
        unsafe { self.driver.copy_to_device(to, from.cast(), bytes, stream) }.unwrap();
    }

    pub(crate) fn download(&self, from: DevicePtr, len: usize, stream: Stream) -> *mut f32 {
        let to = self.pinned(&vec![-1.0; len]);
        // SAFETY: pinned memory that stays.
        unsafe { self.driver.copy_to_host(to.cast(), from, 4 * len, stream) }.unwrap();
        to
    }

    /// A buffer with these values.
    pub(crate) fn buffer(&self, values: &[f32], stream: Stream) -> DevicePtr {
        let address = self.alloc(size_of_val(values), stream).unwrap();
        self.upload(address, values, stream);
        address
    }

    pub(crate) fn launch(
        &self,
        name: &str,
        grid: u32,
        block: u32,
        args: &[Arg],
        stream: Stream,
    ) -> Done {
        self.launch_as(name, [grid, 1, 1], [block, 1, 1], 0, args, stream)
    }

    pub(crate) fn launch_as(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: &[Arg],
        stream: Stream,
    ) -> Done {
        let function = self.function(self.module, name)?;
        let bytes = |arg: &Arg| match arg {
            Arg::At(address) => address.to_ne_bytes().to_vec(),
            Arg::F32(value) => value.to_ne_bytes().to_vec(),
            Arg::U32(value) => value.to_ne_bytes().to_vec(),
            Arg::Bytes(bytes) => bytes.clone(),
        };
        let mut bytes: Vec<_> = args.iter().map(bytes).collect();
        let mut args: Vec<*mut c_void> = bytes.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        // SAFETY: the arguments have the sizes of the kernel's, which the simulator copies at once.
        unsafe {
            self.driver.launch(
                function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                shared_bytes,
                stream,
                args.as_mut_ptr(),
                null_mut(),
            )
        }
    }

    /// `y += a·x` over `n` elements.
    pub(crate) fn axpy(&self, y: DevicePtr, x: DevicePtr, a: f32, n: u32, stream: Stream) {
        let args = [Arg::At(y), Arg::At(x), Arg::F32(a), Arg::U32(n)];
        self.launch("axpy", n.div_ceil(64), 64, &args, stream).unwrap();
    }
}

/// Asserts that there is one report, and that it holds all `parts`.
#[track_caller]
pub(crate) fn one(reports: &[String], parts: &[&str]) {
    assert_eq!(reports.len(), 1, "{reports:#?}");
    for part in parts {
        assert!(reports[0].contains(part), "{:?} lacks {part:?}", reports[0]);
    }
}
