//! The compiler of kernels at run time: NVRTC, as `nvrtc.h` of CUDA 12.0 declares it.

use crate::error::{CallError, UNKNOWN, Version, text_at};
use crate::library::Library;
use std::ffi::{c_char, c_int};

/// NVIDIA's. The oldest is the first that makes objects of a device itself.
pub static CUDA: Library<NvrtcSymbols> = Library {
    name: "NVRTC",
    files: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"],
    companions: Some("libnvrtc-builtins.so."),
    version_min: Version::new(11, 2),
    symbols: NvrtcSymbols::CUDA,
};

handles! {
    /// A source, and what it was compiled to.
    Program;
}

table! {
    /// The functions of NVRTC. It needs no driver and no GPU.
    pub struct Nvrtc named by NvrtcSymbols, as cudarc::nvrtc::sys;
    code {
        library_version = nvrtcVersion(major: *mut c_int, minor: *mut c_int);
        program_create = nvrtcCreateProgram(
            program: *mut Program, source: *const c_char, name: *const c_char, headers: c_int,
            header_sources: *const *const c_char, header_names: *const *const c_char,
        );
        program_destroy = nvrtcDestroyProgram(program: *mut Program);
        program_compile = nvrtcCompileProgram(
            program: Program, count: c_int, options: *const *const c_char,
        );
        log_bytes = nvrtcGetProgramLogSize(program: Program, bytes: *mut usize);
        log = nvrtcGetProgramLog(program: Program, text: *mut c_char);
        ptx_bytes = nvrtcGetPTXSize(program: Program, bytes: *mut usize);
        ptx = nvrtcGetPTX(program: Program, text: *mut c_char);
        object_bytes = nvrtcGetCUBINSize(program: Program, bytes: *mut usize);
        object = nvrtcGetCUBIN(program: Program, object: *mut c_char);
    }
    value {
        code_name = nvrtcGetErrorString(code: c_int) -> *const c_char;
    }
}

impl Nvrtc {
    fn read_version(&self) -> Result<Version, CallError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two numbers.
        unsafe { self.library_version(&mut major, &mut minor) }?;
        let number = |value| u32::try_from(value).unwrap_or(0);
        Ok(Version::new(number(major), number(minor)))
    }

    /// The library has no text beside the names of codes.
    fn describe(&self, code: c_int) -> (String, String) {
        // SAFETY: gives a constant text that ends with a zero byte, or null.
        let name = unsafe { text_at(self.code_name(code)) };
        (name.unwrap_or_else(|| UNKNOWN.into()), String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_header() {
        let shapes = Nvrtc::shapes();
        assert_eq!(shapes.len(), 11);
        for (symbol, ours, theirs) in shapes {
            assert_eq!(ours, theirs, "{symbol}");
        }
    }
}
