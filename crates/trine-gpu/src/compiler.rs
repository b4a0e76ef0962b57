//! The compiler of kernels: NVRTC, which needs no driver and no GPU.

use crate::error::GpuError;
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use trine_gpu_sys::nvrtc::{self, Program};
use trine_gpu_sys::{CallError, Loaded, Nvrtc, Search, Version, load};

/// Makes PTX of kernels.
#[derive(Debug)]
pub struct Compiler {
    nvrtc: Nvrtc,
    path: PathBuf,
    version: Version,
}

/// A program of the compiler, which is given up when this is dropped.
struct Open<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // SAFETY: made by this library and used by nobody else. A failure can be told to nobody.
        let _ = unsafe { self.nvrtc.program_destroy(&mut self.program) };
    }
}

impl Compiler {
    /// Opens NVRTC.
    ///
    /// # Errors
    /// If it is not there, or cannot be used.
    pub fn open(search: &Search) -> Result<Self, GpuError> {
        let Loaded { functions: nvrtc, path, version } = load::<Nvrtc>(&nvrtc::CUDA, search)?;
        Ok(Self { nvrtc, path, version })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The PTX of a source, which includes `headers` by their names. It depends on nothing but these arguments and the
    /// compiler: there is no folder in it.
    ///
    /// # Errors
    /// What the compiler says of the source, or a name or text with a zero byte.
    pub fn ptx(
        &self,
        name: &str,
        text: &str,
        headers: &[(&str, &str)],
        options: &[&str],
    ) -> Result<String, GpuError> {
        let (name, source) = (c_text(name)?, c_text(text)?);
        let names = texts(headers.iter().map(|(name, _)| *name))?;
        let sources = texts(headers.iter().map(|(_, text)| *text))?;
        let mut program = Program(null_mut());
        let count = headers.len() as c_int;
        let (header_names, header_texts) = (pointers(&names), pointers(&sources));
        // SAFETY: writes one handle; all texts end with a zero byte and are copied, and there are `count` of each.
        let made = unsafe {
            self.nvrtc.program_create(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                count,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        made.map_err(|source| call("make a program of kernels", source))?;
        let open = Open { nvrtc: &self.nvrtc, program };
        let options = texts(options.iter().copied())?;
        let list = pointers(&options);
        // SAFETY: the program is open, the texts end with a zero byte, and there are as many as it is told.
        let compiled =
            unsafe { self.nvrtc.program_compile(program, list.len() as c_int, list.as_ptr()) };
        if let Err(source) = compiled {
            let name = name.to_string_lossy().into_owned();
            return Err(GpuError::Source { name, source, log: open.log() });
        }
        open.ptx().map_err(|source| call("get the PTX of kernels", source))
    }
}

impl Open<'_> {
    /// What the compiler says.
    fn log(&self) -> String {
        // SAFETY: writes one number; the program is open.
        let size = |bytes: &mut usize| unsafe { self.nvrtc.log_bytes(self.program, bytes) };
        // SAFETY: writes as many bytes as were asked for.
        let write = |to: *mut c_char| unsafe { self.nvrtc.log(self.program, to) };
        let log = read(size, write).unwrap_or_default();
        if log.is_empty() { "it says no more".into() } else { log.trim_end().to_owned() }
    }

    fn ptx(&self) -> Result<String, CallError> {
        // SAFETY: writes one number; the program is open.
        let size = |bytes: &mut usize| unsafe { self.nvrtc.ptx_bytes(self.program, bytes) };
        // SAFETY: writes as many bytes as were asked for.
        read(size, |to: *mut c_char| unsafe { self.nvrtc.ptx(self.program, to) })
    }
}

/// A text of which another function says the size, without the zero byte at its end.
fn read(
    size: impl Fn(&mut usize) -> Result<(), CallError>,
    write: impl Fn(*mut c_char) -> Result<(), CallError>,
) -> Result<String, CallError> {
    let mut bytes = 0;
    size(&mut bytes)?;
    let mut text = vec![0u8; bytes];
    write(text.as_mut_ptr().cast())?;
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}

fn call(doing: &str, source: CallError) -> GpuError {
    GpuError::Call { doing: doing.into(), source }
}

fn c_text(text: &str) -> Result<CString, GpuError> {
    CString::new(text).map_err(|_| GpuError::Image("has a zero byte in its source"))
}

fn texts<'a>(all: impl Iterator<Item = &'a str>) -> Result<Vec<CString>, GpuError> {
    all.map(c_text).collect()
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}
