//! The parameter store: flat buckets of weights, leased to layers call by call.

use crate::NnError;
use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Buf, BufferError, DType, Place, Slice};
use trine_kernels::Ops;
use trine_rng::Stream;
use trine_spec::{Init, LocalParam, RankLayout};

/// A parameter's address in the stores: a run of elements of one bucket. Layers hold these instead
/// of weights, so that weights can be resident, cast, or gathered just in time. Neighbouring fused
/// parameters (q, k, v) share one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamId {
    bucket: usize,
    start: usize,
    len: usize,
}

impl ParamId {
    /// Finds the parameters of these names in `layout`, which must lie directly behind one another.
    ///
    /// # Errors
    /// A name that the stage does not hold, or parameters that are not neighbours.
    pub fn find(layout: &RankLayout, names: &[&str]) -> Result<Self, NnError> {
        let mut found: Option<Self> = None;
        for name in names {
            let index = layout.find(name).ok_or_else(|| NnError::Unknown((*name).into()))?;
            let param = &layout.params[index];
            let (bucket, start, len) = (param.bucket, param.offset, param.len());
            found = Some(match found {
                None => Self { bucket, start, len },
                Some(id) if id.bucket == bucket && id.start + id.len == start => {
                    Self { len: id.len + len, ..id }
                }
                Some(_) => return Err(NnError::NotNeighbours(names.join(", "))),
            });
        }
        found.ok_or_else(|| NnError::Unknown("(no name given)".into()))
    }

    /// The bucket it lies in.
    pub fn bucket(&self) -> usize {
        self.bucket
    }

    /// Its elements in the bucket.
    pub fn span(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Elements.
    #[expect(clippy::len_without_is_empty, reason = "a parameter is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

/// Weights borrowed for one call.
#[derive(Debug)]
pub struct Lease<'a> {
    weights: Slice<'a>,
}

impl<'a> Lease<'a> {
    /// The weights, in the compute type.
    pub fn slice(&self) -> Slice<'a> {
        self.weights
    }
}

/// The weights of one rank's stage in the compute type, one buffer a bucket.
#[derive(Debug)]
pub struct ParamStore {
    layout: Arc<RankLayout>,
    compute: DType,
    buckets: Vec<Option<Buf>>,
}

impl ParamStore {
    /// Weights of zeros on the host.
    pub fn zeros(layout: Arc<RankLayout>, compute: DType) -> Self {
        let made = Self::zeros_at(&Place::Host, layout, compute);
        made.expect("invariant: the host gives memory or ends the process")
    }

    /// Weights of zeros at `place`.
    ///
    /// # Errors
    /// If a device has too little memory.
    pub fn zeros_at(
        place: &Place,
        layout: Arc<RankLayout>,
        compute: DType,
    ) -> Result<Self, BufferError> {
        let zeros = |bucket: &trine_spec::Bucket| Ok(Some(place.zeros(compute, bucket.len)?));
        let buckets: Result<_, BufferError> = layout.buckets.iter().map(zeros).collect();
        Ok(Self { buckets: buckets?, layout, compute })
    }

    /// What is stored where.
    pub fn layout(&self) -> &Arc<RankLayout> {
        &self.layout
    }

    /// The type of the weights.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// Bytes of all weights held.
    pub fn size_bytes(&self) -> usize {
        self.buckets.iter().flatten().map(Buf::size_bytes).sum()
    }

    /// Lends a parameter's weights for one call.
    ///
    /// # Errors
    /// The bucket is away (taken for a collective).
    pub fn lease(&self, id: &ParamId) -> Result<Lease<'_>, NnError> {
        Ok(Lease { weights: self.bucket(id.bucket)?.slice().range(id.span())? })
    }

    /// A whole bucket.
    ///
    /// # Errors
    /// The bucket is away.
    pub fn bucket(&self, bucket: usize) -> Result<&Buf, NnError> {
        self.buckets[bucket].as_ref().ok_or(NnError::Away { what: "weights", bucket })
    }

    /// A whole bucket, for the optimizer.
    ///
    /// # Errors
    /// The bucket is away.
    pub fn bucket_mut(&mut self, bucket: usize) -> Result<&mut Buf, NnError> {
        self.buckets[bucket].as_mut().ok_or(NnError::Away { what: "weights", bucket })
    }

    /// Takes a bucket out for a collective. Until [`ParamStore::restore`], using it is an error.
    ///
    /// # Errors
    /// The bucket is already away.
    pub fn take(&mut self, bucket: usize) -> Result<Buf, NnError> {
        self.buckets[bucket].take().ok_or(NnError::Away { what: "weights", bucket })
    }

    /// Puts a bucket back.
    ///
    /// # Errors
    /// Another length or type than the bucket's.
    pub fn restore(&mut self, bucket: usize, weights: Buf) -> Result<(), NnError> {
        let len = self.layout.buckets[bucket].len;
        if weights.len() != len || weights.dtype() != self.compute {
            return Err(NnError::WrongBuffer { what: "weights", bucket, len, dtype: self.compute });
        }
        self.buckets[bucket] = Some(weights);
        Ok(())
    }

    /// Sets a bucket's weights from master weights in the accumulator type.
    ///
    /// # Errors
    /// The bucket is away, or `master` has another length.
    pub fn load(&mut self, bucket: usize, master: Slice<'_>, ops: &dyn Ops) -> Result<(), NnError> {
        let weights = self.bucket_mut(bucket)?;
        ops.cast(weights.slice_mut(), master)?;
        Ok(())
    }
}

/// Initial master weights of a bucket: a pure function of the seed, each parameter's name and the
/// elements' *global* indices (contract C1), so that every layout starts from the same numbers.
/// The values are rounded to f32 whatever `dtype` is.
///
/// # Errors
/// `dtype` is not f32 or f64.
pub fn initial_weights(
    layout: &RankLayout,
    bucket: usize,
    seed: u64,
    dtype: DType,
) -> Result<Buf, NnError> {
    let mut values = vec![0.0f32; layout.buckets[bucket].len];
    for &index in &layout.buckets[bucket].params {
        let param = &layout.params[index];
        fill_initial(param, seed, &mut values[param.span()]);
    }
    match dtype {
        DType::F32 => Ok(Buf::from_vec(values)),
        DType::F64 => Ok(Buf::from_vec(values.into_iter().map(f64::from).collect::<Vec<_>>())),
        other => Err(NnError::Master(other)),
    }
}

fn fill_initial(param: &LocalParam, seed: u64, out: &mut [f32]) {
    let std = match param.spec.init {
        Init::Zeros => return out.fill(0.0),
        Init::Ones => return out.fill(1.0),
        Init::Normal { std } => std as f32,
    };
    // A tied copy starts from the numbers of what it is a copy of.
    let stream = Stream::new(seed, param.spec.tied_to.as_deref().unwrap_or(&param.spec.name));
    let width: usize = param.spec.shape[1..].iter().product();
    let columns = param.ranges.get(1).cloned().unwrap_or(0..1);
    for (row, values) in param.ranges[0].clone().zip(out.chunks_exact_mut(columns.len())) {
        if row < param.spec.valid_rows {
            stream.fill_normal((row * width + columns.start) as u64, std, values);
        } else {
            values.fill(0.0);
        }
    }
}
