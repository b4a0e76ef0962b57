//! The list of images. Written by `cargo xtask gpu kernels`.

use super::Image;

/// What every file of kernels is compiled to.
#[rustfmt::skip]
pub const IMAGES: &[Image] = &[
    Image { source: "attention.cu", hash: "a10279cfcc3dfef2", ptx: include_str!("attention.ptx") },
    Image { source: "attention_tiles.cu", hash: "f2cd95a31a953121", ptx: include_str!("attention_tiles.ptx") },
    Image { source: "elementwise.cu", hash: "0b6248a45b06ad3f", ptx: include_str!("elementwise.ptx") },
];
