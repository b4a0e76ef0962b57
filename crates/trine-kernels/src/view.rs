//! Matrices as views: rows of equal stride inside a buffer.

use crate::KernelError;
use std::ops::Range;
use trine_buffer::{Slice, SliceMut};

/// A read-only matrix `[rows, cols]`, row-major: row `r` starts at element `r · stride` of `data`.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    /// The elements; what lies between the rows is never read.
    pub data: Slice<'a>,
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Elements from one row's start to the next one's; at least `cols`.
    pub stride: usize,
}

/// A writable matrix, laid out as [`MatRef`]. What lies between the rows is never written.
#[derive(Debug)]
pub struct MatMut<'a> {
    /// The elements.
    pub data: SliceMut<'a>,
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Elements from one row's start to the next one's; at least `cols`.
    pub stride: usize,
}

/// Elements that a strided matrix spans.
pub(crate) fn span(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols }
}

/// The first of a range of rows or columns, if there are such.
fn start_of(op: &'static str, range: &Range<usize>, len: usize) -> Result<usize, KernelError> {
    if range.start <= range.end && range.end <= len {
        return Ok(range.start);
    }
    let message = format!("{}..{} lies outside 0..{len}", range.start, range.end);
    Err(KernelError::Dims { op, message })
}

impl<'a> MatRef<'a> {
    /// Rows without gaps.
    pub fn new(data: Slice<'a>, rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, stride: cols }
    }

    /// The matrix of some of the rows, in place.
    ///
    /// # Errors
    /// If there are no such rows.
    pub fn rows(self, rows: Range<usize>) -> Result<Self, KernelError> {
        let start = start_of("rows", &rows, self.rows)? * self.stride;
        let len = self.data.len();
        let data = self.data.range(start.min(len)..len)?;
        Ok(Self { data, rows: rows.len(), ..self })
    }

    /// The matrix of some of the columns, in place.
    ///
    /// # Errors
    /// If there are no such columns.
    pub fn columns(self, columns: Range<usize>) -> Result<Self, KernelError> {
        let start = start_of("columns", &columns, self.cols)?;
        let len = self.data.len();
        let data = self.data.range(start.min(len)..len)?;
        Ok(Self { data, cols: columns.len(), ..self })
    }
}

impl<'a> MatMut<'a> {
    /// Rows without gaps.
    pub fn new(data: SliceMut<'a>, rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, stride: cols }
    }

    /// The matrix of some of the rows, in place.
    ///
    /// # Errors
    /// If there are no such rows.
    pub fn rows(self, rows: Range<usize>) -> Result<Self, KernelError> {
        let start = start_of("rows", &rows, self.rows)? * self.stride;
        let len = self.data.len();
        let data = self.data.range(start.min(len)..len)?;
        Ok(Self { data, rows: rows.len(), ..self })
    }

    /// The matrix of some of the columns, in place.
    ///
    /// # Errors
    /// If there are no such columns.
    pub fn columns(self, columns: Range<usize>) -> Result<Self, KernelError> {
        let start = start_of("columns", &columns, self.cols)?;
        let len = self.data.len();
        let data = self.data.range(start.min(len)..len)?;
        Ok(Self { data, cols: columns.len(), ..self })
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        let (rows, cols, stride) = (self.rows, self.cols, self.stride);
        MatMut { data: self.data.reborrow(), rows, cols, stride }
    }

    /// The same matrix, read-only.
    pub fn as_ref(&self) -> MatRef<'_> {
        let (rows, cols, stride) = (self.rows, self.cols, self.stride);
        MatRef { data: self.data.as_slice(), rows, cols, stride }
    }
}

/// Query, key and value of an attention layer: `[tokens, heads · head_dim]` and twice
/// `[tokens, kv_heads · head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Qkv<'a> {
    /// Queries.
    pub q: MatRef<'a>,
    /// Keys.
    pub k: MatRef<'a>,
    /// Values.
    pub v: MatRef<'a>,
}

impl<'a> Qkv<'a> {
    /// Column sections of one matrix `[tokens, (heads + 2 · kv_heads) · head_dim]`: all query heads,
    /// all key heads, all value heads.
    ///
    /// # Errors
    /// If the matrix has another number of columns.
    pub fn fused(all: MatRef<'a>, q_cols: usize, kv_cols: usize) -> Result<Self, KernelError> {
        check_sections("Qkv::fused", all.cols, &[q_cols, kv_cols, kv_cols])?;
        let (k, v) = (q_cols, q_cols + kv_cols);
        Ok(Self { q: all.columns(0..k)?, k: all.columns(k..v)?, v: all.columns(v..v + kv_cols)? })
    }
}

/// Where the gradients of query, key and value go. Shapes as in [`Qkv`].
#[derive(Debug)]
pub enum QkvMut<'a> {
    /// Column sections of one matrix, in the order of [`Qkv::fused`].
    Fused(MatMut<'a>),
    /// Three matrices.
    Separate {
        /// Gradient of the queries.
        q: MatMut<'a>,
        /// Gradient of the keys.
        k: MatMut<'a>,
        /// Gradient of the values.
        v: MatMut<'a>,
    },
}

/// Where the gradients of a gated activation's two halves go, each `[rows, cols]`.
#[derive(Debug)]
pub enum GateUpMut<'a> {
    /// One matrix `[rows, 2 · cols]`: gate left, up right.
    Fused(MatMut<'a>),
    /// Two matrices.
    Separate {
        /// Gradient of the gate.
        gate: MatMut<'a>,
        /// Gradient of the linear half.
        up: MatMut<'a>,
    },
}

pub(crate) fn check_sections(
    op: &'static str,
    cols: usize,
    sections: &[usize],
) -> Result<(), KernelError> {
    if cols == sections.iter().sum::<usize>() {
        return Ok(());
    }
    let message = format!("{cols} columns do not split into sections of {sections:?}");
    Err(KernelError::Dims { op, message })
}
