//! The list of images. Written by `cargo xtask gpu kernels`.

use super::Image;

/// What every file of kernels is compiled to.
#[rustfmt::skip]
pub const IMAGES: &[Image] = &[
    Image { source: "attention.cu", hash: "c3708ab5416d85fa", ptx: include_str!("attention.ptx") },
    Image { source: "attention_tiles.cu", hash: "e12bb881517d7c7d", ptx: include_str!("attention_tiles.ptx") },
    Image { source: "elementwise.cu", hash: "0b6248a45b06ad3f", ptx: include_str!("elementwise.ptx") },
];
