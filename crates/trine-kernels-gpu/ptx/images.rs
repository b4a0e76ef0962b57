//! The list of images. Written by `cargo xtask gpu kernels`.

use super::Image;

/// What every file of kernels is compiled to.
#[rustfmt::skip]
pub const IMAGES: &[Image] = &[
    Image { source: "activation.cu", hash: "9c9ee5f07cf58578", ptx: include_str!("activation.ptx") },
    Image { source: "attention.cu", hash: "bad52477779ca2a4", ptx: include_str!("attention.ptx") },
    Image { source: "attention_tiles.cu", hash: "10bf68a0a8ed2e67", ptx: include_str!("attention_tiles.ptx") },
    Image { source: "elementwise.cu", hash: "3f442a2bd2743dd4", ptx: include_str!("elementwise.ptx") },
    Image { source: "embedding.cu", hash: "df4eb12478886a44", ptx: include_str!("embedding.ptx") },
    Image { source: "loss.cu", hash: "b3dec3fd4c62ceee", ptx: include_str!("loss.ptx") },
    Image { source: "mask.cu", hash: "a64942903555eb89", ptx: include_str!("mask.ptx") },
    Image { source: "norm.cu", hash: "6020efe08edff964", ptx: include_str!("norm.ptx") },
    Image { source: "optim.cu", hash: "5448c67e1c2597b6", ptx: include_str!("optim.ptx") },
    Image { source: "reduce.cu", hash: "7f7bcbb703cf1ac3", ptx: include_str!("reduce.ptx") },
    Image { source: "products.cu", hash: "38a158ac2a695132", ptx: include_str!("products.ptx") },
    Image { source: "rms.cu", hash: "3c3fe98ca1d224c5", ptx: include_str!("rms.ptx") },
    Image { source: "rope.cu", hash: "df5d60fc42d1b20c", ptx: include_str!("rope.ptx") },
];
