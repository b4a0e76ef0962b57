//! Dropout masks (stand-in until the generator lands).

use crate::check::dims;
use crate::{CpuOps, Dropout, DropoutPlace, KernelError, MatMut, MatRef};

pub(crate) fn dropout(
    _: &CpuOps,
    _: Dropout,
    _: DropoutPlace,
    _: MatMut<'_>,
    _: MatRef<'_>,
) -> Result<(), KernelError> {
    dims("dropout", false, || "not there yet".into())
}
