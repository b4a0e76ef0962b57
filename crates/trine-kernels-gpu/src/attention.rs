//! Attention: forward, backward, and results that are merged.

use crate::gpu::{GpuOps, elements};
use crate::views::{failed, named, read, write};
use trine_buffer::{DType, Slice, SliceMut};
use trine_gpu::{Arg, GpuError, Grid, Memory, Span, SpanMut};
use trine_kernels::{AttentionDropout, AttentionShape, KernelError, MatMut, MatRef, Qkv, QkvMut};

/// Threads of a block of every kernel of `attention.cu` whose blocks have rows, and of `attention_tiles.cu`.
const THREADS: u32 = 128;
/// Rows of a block of `attention_tiles.cu`.
const TILE: usize = 64;
/// Head sizes that it has kernels for.
const TILED: [usize; 4] = [64, 80, 96, 128];
/// What addresses and rows of its matrices are a multiple of.
const ALIGN_BYTES: usize = 16;

/// What `attention.cuh` calls `Attention`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Attention {
    dropout_key: u64,
    threshold: u64,
    queries: u32,
    keys: u32,
    heads: u32,
    group: u32,
    head_dim: u32,
    query_start: u32,
    key_start: u32,
    window: u32,
    has_documents: u32,
    step: u32,
    first_sample: u32,
    first_head: u32,
    kept: f32,
    scale: f32,
    softcap: f32,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    o_stride: u32,
    curve: f32,
}

// SAFETY: numbers without gaps; zeros are some.
unsafe impl bytemuck::Zeroable for Attention {}
// SAFETY: as above: 2 · 8 + 20 · 4 bytes.
unsafe impl bytemuck::Pod for Attention {}

/// A matrix on the device, and elements from row to row.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    /// From its first element on.
    span: Span<'a>,
    stride: usize,
}

/// A matrix that is written.
#[derive(Debug)]
struct RowsMut<'a> {
    /// From its first element on.
    span: SpanMut<'a>,
    stride: usize,
}

impl RowsMut<'_> {
    fn as_rows(&self) -> Rows<'_> {
        Rows { span: self.span.as_span(), stride: self.stride }
    }
}

/// What an attention reads.
#[derive(Debug, Clone, Copy)]
struct Inputs<'a> {
    dtype: DType,
    shape: AttentionShape,
    q: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    document_start: Option<Span<'a>>,
    dropout: Option<AttentionDropout>,
}

/// Where gradients go.
#[derive(Debug)]
enum Gradients<'a> {
    /// Column sections of one matrix.
    Fused(RowsMut<'a>),
    Separate {
        q: RowsMut<'a>,
        k: RowsMut<'a>,
        v: RowsMut<'a>,
    },
}

/// The three of them.
#[derive(Debug, Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

impl Gradients<'_> {
    /// One of them, for a shorter time.
    fn part(&mut self, inputs: &Inputs<'_>, part: Part) -> Result<RowsMut<'_>, GpuError> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = inputs.shape;
        let (rows, first) = match (self, part) {
            (Self::Fused(all), Part::Query) => (all, 0),
            (Self::Fused(all), Part::Key) => (all, heads * head_dim),
            (Self::Fused(all), Part::Value) => (all, (heads + kv_heads) * head_dim),
            (Self::Separate { q, .. }, Part::Query) => (q, 0),
            (Self::Separate { k, .. }, Part::Key) => (k, 0),
            (Self::Separate { v, .. }, Part::Value) => (v, 0),
        };
        let (stride, bytes) = (rows.stride, rows.span.bytes());
        let start = first * inputs.dtype.bytes();
        // Of no rows there is no first column.
        let span = rows.span.reborrow().range(start.min(bytes)..bytes)?;
        Ok(RowsMut { span, stride })
    }

    /// The matrices that hold gradients of keys and values.
    fn key_rows(&self) -> Vec<Rows<'_>> {
        match self {
            Self::Fused(all) => vec![all.as_rows()],
            Self::Separate { k, v, .. } => vec![k.as_rows(), v.as_rows()],
        }
    }

    /// Strides of the gradients of keys and values, and both as arguments. Of one matrix a launch may write only once:
    /// then the second is an address in the first.
    fn key_targets(&mut self, inputs: &Inputs<'_>) -> Result<([usize; 2], [Arg<'_>; 2]), GpuError> {
        if let Self::Separate { k, v, .. } = self {
            let args = [Arg::Write(k.span.reborrow()), Arg::Write(v.span.reborrow())];
            return Ok(([k.stride, v.stride], args));
        }
        let values = self.part(inputs, Part::Value)?.span.address();
        let keys = self.part(inputs, Part::Key)?;
        Ok(([keys.stride; 2], [Arg::Write(keys.span), Arg::U64(values)]))
    }
}

/// The kernels that serve an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A block a row.
    Rows,
    /// On tensor cores, a block a tile of rows.
    Tiles,
}

impl Way {
    /// On tensor cores where there are such kernels and all of `rows` can be read 16 bytes at a time.
    fn of<'a>(inputs: &Inputs<'_>, others: impl IntoIterator<Item = Rows<'a>>) -> Self {
        let is_whole = |rows: Rows<'_>| {
            let row_bytes = rows.stride * inputs.dtype.bytes();
            (rows.span.address() as usize).is_multiple_of(ALIGN_BYTES)
                && row_bytes.is_multiple_of(ALIGN_BYTES)
        };
        let has_kernel = inputs.dtype == DType::Bf16 && TILED.contains(&inputs.shape.head_dim);
        let own = [inputs.q, inputs.k, inputs.v].into_iter().all(is_whole);
        if has_kernel && own && others.into_iter().all(is_whole) { Self::Tiles } else { Self::Rows }
    }

    /// A kernel: `attention_dq` becomes `attention_dq_64` or `attention_dq_bf16`.
    fn kernel(self, name: &str, inputs: &Inputs<'_>) -> String {
        match self {
            Self::Rows => format!("{name}_{}", inputs.dtype),
            Self::Tiles => format!("{name}_{}", inputs.shape.head_dim),
        }
    }

    /// Its blocks for so many rows of each head, queries or keys.
    fn grid(self, inputs: &Inputs<'_>, rows: usize) -> Option<Grid> {
        let parts = match self {
            Self::Rows => rows,
            Self::Tiles => rows.div_ceil(TILE),
        };
        blocks(parts * inputs.shape.samples * inputs.shape.heads)
    }
}

/// A grid of blocks; none if there are none. More than a grid has is refused by the launch.
fn blocks(count: usize) -> Option<Grid> {
    (count > 0).then(|| Grid::line(u32::try_from(count).unwrap_or(u32::MAX), THREADS))
}

/// A grid with a warp for each row of each head.
fn warps(shape: AttentionShape) -> Option<Grid> {
    let threads = shape.samples * shape.queries * shape.heads * 32;
    blocks(threads.div_ceil(THREADS as usize))
}

/// The largest number that kernels take.
const U32_MAX: usize = u32::MAX as usize;

/// Refuses what kernels do not count up to.
fn at_most(op: &'static str, what: &str, value: usize, max: usize) -> Result<(), KernelError> {
    if value <= max {
        return Ok(());
    }
    let message = format!("{what} of {value}; a GPU's kernels take {max} at most");
    Err(KernelError::Dims { op, message })
}

/// Refuses a shape with sizes that kernels do not count up to. Keys wrap below 0 where a tile begins before them.
fn countable(op: &'static str, shape: AttentionShape) -> Result<(), KernelError> {
    let AttentionShape { samples, queries, keys, heads, head_dim, .. } = shape;
    at_most(op, "a number of keys", keys, U32_MAX / 2)?;
    at_most(op, "a number of query rows", samples.saturating_mul(queries), U32_MAX / 2)?;
    let row = heads.saturating_mul(head_dim);
    at_most(op, "a row", row.max(head_dim), U32_MAX)?;
    let all = samples.saturating_mul(heads);
    at_most(op, "a number of heads", all.max(heads).max(samples), U32_MAX)
}

/// A number as kernels take it.
fn narrow(value: usize) -> u32 {
    u32::try_from(value).expect("invariant: checked before any launch")
}

impl Attention {
    fn new(inputs: &Inputs<'_>, o_stride: usize) -> Self {
        let shape = inputs.shape;
        let dropout = inputs.dropout.as_ref().map(|dropout| &dropout.dropout);
        // What is wider than any distance of positions hides nothing.
        let window = shape.window.and_then(|window| u32::try_from(window).ok());
        let inverse = shape.softcap.map_or(0.0, |cap| 1.0 / (cap * std::f64::consts::LOG2_E));
        Self {
            dropout_key: dropout.map_or(0, |dropout| dropout.key),
            threshold: dropout.map_or(0, |dropout| dropout.threshold()),
            queries: narrow(shape.queries),
            keys: narrow(shape.keys),
            heads: narrow(shape.heads),
            group: narrow(shape.heads / shape.kv_heads),
            head_dim: narrow(shape.head_dim),
            query_start: shape.query_start as u32,
            key_start: shape.key_start as u32,
            window: window.unwrap_or(0),
            has_documents: u32::from(inputs.document_start.is_some()),
            step: dropout.map_or(0, |dropout| dropout.step),
            first_sample: dropout.map_or(0, |dropout| dropout.first_sample),
            first_head: inputs.dropout.map_or(0, |dropout| narrow(dropout.first_head)),
            kept: dropout.map_or(1.0, |dropout| dropout.kept_factor() as f32),
            scale: shape.scale as f32,
            softcap: shape.softcap.unwrap_or(0.0) as f32,
            q_stride: narrow(inputs.q.stride),
            k_stride: narrow(inputs.k.stride),
            v_stride: narrow(inputs.v.stride),
            o_stride: narrow(o_stride),
            curve: (inverse * inverse) as f32,
        }
    }
}

impl Inputs<'_> {
    /// Arguments that all kernels end with: q, k, v, starts of documents, the problem, samples.
    fn args<'a>(&'a self, attention: &'a Attention) -> [Arg<'a>; 6] {
        // Without documents the kernel reads none.
        let document_start = self.document_start.unwrap_or(self.q.span);
        [
            Arg::Read(self.q.span),
            Arg::Read(self.k.span),
            Arg::Read(self.v.span),
            Arg::Read(document_start),
            Arg::Bytes(bytemuck::bytes_of(attention)),
            Arg::U32(narrow(self.shape.samples)),
        ]
    }
}

impl GpuOps {
    fn attend(
        &self,
        inputs: &Inputs<'_>,
        o: RowsMut<'_>,
        lse: SpanMut<'_>,
    ) -> Result<(), GpuError> {
        let way = Way::of(inputs, [o.as_rows()]);
        let Some(grid) = way.grid(inputs, inputs.shape.queries) else { return Ok(()) };
        let attention = Attention::new(inputs, o.stride);
        let mut args = vec![Arg::Write(o.span), Arg::Write(lse)];
        args.extend(inputs.args(&attention));
        // SAFETY: the matrices have the rows and columns of the shape.
        unsafe { self.launch(&way.kernel("attention", inputs), grid, &args) }
    }

    /// Where heads share keys, what each gives to the gradients of keys and values lies in scratch memory until it is
    /// summed in a tree.
    fn attend_backward(
        &self,
        inputs: &Inputs<'_>,
        mut d: Gradients<'_>,
        d_o: Rows<'_>,
        o: Rows<'_>,
        lse: Span<'_>,
    ) -> Result<(), GpuError> {
        let AttentionShape { samples, queries, keys, heads, kv_heads, head_dim, .. } = inputs.shape;
        let delta = self.deltas(inputs, d_o, o)?;
        let attention = Attention::new(inputs, d_o.stride);
        let dq = d.part(inputs, Part::Query)?;
        let way = Way::of(inputs, [d_o, dq.as_rows()]);
        if let Some(grid) = way.grid(inputs, queries) {
            let mut args = vec![Arg::Write(dq.span), Arg::Read(d_o.span)];
            args.extend([Arg::Read(lse), Arg::Read(delta.span())]);
            args.extend(inputs.args(&attention));
            args.push(Arg::U32(narrow(dq.stride)));
            // SAFETY: the matrices have the rows and columns of the shape.
            unsafe { self.launch(&way.kernel("attention_dq", inputs), grid, &args) }?;
        }
        let way = Way::of(inputs, d.key_rows().into_iter().chain([d_o]));
        let Some(grid) = way.grid(inputs, keys) else { return Ok(()) };
        let is_shared = heads > kv_heads;
        let part_bytes = if is_shared { samples * heads * keys * head_dim * 4 } else { 0 };
        let mut parts = self.pool().alloc("gradients of heads", 2 * part_bytes)?;
        let ([dk_stride, dv_stride], targets) = d.key_targets(inputs)?;
        let mut args = if is_shared { vec![Arg::U64(0), Arg::U64(0)] } else { targets.into() };
        args.extend([Arg::Write(parts.span_mut()), Arg::Read(d_o.span)]);
        args.extend([Arg::Read(lse), Arg::Read(delta.span())]);
        args.extend(inputs.args(&attention));
        args.extend([dk_stride, dv_stride].map(|stride| Arg::U32(narrow(stride))));
        // SAFETY: as above; the parts of both gradients have room for every head.
        unsafe { self.launch(&way.kernel("attention_dkv", inputs), grid, &args) }?;
        if !is_shared {
            return Ok(());
        }
        let (of_keys, of_values) = (0..part_bytes, part_bytes..2 * part_bytes);
        let dk = d.part(inputs, Part::Key)?;
        self.sum_heads(inputs, dk, parts.span().range(of_keys)?)?;
        let dv = d.part(inputs, Part::Value)?;
        self.sum_heads(inputs, dv, parts.span().range(of_values)?)
    }

    /// Σ dO · O for each query of each head.
    fn deltas(&self, inputs: &Inputs<'_>, d_o: Rows<'_>, o: Rows<'_>) -> Result<Memory, GpuError> {
        let AttentionShape { samples, queries, heads, head_dim, .. } = inputs.shape;
        let mut delta = self.pool().alloc("attention's delta", samples * queries * heads * 4)?;
        let Some(grid) = warps(inputs.shape) else { return Ok(delta) };
        let sizes = [samples * queries, queries, heads, head_dim, d_o.stride, o.stride];
        let mut args = vec![Arg::Write(delta.span_mut()), Arg::Read(d_o.span), Arg::Read(o.span)];
        args.extend(sizes.map(|size| Arg::U32(narrow(size))));
        let kernel = format!("attention_deltas_{}", inputs.dtype);
        // SAFETY: both matrices have the rows and columns of the shape.
        unsafe { self.launch(&kernel, grid, &args) }?;
        Ok(delta)
    }

    /// One gradient of keys or values from the shares of query heads.
    fn sum_heads(
        &self,
        inputs: &Inputs<'_>,
        d: RowsMut<'_>,
        parts: Span<'_>,
    ) -> Result<(), GpuError> {
        let AttentionShape { samples, keys, heads, kv_heads, head_dim, .. } = inputs.shape;
        let grid = elements(samples * keys * kv_heads * head_dim);
        let sizes = [samples, keys, kv_heads, heads / kv_heads, head_dim, d.stride];
        let mut args = vec![Arg::Write(d.span), Arg::Read(parts)];
        args.extend(sizes.map(|size| Arg::U32(narrow(size))));
        // SAFETY: the matrix has the rows and columns of the shape.
        unsafe { self.launch(&format!("attention_sum_heads_{}", inputs.dtype), grid, &args) }
    }

    fn merge(
        &self,
        shape: AttentionShape,
        (o, of_o): (RowsMut<'_>, DType),
        lse: SpanMut<'_>,
        (part_o, of_part): (Rows<'_>, DType),
        part_lse: Span<'_>,
    ) -> Result<(), GpuError> {
        let AttentionShape { samples, queries, heads, head_dim, .. } = shape;
        let Some(grid) = warps(shape) else { return Ok(()) };
        let sizes = [samples * queries, queries, heads, head_dim, o.stride, part_o.stride];
        let mut args = vec![Arg::Write(o.span), Arg::Write(lse)];
        args.extend([Arg::Read(part_o.span), Arg::Read(part_lse)]);
        args.extend(sizes.map(|size| Arg::U32(narrow(size))));
        let kernel = format!("attention_merge_{of_o}_{of_part}");
        // SAFETY: the matrices have the rows and columns of the shape.
        unsafe { self.launch(&kernel, grid, &args) }
    }
}

impl<'a> Rows<'a> {
    fn of(op: &'static str, mat: MatRef<'a>) -> Result<Self, KernelError> {
        at_most(op, "a stride", mat.stride, U32_MAX)?;
        Ok(Self { span: read(mat.data)?, stride: mat.stride })
    }
}

impl<'a> RowsMut<'a> {
    fn of(op: &'static str, mat: MatMut<'a>) -> Result<Self, KernelError> {
        at_most(op, "a stride", mat.stride, U32_MAX)?;
        Ok(Self { span: write(mat.data)?, stride: mat.stride })
    }
}

impl<'a> Gradients<'a> {
    fn of(op: &'static str, d: QkvMut<'a>) -> Result<Self, KernelError> {
        let of = |mat| RowsMut::of(op, mat);
        Ok(match d {
            QkvMut::Fused(all) => Self::Fused(of(all)?),
            QkvMut::Separate { q, k, v } => Self::Separate { q: of(q)?, k: of(k)?, v: of(v)? },
        })
    }
}

impl<'a> Inputs<'a> {
    fn of(
        op: &'static str,
        shape: AttentionShape,
        qkv: Qkv<'a>,
        document_start: Option<Slice<'a>>,
        dropout: Option<AttentionDropout>,
    ) -> Result<Self, KernelError> {
        let dtype = qkv.q.data.dtype();
        named(op, "", &[dtype])?;
        let document_start = document_start.map(read).transpose()?;
        countable(op, shape)?;
        if let Some(dropout) = dropout {
            at_most(op, "a first head", dropout.first_head, U32_MAX)?;
        }
        let of = |mat| Rows::of(op, mat);
        let (q, k, v) = (of(qkv.q)?, of(qkv.k)?, of(qkv.v)?);
        Ok(Self { dtype, shape, q, k, v, document_start, dropout })
    }
}

pub(crate) fn attention(
    ops: &GpuOps,
    shape: AttentionShape,
    o: MatMut<'_>,
    lse: SliceMut<'_>,
    qkv: Qkv<'_>,
    document_start: Option<Slice<'_>>,
    dropout: Option<AttentionDropout>,
) -> Result<(), KernelError> {
    const OP: &str = "attention";
    let inputs = Inputs::of(OP, shape, qkv, document_start, dropout)?;
    ops.attend(&inputs, RowsMut::of(OP, o)?, write(lse)?).map_err(failed)
}

pub(crate) fn attention_backward(
    ops: &GpuOps,
    shape: AttentionShape,
    d: QkvMut<'_>,
    d_o: MatRef<'_>,
    o: MatRef<'_>,
    lse: Slice<'_>,
    qkv: Qkv<'_>,
    document_start: Option<Slice<'_>>,
    dropout: Option<AttentionDropout>,
) -> Result<(), KernelError> {
    const OP: &str = "attention_backward";
    let inputs = Inputs::of(OP, shape, qkv, document_start, dropout)?;
    let (d_o, o, lse) = (Rows::of(OP, d_o)?, Rows::of(OP, o)?, read(lse)?);
    ops.attend_backward(&inputs, Gradients::of(OP, d)?, d_o, o, lse).map_err(failed)
}

pub(crate) fn attention_merge(
    ops: &GpuOps,
    shape: AttentionShape,
    o: MatMut<'_>,
    lse: SliceMut<'_>,
    part_o: MatRef<'_>,
    part_lse: Slice<'_>,
) -> Result<(), KernelError> {
    const OP: &str = "attention_merge";
    let (of_o, of_part) = (o.data.dtype(), part_o.data.dtype());
    named(OP, "", &[of_o, of_part])?;
    countable(OP, shape)?;
    let (o, part_o) = ((RowsMut::of(OP, o)?, of_o), (Rows::of(OP, part_o)?, of_part));
    ops.merge(shape, o, write(lse)?, part_o, read(part_lse)?).map_err(failed)
}
