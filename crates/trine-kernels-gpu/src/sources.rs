//! The sources of the kernels.

use trine_gpu::DIALECT;

/// Every file of kernels and every header, by name. Files are compiled alone, with the headers in one folder, and
/// without contraction of products and sums (`--fmad=false`): what is rounded once is written so.
pub const SOURCES: &[(&str, &str)] = &[
    ("trine.cuh", DIALECT),
    ("numbers.cuh", include_str!("../kernels/numbers.cuh")),
    ("philox.cuh", include_str!("../kernels/philox.cuh")),
    ("vectors.cuh", include_str!("../kernels/vectors.cuh")),
    ("attention.cuh", include_str!("../kernels/attention.cuh")),
    ("activation.cu", include_str!("../kernels/activation.cu")),
    ("attention.cu", include_str!("../kernels/attention.cu")),
    ("attention_tiles.cu", include_str!("../kernels/attention_tiles.cu")),
    ("elementwise.cu", include_str!("../kernels/elementwise.cu")),
    ("embedding.cu", include_str!("../kernels/embedding.cu")),
    ("loss.cu", include_str!("../kernels/loss.cu")),
    ("mask.cu", include_str!("../kernels/mask.cu")),
    ("norm.cu", include_str!("../kernels/norm.cu")),
    ("optim.cu", include_str!("../kernels/optim.cu")),
    ("reduce.cu", include_str!("../kernels/reduce.cu")),
    ("products.cu", include_str!("../kernels/products.cu")),
    ("rms.cu", include_str!("../kernels/rms.cu")),
    ("rope.cu", include_str!("../kernels/rope.cu")),
];
