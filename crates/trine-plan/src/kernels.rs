//! Seconds of kernels on one device: matrix products by shape, attention by head size, everything else by bytes.

use crate::{Attention, Device, DeviceConstants, Precision};

/// Output tile of a product on the devices at hand; the constants are relative to it.
const TILE: f64 = 128.0 * 256.0;

/// How much longer a product takes than its work alone: whole waves of whole tiles, and a start and an end (`tail`
/// waves of the largest tile); with the tile that wastes least. Small tiles read more for each product.
fn waves_s(m: f64, n: f64, units: f64, tail: f64) -> f64 {
    let mut best = f64::INFINITY;
    for (rows, columns, efficiency) in
        [(256.0, 128.0, 1.0), (128.0, 256.0, 1.0), (128.0, 128.0, 0.93), (128.0, 64.0, 0.8)]
    {
        let tiles: f64 = f64::ceil(m / rows) * f64::ceil(n / columns);
        let waves = (tiles / units).ceil();
        let tile = rows * columns / efficiency;
        best = best.min(waves * tile + tail * TILE);
    }
    best * units / (m * n)
}

/// Loss of attention's products where rows of heads do not start at 16 bytes: tensor cores are fed element by element
/// (BigScience: heads of 108 cost a third of the throughput of the whole model beside heads of 144).
const MISALIGNED: f64 = 3.0;

/// FlashAttention's first version against the second: a block a head and batch row, more non-matrix work (Dao 2023
/// measures 1.7 to 2).
const FLASH1: f64 = 1.8;

/// Backward of fused attention does five products where forward does two.
const FLASH_BACKWARD: f64 = 2.5;

/// One device and its constants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernels<'a> {
    pub(crate) device: &'a Device,
    pub(crate) constants: &'a DeviceConstants,
    pub(crate) precision: Precision,
}

/// Forward, input-gradient and weight-gradient seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Passes {
    pub(crate) forward: f64,
    pub(crate) backward: f64,
    pub(crate) weight: f64,
}

impl Passes {
    /// So many of them.
    pub(crate) fn times(self, count: f64) -> Self {
        let Self { forward, backward, weight } = self;
        Self { forward: forward * count, backward: backward * count, weight: weight * count }
    }
}

impl std::ops::AddAssign for Passes {
    fn add_assign(&mut self, other: Self) {
        self.forward += other.forward;
        self.backward += other.backward;
        self.weight += other.weight;
    }
}

impl Kernels<'_> {
    /// Seconds of a product m × n × k: the work, the waves of tiles that the end of it wastes, the prologue and
    /// epilogue of each tile; but never less than its bytes take.
    pub(crate) fn product_s(&self, m: f64, n: f64, k: f64) -> f64 {
        let c = self.constants;
        let (peak, efficiency) = match self.precision {
            Precision::Fp8 if self.device.peak_fp8 > 0.0 => {
                (self.device.peak_fp8, c.fp8_efficiency)
            }
            precision => (self.device.peak(precision), c.gemm_efficiency),
        };
        let slower = waves_s(m, n, self.device.units, c.wave_tail) * (1.0 + c.inner_half / k);
        let work = 2.0 * m * n * k / (peak * efficiency) * slower;
        let bytes = self.element_bytes() * (m * n + m * k + n * k);
        work.max(self.stream_s(bytes))
    }

    /// Forward and both backward products of a linear layer `inputs` → `outputs` on `tokens` rows.
    pub(crate) fn linear(&self, tokens: f64, inputs: f64, outputs: f64) -> Passes {
        Passes {
            forward: self.product_s(tokens, outputs, inputs),
            backward: self.product_s(tokens, inputs, outputs),
            weight: self.product_s(inputs, outputs, tokens),
        }
    }

    /// Attention of `heads` local heads over `tokens` queries that see `seq` keys, causal.
    pub(crate) fn attention(
        &self,
        kind: Attention,
        tokens: f64,
        seq: f64,
        heads: f64,
        head_dim: f64,
    ) -> Passes {
        if kind.stores_scores() {
            return self.stored_attention(kind, tokens, seq, heads, head_dim);
        }
        let c = self.constants;
        // Half of the scores are masked, and skipped. Kernels exist for heads of 32, 64, 96 and 128, then of multiples
        // of 64: others are padded. Heads narrower than a tile of 128 waste part of it.
        let step = if head_dim <= 128.0 { 32.0 } else { 64.0 };
        let padded = (head_dim / step).ceil() * step;
        let flops = 4.0 * tokens * seq * heads * padded / 2.0;
        let narrow = (128.0 / padded).max(1.0).sqrt();
        let version = if kind == Attention::Flash1 { FLASH1 } else { 1.0 };
        let rate = self.device.peak_bf16 * c.flash_efficiency * seq / (seq + c.flash_half);
        let forward = flops / rate * narrow * version;
        Passes { forward, backward: FLASH_BACKWARD * forward, weight: 0.0 }
    }

    /// Batched products, and the kernels between them that read and write every score. Bytes of a score in forward:
    /// written by q·kᵀ (2), softmax with scale and mask (2 + 2), dropout (2 + 2 + 1), read by p·v (2);
    /// in backward: the gradient's product (2), dropout (2 + 1 + 2), softmax (2 + 2 + 2), and three products read it
    /// (6). Separate kernels for scale, mask and the cast to f32 more than double both.
    fn stored_attention(
        &self,
        kind: Attention,
        tokens: f64,
        seq: f64,
        heads: f64,
        head_dim: f64,
    ) -> Passes {
        let slower = if head_dim % 8.0 == 0.0 { 1.0 } else { MISALIGNED };
        let c = self.constants;
        let rate = self.device.peak_bf16 * c.gemm_efficiency;
        let flops = 4.0 * tokens * seq * heads * head_dim;
        let work = flops / rate * (1.0 + c.inner_half / head_dim);
        let scores = tokens * seq * heads;
        let (forward, backward) = match kind {
            Attention::Unfused => (33.0, 43.0),
            _ => (13.0, 19.0),
        };
        Passes {
            forward: (work + self.stream_s(forward * scores)) * slower,
            backward: (2.0 * work + self.stream_s(backward * scores)) * slower,
            weight: 0.0,
        }
    }

    /// Seconds to move bytes.
    pub(crate) fn stream_s(&self, bytes: f64) -> f64 {
        bytes / (self.device.bandwidth * self.constants.bandwidth_efficiency)
    }

    fn element_bytes(&self) -> f64 {
        self.precision.element_bytes()
    }
}
