//! The compiled kernels that the crate brings along: PTX that every driver from CUDA 12.0 on compiles for its GPU.

use crate::sources::SOURCES;

/// A compiled file of kernels.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// The source, `attention.cu`.
    pub source: &'static str,
    /// [`source_hash`] of it when it was compiled.
    pub hash: &'static str,
    /// The text.
    pub ptx: &'static str,
}

#[path = "../ptx/images.rs"]
mod list;

pub use list::IMAGES;

/// The version of NVRTC that images are made with: the first of CUDA 12, whose PTX every later driver takes.
pub const COMPILER: &str = "12.0.140";

/// Options of the compiler. The code is of the oldest GPUs that have tensor cores for bf16; nothing is contracted that
/// the source does not contract.
pub const OPTIONS: [&str; 3] = ["--gpu-architecture=compute_80", "--std=c++17", "--fmad=false"];

/// The files that are compiled, each with all headers.
pub fn compiled() -> impl Iterator<Item = (&'static str, &'static str)> {
    SOURCES.iter().copied().filter(|(name, _)| name.ends_with(".cu"))
}

/// The headers of all files.
pub fn headers() -> impl Iterator<Item = (&'static str, &'static str)> {
    SOURCES.iter().copied().filter(|(name, _)| !name.ends_with(".cu"))
}

/// What an image is made of, as a number: FNV-1a over options, headers and source, with their names.
pub fn source_hash(name: &str, text: &str) -> String {
    let headers = headers().flat_map(|(name, text)| [name, text]);
    let texts: Vec<&str> =
        OPTIONS.into_iter().chain([COMPILER]).chain(headers).chain([name, text]).collect();
    // A byte that no text has stands between them.
    let bytes = texts.into_iter().flat_map(|text| text.bytes().chain([0xff]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_those_of_the_sources() {
        let found: Vec<_> =
            IMAGES.iter().map(|image| (image.source, image.hash.to_owned())).collect();
        let expected: Vec<_> =
            compiled().map(|(name, text)| (name, source_hash(name, text))).collect();
        assert_eq!(
            found, expected,
            "compiled kernels are stale: run `cargo xtask gpu kernels` (it says which NVRTC it needs)"
        );
        assert!(!IMAGES.is_empty());
    }

    #[test]
    fn images_are_of_the_named_compiler_and_portable() {
        for Image { source, ptx, .. } in IMAGES {
            assert!(ptx.contains(&format!("V{COMPILER}\n")), "{source}");
            assert!(ptx.contains(".target sm_80\n") && ptx.contains(".version 8.0\n"), "{source}");
        }
    }

    #[test]
    fn a_hash_is_of_every_byte() {
        let (name, text) = compiled().next().unwrap();
        let hash = source_hash(name, text);
        assert_ne!(hash, source_hash(name, &text.replacen(';', ",", 1)));
        assert_ne!(hash, source_hash("other.cu", text));
        assert_eq!(hash.len(), 16);
    }
}
