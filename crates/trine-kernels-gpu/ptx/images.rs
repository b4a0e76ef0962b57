//! The list of images. Written by `cargo xtask gpu kernels`.

use super::Image;

/// What every file of kernels is compiled to.
#[rustfmt::skip]
pub const IMAGES: &[Image] = &[
    Image { source: "activation.cu", hash: "ca8658bc3fcf0892", ptx: include_str!("activation.ptx") },
    Image { source: "attention.cu", hash: "392965eb48e3944a", ptx: include_str!("attention.ptx") },
    Image { source: "attention_tiles.cu", hash: "f939a94707eaae6d", ptx: include_str!("attention_tiles.ptx") },
    Image { source: "elementwise.cu", hash: "e5cbf0c1f3e5595e", ptx: include_str!("elementwise.ptx") },
    Image { source: "embedding.cu", hash: "4378a8354f9023a6", ptx: include_str!("embedding.ptx") },
    Image { source: "loss.cu", hash: "79e5a55322031380", ptx: include_str!("loss.ptx") },
    Image { source: "mask.cu", hash: "9e5f3bca6cc5c490", ptx: include_str!("mask.ptx") },
    Image { source: "norm.cu", hash: "f911393870cfc4b6", ptx: include_str!("norm.ptx") },
    Image { source: "optim.cu", hash: "cc8cdc32f67744d8", ptx: include_str!("optim.ptx") },
    Image { source: "reduce.cu", hash: "7a7c30cc4d02b1c1", ptx: include_str!("reduce.ptx") },
    Image { source: "products.cu", hash: "fd607d851f3939f4", ptx: include_str!("products.ptx") },
    Image { source: "rms.cu", hash: "7c81aa6a1a35ac7f", ptx: include_str!("rms.ptx") },
    Image { source: "rope.cu", hash: "b837c61e2549ed51", ptx: include_str!("rope.ptx") },
];
