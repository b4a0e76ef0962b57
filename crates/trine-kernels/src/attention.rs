//! Causal attention (stand-in until the tiled kernels land).

use crate::check::dims;
use crate::{AttentionDropout, AttentionShape, CpuOps, KernelError, MatMut, MatRef, Qkv, QkvMut};
use trine_buffer::{Slice, SliceMut};

pub(crate) fn attention(
    _: &CpuOps,
    _: AttentionShape,
    _: MatMut<'_>,
    _: SliceMut<'_>,
    _: Qkv<'_>,
    _: Option<Slice<'_>>,
    _: Option<AttentionDropout>,
) -> Result<(), KernelError> {
    dims("attention", false, || "not there yet".into())
}

pub(crate) fn attention_backward(
    _: &CpuOps,
    _: AttentionShape,
    _: QkvMut<'_>,
    _: MatRef<'_>,
    _: MatRef<'_>,
    _: Slice<'_>,
    _: Qkv<'_>,
    _: Option<Slice<'_>>,
    _: Option<AttentionDropout>,
) -> Result<(), KernelError> {
    dims("attention_backward", false, || "not there yet".into())
}
