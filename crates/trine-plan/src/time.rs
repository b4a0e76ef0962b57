//! Seconds of one optimizer step, item by item.

use crate::again::Again;
use crate::collectives::{Group, Network};
use crate::kernels::{Kernels, Passes};
use crate::model::BlockWork;
use crate::pipeline::{StageTime, blocks_of, bubble_s};
use crate::trained::Products;
use crate::{Ends, Layout, Planner, Precision, Recompute};

/// Kernels of an fp8 block relative to a bf16 one: a cast and a transpose beside each product's operands.
const FP8_KERNELS: f64 = 1.8;

/// Norms of the block whose kernels a stack counts.
const PLAIN_NORMS: f64 = 2.0;

/// Bytes of a token in the sums of norms over all heads: a number of the queries and one of the keys, in f32.
const QK_SUM_BYTES: f64 = 8.0;

/// How sharply the slower of host and device decides.
const SHARPNESS: i32 = 3;

/// Seconds of a step, itemised: what the slowest pipeline rank does, then what it waits for. The items add up to
/// [`Time::step`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Time {
    /// Forward kernels.
    pub forward: f64,
    /// Backward kernels, without recompute.
    pub backward: f64,
    /// Forward kernels run again in backward.
    pub recompute: f64,
    /// Collectives of tensor parallelism that nothing hides.
    pub tensor: f64,
    /// Exchanges of context parallelism that attention does not hide.
    pub context: f64,
    /// Messages between stages that nothing hides.
    pub messages: f64,
    /// Waiting for the pipeline to fill and drain.
    pub bubble: f64,
    /// Gathering weights and reducing gradients over replicas, where computation does not hide it.
    pub data: f64,
    /// The optimizer's update and the gradient norm.
    pub optimizer: f64,
    /// Waiting for the slowest node.
    pub straggling: f64,
    /// All of it.
    pub step: f64,
}

/// Seconds of one micro-batch in one block, or in the head.
#[derive(Debug, Clone, Copy, Default)]
struct Unit {
    kernels: Passes,
    recompute: f64,
    tensor_forward: f64,
    tensor_backward: f64,
    context: f64,
}

impl Unit {
    fn stage_time(&self) -> StageTime {
        StageTime {
            forward: self.kernels.forward + self.tensor_forward + self.context / 3.0,
            backward: self.kernels.backward
                + self.recompute
                + self.tensor_backward
                + self.context * 2.0 / 3.0,
            weight: self.kernels.weight,
        }
    }

    fn scaled(&self, by: f64, of: &Self) -> Self {
        let add = |a: f64, b: f64| a + by * b;
        Self {
            kernels: Passes {
                forward: add(self.kernels.forward, of.kernels.forward),
                backward: add(self.kernels.backward, of.kernels.backward),
                weight: add(self.kernels.weight, of.kernels.weight),
            },
            recompute: add(self.recompute, of.recompute),
            tensor_forward: add(self.tensor_forward, of.tensor_forward),
            tensor_backward: add(self.tensor_backward, of.tensor_backward),
            context: add(self.context, of.context),
        }
    }
}

impl Planner<'_> {
    /// The work of a pipeline rank: its blocks, and the head where it is.
    fn unit(&self, layout: &Layout, rank: usize, block: &Unit, head: &Unit) -> Unit {
        let blocks = blocks_of(&self.model.spec, layout, self.stack, rank);
        let heads = f64::from(u8::from(layout.ends_of(rank).head));
        Unit::default().scaled(blocks, block).scaled(heads, head)
    }

    /// Seconds of one optimizer step.
    pub fn time(&self, layout: &Layout) -> Time {
        let network = self.network();
        let kernels = self.kernels(layout.precision);
        let block = self.block(layout, &kernels, &network, self.model.trained.products);
        let head = self.head(layout, &kernels, &network);
        let p = layout.degrees.pp;
        let m = layout.micro_batches() as f64;
        // The first ranks have as many blocks as any, the first or the last has the head.
        let slow = [0, usize::from(p > 2), p - 1]
            .map(|rank| self.unit(layout, rank, &block, &head))
            .into_iter()
            .max_by(|a, b| a.stage_time().total().total_cmp(&b.stage_time().total()))
            .expect("invariant: three ranks");
        let slowest = slow.stage_time();
        let all = Unit::default()
            .scaled(self.model.spec.layers as f64, &block)
            .scaled(1.0, &head)
            .stage_time();
        let others = StageTime {
            forward: all.forward - slowest.forward,
            backward: all.backward - slowest.backward,
            weight: all.weight - slowest.weight,
        };
        let message = self.message_s(layout);
        let waits @ (blocked, _) = self.stack.message_waits(message, p);
        let v = layout.virtual_stages as f64;
        let mut time = Time {
            forward: m * slow.kernels.forward,
            backward: m * (slow.kernels.backward + slow.kernels.weight),
            recompute: m * slow.recompute,
            tensor: m * (slow.tensor_forward + slow.tensor_backward),
            context: m * slow.context,
            messages: m * 2.0 * v * blocked,
            bubble: bubble_s(layout, others, waits, self.stack.steps_overlap),
            ..Time::default()
        };
        let blocks = blocks_of(&self.model.spec, layout, self.stack, usize::from(p > 2));
        time.data = self.data_s(layout, &network, blocks, &slowest) + self.tied_s(layout, &network);
        time.optimizer = self.optimizer_s(layout, &kernels, blocks);
        let busy = time.forward
            + time.backward
            + time.recompute
            + time.tensor
            + time.context
            + time.messages
            + time.bubble
            + time.data
            + time.optimizer;
        let nodes = network.nodes(layout.devices()) as f64;
        time.straggling = busy * self.device.straggling * (2.0 * nodes.ln()).sqrt();
        time.step = busy + time.straggling;
        time
    }

    /// Seconds of one micro-batch in one block of which these products are trained.
    pub(crate) fn block_time(&self, layout: &Layout, trained: Products) -> StageTime {
        let (network, kernels) = (self.network(), self.kernels(layout.precision));
        self.block(layout, &kernels, &network, trained).stage_time()
    }

    /// Seconds of one micro-batch in the head, and in a message between stages.
    pub(crate) fn head_time(&self, layout: &Layout) -> (StageTime, f64) {
        let (network, kernels) = (self.network(), self.kernels(layout.precision));
        let head = self.head(layout, &kernels, &network).stage_time();
        (head, self.message_s(layout))
    }

    pub(crate) fn network(&self) -> Network<'_> {
        Network { cluster: self.cluster, device: self.device }
    }

    fn kernels(&self, precision: Precision) -> Kernels<'_> {
        Kernels { device: &self.cluster.device, constants: self.device, precision }
    }

    /// One block, one micro-batch.
    fn block(
        &self,
        layout: &Layout,
        kernels: &Kernels<'_>,
        network: &Network<'_>,
        trained: Products,
    ) -> Unit {
        let spec = &self.model.spec;
        let tp = self.model.degree(layout.degrees.tp);
        let (tokens, seq) = (layout.tokens(), layout.seq as f64);
        let (h, f) = (spec.hidden as f64, spec.ffn as f64);
        let (q, kv) = (spec.q_dim() as f64, spec.kv_dim() as f64);
        let inner = f * (1.0 + spec.gates());
        let heads = spec.heads as f64 / tp.heads;
        // The widths of the fullest rank.
        let (q_own, kv_own) = (q / tp.heads, kv / tp.heads);
        let (inner_own, f_own) = (inner / tp.inner, f / tp.inner);
        let each = [(h, q_own + 2.0 * kv_own), (q_own, h), (h, inner_own), (f_own, h)]
            .map(|(inputs, outputs)| kernels.linear(tokens, inputs, outputs));
        let [columns, rows] = [trained.columns, trained.rows];
        let shares = [columns[0], rows[0], columns[1], rows[1]];
        let mut products = Passes::default();
        for (product, share) in each.iter().zip(shares) {
            products += Passes { weight: product.weight * share, ..*product };
        }
        let attention = kernels
            .attention(layout.attention, tokens, seq, heads, spec.head_dim as f64)
            .times(spec.seen_of_all(layout.seq));
        let rest = self.element_wise(layout, kernels);
        let over = self.costs.host_overhead;
        // fp8 casts and transposes launch kernels of their own.
        let launched = self.launches() * if layout.precision.is_fp8() { FP8_KERNELS } else { 1.0 };
        let host = launched * self.device.kernel_gap;
        let forward = launched_s(products.forward + attention.forward + rest.forward, host);
        let both = products.backward + products.weight + attention.backward + rest.backward;
        let slower = launched_s(both, 2.0 * host) / both;
        let all = Passes {
            forward: forward * over,
            backward: (both - products.weight) * slower * over,
            weight: products.weight * slower * over,
        };
        let again = match (layout.recompute, self.steps_again(layout)) {
            (_, Some(steps)) => {
                let Again { columns, rows, .. } = steps;
                let times = [columns[0], rows[0], columns[1], rows[1]];
                let seconds =
                    each.iter().zip(times).map(|(product, times)| product.forward * times);
                let bytes = self.touched_bytes(layout, self.touched(layout, &steps));
                let inner = steps.inner[0] * attention.forward;
                let device = seconds.sum::<f64>() + inner + kernels.stream_s(bytes);
                launched_s(device, host * steps.count() / self.all_steps().count())
            }
            (Recompute::None | Recompute::Tensors(_), None) => 0.0,
            (Recompute::Selective, None) => attention.forward,
            (Recompute::SelectiveOps, None) => {
                // k, output and up again; and everything element-wise.
                let flops = h * (q + 2.0 * kv) + q * h + h * inner + f * h;
                products.forward * (h * kv + q * h + h * f) / flops + rest.forward
            }
            (Recompute::Full { .. }, None) => forward * self.whole_share(layout),
        } * over;
        let (tensor_forward, tensor_backward) = self.tensor_s(layout, network);
        let context = self.context_s(layout, network, attention.forward + attention.backward);
        Unit { kernels: all, recompute: again, tensor_forward, tensor_backward, context }
    }

    /// What runs again of a block by steps, on average over a stage's.
    fn steps_again(&self, layout: &Layout) -> Option<Again> {
        match layout.recompute {
            Recompute::Tensors(list) => Some(self.model.again(list)),
            Recompute::Full { .. } if self.stack.replays_steps => {
                Some(self.model.whole_again() * self.whole_share(layout))
            }
            Recompute::None
            | Recompute::Selective
            | Recompute::SelectiveOps
            | Recompute::Full { .. } => None,
        }
    }

    /// The share of a stage's blocks that are computed again as a whole.
    fn whole_share(&self, layout: &Layout) -> f64 {
        let blocks = self.model.spec.layers as f64 / layout.degrees.pp as f64;
        layout.recompute.whole_blocks(blocks).min(blocks) / blocks
    }

    /// Kernels that a block launches in forward: each norm beyond those of the plain block is one.
    fn launches(&self) -> f64 {
        let BlockWork { norms, qk_norms, .. } = self.model.work;
        self.stack.kernels + (norms - PLAIN_NORMS) + qk_norms
    }

    /// Kernels bound by memory. Backward reads what was saved beside the gradients that it reads and writes: twice as
    /// many bytes as forward.
    fn element_wise(&self, layout: &Layout, kernels: &Kernels<'_>) -> Passes {
        let spec = &self.model.spec;
        let tp = self.model.degree(layout.degrees.tp);
        let h = spec.hidden as f64;
        let BlockWork { branches, .. } = self.model.work;
        let masks = if self.stack.dropout_masks { branches * h / 2.0 } else { 0.0 };
        let mut elements =
            self.touched(layout, &self.all_steps()) + masks / self.stream_parts(layout);
        if layout.precision.is_fp8() {
            // Inputs of products are cast, and transposed for the weight gradient.
            let f = spec.ffn as f64;
            elements += 1.5 * (branches * h + spec.q_dim() as f64 / tp.heads + f / tp.inner);
        }
        let forward = kernels.stream_s(self.touched_bytes(layout, elements));
        Passes { forward, backward: 2.0 * forward, weight: 0.0 }
    }

    /// All steps of a block's forward pass, once.
    fn all_steps(&self) -> Again {
        let BlockWork { branches, norms, .. } = self.model.work;
        Again { columns: [1.0; 2], inner: [1.0; 2], rows: [1.0; 2], norms, sums: branches }
    }

    /// What kernels bound by memory touch for a token in some steps of forward, in units of one 16-bit element: each
    /// norm reads and writes the stream (2 h), each branch is added to it (3 h); columns of attention turn or split
    /// heads (2 (q + 2 kv)) and norm them; the activation has 2 or 3 f.
    fn touched(&self, layout: &Layout, steps: &Again) -> f64 {
        let spec = &self.model.spec;
        let tp = self.model.degree(layout.degrees.tp);
        let stream = (2.0 * steps.norms + 3.0 * steps.sums) * spec.hidden as f64;
        let heads = (spec.q_dim() + 2 * spec.kv_dim()) as f64 + self.model.work.qk_features;
        let activation = spec.ffn as f64 * spec.mlp_matrices();
        stream / self.stream_parts(layout)
            + steps.columns[0] * 2.0 * heads / tp.heads
            + steps.inner[1] * activation / tp.inner
    }

    fn touched_bytes(&self, layout: &Layout, elements: f64) -> f64 {
        layout.tokens() * layout.precision.element_bytes() * elements * self.costs.traffic
    }

    /// Over how many ranks the stream is split.
    fn stream_parts(&self, layout: &Layout) -> f64 {
        let tp = self.model.degree(layout.degrees.tp);
        if layout.sequence_parallel { tp.vocab } else { 1.0 }
    }

    /// Exposed collectives of a block: an all-reduce of each branch each way (or the all-gathers and reduce-scatters
    /// that sequence parallelism splits them into), the sums of norms over all heads, and those of forward that run
    /// again.
    fn tensor_s(&self, layout: &Layout, network: &Network<'_>) -> (f64, f64) {
        let tp = layout.degrees.tp;
        if tp == 1 {
            return (0.0, 0.0);
        }
        let bytes =
            layout.tokens() * self.model.spec.hidden as f64 * layout.precision.element_bytes();
        let group = Group { size: tp, stride: 1 };
        let overlap = if layout.sequence_parallel { self.stack.tensor_overlap } else { 0.0 };
        let BlockWork { branches, qk_sums, .. } = self.model.work;
        let of_branch = network.all_reduce_s(bytes, 1.0, group) * (1.0 - overlap);
        let of_heads = qk_sums * network.all_reduce_s(layout.tokens() * QK_SUM_BYTES, 1.0, group);
        let each_way = branches * of_branch + of_heads;
        let again = match self.steps_again(layout) {
            Some(Again { columns, rows, .. }) => {
                let (read, given) = (columns[0] + columns[1], rows[0] + rows[1]);
                let halves = if layout.sequence_parallel { (read + given) / 2.0 } else { given };
                halves * of_branch + columns[0] * of_heads
            }
            None => each_way * self.whole_share(layout),
        };
        (each_way, each_way + again)
    }

    /// Ring attention sends keys and values around cp ranks, forward once and backward with their gradients, behind
    /// the attention of the part at hand.
    fn context_s(&self, layout: &Layout, network: &Network<'_>, attention: f64) -> f64 {
        let d = &layout.degrees;
        if d.cp == 1 {
            return 0.0;
        }
        let kv = 2.0 * self.model.spec.kv_dim() as f64 / self.model.degree(d.tp).heads;
        let bytes = layout.tokens() * kv * layout.precision.element_bytes();
        let all =
            3.0 * (d.cp - 1) as f64 * network.message_s(bytes, Group { size: d.cp, stride: d.tp });
        hidden(all, attention, self.device.interference)
    }

    /// Final norm, output layer and loss of one micro-batch.
    fn head(&self, layout: &Layout, kernels: &Kernels<'_>, network: &Network<'_>) -> Unit {
        let tp = layout.degrees.tp as f64;
        let tokens = layout.tokens();
        let vocab = self.model.vocab_local(tp);
        // The output layer stays in the wider type where blocks are fp8.
        let wide = Kernels {
            precision: if layout.precision.is_fp8() { Precision::Bf16 } else { layout.precision },
            ..*kernels
        };
        let mut passes = wide.linear(tokens, self.model.spec.hidden as f64, vocab);
        if !self.model.trained.has_output() {
            passes.weight = 0.0;
        }
        // The loss in f32: cast, maximum, exponentials, sum; and the gradient.
        let held = if self.stack.logits_whole { vocab * tp } else { vocab };
        let loss = wide.stream_s(tokens * held * 12.0);
        passes += Passes { forward: loss, backward: loss, weight: 0.0 };
        let over = self.costs.host_overhead;
        let group = Group { size: layout.degrees.tp, stride: 1 };
        let whole = if self.stack.logits_whole {
            network.gather_s(tokens * held * layout.precision.element_bytes(), 1.0, group)
        } else {
            0.0
        };
        Unit {
            tensor_forward: whole,
            kernels: Passes {
                forward: passes.forward * over,
                backward: passes.backward * over,
                weight: passes.weight * over,
            },
            ..Unit::default()
        }
    }

    /// Seconds of one message between pipeline ranks.
    fn message_s(&self, layout: &Layout) -> f64 {
        let network = self.network();
        let d = &layout.degrees;
        if d.pp == 1 {
            return 0.0;
        }
        let element = self.stack.stream_bytes(layout.precision);
        let bytes = layout.tokens() * self.model.spec.hidden as f64 * element;
        let group = Group { size: d.tp, stride: 1 };
        let split = self.stack.split_messages || layout.sequence_parallel;
        let sent = if split { bytes / d.tp as f64 } else { bytes };
        let gather = if split && !layout.sequence_parallel {
            network.gather_s(bytes, 1.0, group)
        } else {
            0.0
        };
        network.message_s(sent, Group { size: d.pp, stride: d.tp * d.cp * d.dp }) + gather
    }

    /// Exposed traffic over replicas. ZeRO-0: one all-reduce of the gradients; ZeRO-1: reduce-scatter and all-gather
    /// of the weights; ZeRO-2: the same, but whole gradients are not kept, so every micro-batch reduces its own;
    /// ZeRO-3: weights gathered around each block, forward and backward, in every micro-batch.
    fn data_s(
        &self,
        layout: &Layout,
        network: &Network<'_>,
        blocks: f64,
        slowest: &StageTime,
    ) -> f64 {
        let d = &layout.degrees;
        let replicas = Group { size: layout.replicas(), stride: d.tp };
        if replicas.size == 1 {
            return 0.0;
        }
        let trained = self.model.stage_trained(blocks, Ends::of_rest(layout), d.tp);
        let calls = blocks.max(1.0);
        let reduced = trained * self.stack.reduce_bytes(layout.precision);
        // Weights that are not trained are exchanged where they are shared out.
        let exchanged = match layout.zero {
            3 => self.model.stage_elements(blocks, Ends::of_rest(layout), d.tp),
            _ => trained,
        };
        let gathered = exchanged * layout.precision.element_bytes();
        let reduce = network.gather_s(reduced, calls, replicas);
        let gather = network.gather_s(gathered, calls, replicas);
        let over = self.device.interference;
        let m = layout.micro_batches() as f64;
        if layout.zero == 3 {
            let forward = hidden(gather, slowest.forward, over);
            let backward = hidden(gather + reduce, slowest.backward + slowest.weight, over);
            return m * (forward + backward);
        }
        let overlap = self.stack.gradient_overlap;
        // Weights are gathered with forward, gradients reduced with backward, of one micro-batch (one chunk if
        // interleaved) each.
        let chunks = layout.virtual_stages as f64;
        let window = overlap / chunks.max(1.0);
        let backward = (slowest.backward + slowest.weight) * window;
        if layout.zero == 0 {
            let all = network.all_reduce_s(reduced, calls, replicas);
            return partly_hidden(all, backward, over, overlap);
        }
        let reduce = if self.stack.whole_gradients {
            network.all_reduce_s(reduced, calls, replicas)
        } else {
            reduce
        };
        let reductions = if layout.zero == 2 { m } else { 1.0 };
        reductions * partly_hidden(reduce, backward, over, overlap)
            + partly_hidden(gather, slowest.forward * window, over, overlap)
    }

    /// A tied embedding on the first and last stage: its gradient is summed between the two, where two ranks have them.
    fn tied_s(&self, layout: &Layout, network: &Network<'_>) -> f64 {
        let d = &layout.degrees;
        if layout.ends_of(0).head || !self.model.spec.tied || !self.model.trained.has_output() {
            return 0.0;
        }
        let elements = self.model.trained.elements.output.vocab / d.tp as f64;
        let ends = Group { size: 2, stride: (d.pp - 1) * d.dp * d.cp * d.tp };
        network.all_reduce_s(elements * self.stack.reduce_bytes(layout.precision), 1.0, ends)
    }

    /// Adam reads and writes master weights and two moments, reads gradients (twice: the norm), writes weights.
    fn optimizer_s(&self, layout: &Layout, kernels: &Kernels<'_>, blocks: f64) -> f64 {
        let d = &layout.degrees;
        let elements = self.model.stage_trained(blocks, Ends::of_rest(layout), d.tp);
        let owned = elements / d.product(layout.shares().states) as f64;
        let state = self.stack.states(layout.precision);
        let bytes = owned * (2.0 * (state.master + state.moments) + state.weights)
            + 2.0 * elements.min(owned * 2.0) * state.gradients;
        kernels.stream_s(bytes)
    }
}

/// The host launches kernels while the device computes: whichever takes longer, and a little more where they are
/// alike.
fn launched_s(device: f64, host: f64) -> f64 {
    (device.powi(SHARPNESS) + host.powi(SHARPNESS)).powf(1.0 / f64::from(SHARPNESS))
}

/// What remains of communication behind computation: what is longer than it, and the slowing of what is not.
fn hidden(communication: f64, computation: f64, interference: f64) -> f64 {
    (communication - computation).max(0.0) + interference * communication.min(computation)
}

/// The same where nothing is hidden at all without overlap.
fn partly_hidden(communication: f64, window: f64, interference: f64, overlap: f64) -> f64 {
    if overlap == 0.0 { communication } else { hidden(communication, window, interference) }
}
