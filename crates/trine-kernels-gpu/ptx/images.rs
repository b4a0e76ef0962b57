//! The list of images. Written by `cargo xtask gpu kernels`.

use super::Image;

/// What every file of kernels is compiled to.
#[rustfmt::skip]
pub const IMAGES: &[Image] = &[
    Image { source: "activation.cu", hash: "fb886a6df7868dc5", ptx: include_str!("activation.ptx") },
    Image { source: "attention.cu", hash: "26977316ed1b00e9", ptx: include_str!("attention.ptx") },
    Image { source: "attention_tiles.cu", hash: "bed944143b096ca8", ptx: include_str!("attention_tiles.ptx") },
    Image { source: "mask.cu", hash: "32de1a93b927b212", ptx: include_str!("mask.ptx") },
    Image { source: "elementwise.cu", hash: "e9b1d608f832abc3", ptx: include_str!("elementwise.ptx") },
    Image { source: "embedding.cu", hash: "f1b041e09cd3fe4f", ptx: include_str!("embedding.ptx") },
    Image { source: "loss.cu", hash: "f22725aeb3d81fd1", ptx: include_str!("loss.ptx") },
    Image { source: "norm.cu", hash: "abbb0f7f116a947f", ptx: include_str!("norm.ptx") },
    Image { source: "optim.cu", hash: "860341cb8b8e8f99", ptx: include_str!("optim.ptx") },
    Image { source: "reduce.cu", hash: "d4ab08a2beb4657a", ptx: include_str!("reduce.ptx") },
    Image { source: "products.cu", hash: "dfefc07433899da5", ptx: include_str!("products.ptx") },
    Image { source: "rms.cu", hash: "b2c5a659ffdc4dca", ptx: include_str!("rms.ptx") },
    Image { source: "rope.cu", hash: "3074ea4aa694f7b1", ptx: include_str!("rope.ptx") },
];
