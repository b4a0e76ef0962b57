//! The methods of `Ops` that are nothing but a call of a kernel, as one list for all that implement it.

/// Hands the list to the macro `$make`: signatures without `&self`, under the module that has the kernels.
#[doc(hidden)]
#[macro_export]
macro_rules! kernel_methods {
    ($make:ident) => {
        $make! {
            elementwise {
                fn add_bias(y: MatMut<'_>, bias: Slice<'_>) -> Done;
                fn sum_rows(acc: SliceMut<'_>, x: MatRef<'_>) -> Done;
                fn add(y: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) -> Done;
                fn add_assign(y: SliceMut<'_>, a: Slice<'_>) -> Done;
                fn scale(y: SliceMut<'_>, factor: f64) -> Done;
                fn cast(y: SliceMut<'_>, x: Slice<'_>) -> Done;
                fn offset(y: SliceMut<'_>, x: Slice<'_>, by: f64) -> Done;
                fn copy(y: MatMut<'_>, x: MatRef<'_>) -> Done;
            }
            activation {
                fn activation(function: Function, y: SliceMut<'_>, x: Slice<'_>) -> Done;
                fn activation_backward(
                    function: Function,
                    dx: SliceMut<'_>,
                    x: Slice<'_>,
                    dy: Slice<'_>,
                ) -> Done;
                fn gated(
                    function: Function,
                    y: MatMut<'_>,
                    gate: MatRef<'_>,
                    up: MatRef<'_>,
                ) -> Done;
                fn gated_backward(
                    function: Function,
                    d: GateUpMut<'_>,
                    gate: MatRef<'_>,
                    up: MatRef<'_>,
                    dy: MatRef<'_>,
                ) -> Done;
            }
            norm {
                fn layer_norm(
                    shape: NormShape,
                    y: SliceMut<'_>,
                    stats: SliceMut<'_>,
                    x: Slice<'_>,
                    gamma: Slice<'_>,
                    beta: Slice<'_>,
                ) -> Done;
                fn layer_norm_backward(
                    shape: NormShape,
                    dx: SliceMut<'_>,
                    add_to_dx: bool,
                    dgamma: SliceMut<'_>,
                    dbeta: SliceMut<'_>,
                    x: Slice<'_>,
                    stats: Slice<'_>,
                    gamma: Slice<'_>,
                    dy: Slice<'_>,
                ) -> Done;
                fn rms_norm(
                    shape: NormShape,
                    y: SliceMut<'_>,
                    rstd: SliceMut<'_>,
                    x: Slice<'_>,
                    gamma: Slice<'_>,
                ) -> Done;
                fn rms_norm_backward(
                    shape: NormShape,
                    dx: SliceMut<'_>,
                    add_to_dx: bool,
                    dgamma: SliceMut<'_>,
                    x: Slice<'_>,
                    rstd: Slice<'_>,
                    gamma: Slice<'_>,
                    dy: Slice<'_>,
                ) -> Done;
            }
            rms {
                fn rms_squares(shape: RmsShape, sums: SliceMut<'_>, x: MatRef<'_>) -> Done;
                fn rms_scale(
                    shape: RmsShape,
                    y: MatMut<'_>,
                    stats: SliceMut<'_>,
                    x: MatRef<'_>,
                    gamma: Slice<'_>,
                ) -> Done;
                fn rms_products(
                    shape: RmsShape,
                    sums: SliceMut<'_>,
                    x: MatRef<'_>,
                    gamma: Slice<'_>,
                    dy: MatRef<'_>,
                ) -> Done;
                fn rms_backward(
                    shape: RmsShape,
                    d: MatMut<'_>,
                    x: MatRef<'_>,
                    rstd: Slice<'_>,
                    products: Slice<'_>,
                    gamma: Slice<'_>,
                ) -> Done;
                fn rms_gain(
                    shape: RmsShape,
                    dgamma: SliceMut<'_>,
                    x: MatRef<'_>,
                    rstd: Slice<'_>,
                    dy: MatRef<'_>,
                ) -> Done;
            }
            rope {
                fn rope(shape: RopeShape, inverse: bool, x: MatMut<'_>, table: Slice<'_>) -> Done;
            }
            softcap {
                fn softcap(y: SliceMut<'_>, cap: f64) -> Done;
            }
            attention {
                fn attention_merge(
                    shape: AttentionShape,
                    o: MatMut<'_>,
                    lse: SliceMut<'_>,
                    part_o: MatRef<'_>,
                    part_lse: Slice<'_>,
                ) -> Done;
            }
            embedding {
                fn embedding(
                    cols: usize,
                    y: SliceMut<'_>,
                    ids: Slice<'_>,
                    table: Slice<'_>,
                    first_row: usize,
                ) -> Done;
                fn embedding_backward(
                    cols: usize,
                    dtable: SliceMut<'_>,
                    ids: Slice<'_>,
                    dy: Slice<'_>,
                    first_row: usize,
                ) -> Done;
            }
            loss {
                fn ce_max(shape: LossShape, max: SliceMut<'_>, logits: MatRef<'_>) -> Done;
                fn ce_sum(
                    shape: LossShape,
                    blocks: usize,
                    sum_exp: SliceMut<'_>,
                    target_logit: SliceMut<'_>,
                    logits: MatRef<'_>,
                    max: Slice<'_>,
                    targets: Slice<'_>,
                ) -> Done;
                fn ce_loss(
                    loss: SliceMut<'_>,
                    max: Slice<'_>,
                    sum_exp: Slice<'_>,
                    target_logit: Slice<'_>,
                    targets: Slice<'_>,
                ) -> Done;
                fn ce_grad(
                    shape: LossShape,
                    logits: MatMut<'_>,
                    max: Slice<'_>,
                    sum_exp: Slice<'_>,
                    targets: Slice<'_>,
                    scale: f64,
                ) -> Done;
            }
            mask {
                fn dropout(dropout: Dropout, place: DropoutPlace, y: MatMut<'_>, x: MatRef<'_>) -> Done;
            }
            optim {
                fn adamw(
                    adamw: AdamW,
                    weights: SliceMut<'_>,
                    m: SliceMut<'_>,
                    v: SliceMut<'_>,
                    grad: Slice<'_>,
                    compute: Option<SliceMut<'_>>,
                ) -> Done;
                fn sgd(
                    sgd: Sgd,
                    weights: SliceMut<'_>,
                    velocity: Option<SliceMut<'_>>,
                    grad: Slice<'_>,
                    compute: Option<SliceMut<'_>>,
                ) -> Done;
                fn sum_squares(acc: SliceMut<'_>, x: Slice<'_>) -> Done;
                fn row_sums(sums: SliceMut<'_>, x: MatRef<'_>) -> Done;
                fn first_non_finite(x: Slice<'_>) -> Result<Option<usize>, KernelError>;
            }
        }
    };
}
