//! Element-wise activations of the MLP.

use crate::{Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork, check_len};
use trine_buffer::{Act, Buf};
use trine_kernels::{Function, GateUpMut, MatMut, MatRef};

/// The MLP's activation: `f(x)` of `[rows, cols]`, or as a gate (2002.05202) `f(gate) · up` of
/// `[rows, gate cols | up cols]`. Both give `[rows, cols]`.
///
/// GPT-2 has [`Function::GeluTanh`]; SwiGLU is [`Function::Silu`] as a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activation {
    /// What is done to each element, or to each element of the gate.
    pub function: Function,
    /// Whether the input is a gate and what it is multiplied with.
    pub gated: bool,
    /// (Local) elements of an output row.
    pub cols: usize,
}

impl Activation {
    /// Elements of an input row.
    fn inputs(self) -> usize {
        if self.gated { 2 * self.cols } else { self.cols }
    }

    /// The function of each element of `x`.
    ///
    /// # Errors
    /// A wrong shape.
    pub fn apply(self, x: &Buf, ctx: &Context<'_>) -> Result<Buf, NnError> {
        let (inputs, cols) = (self.inputs(), self.cols);
        let rows = ctx.rows.tokens();
        check_len("activation", "input", x.len(), rows * inputs)?;
        let mut y = ctx.alloc(rows, cols)?;
        if self.gated {
            let all = MatRef::new(x.slice(), rows, inputs);
            let (gate, up) = (all.columns(0..cols)?, all.columns(cols..inputs)?);
            let y = MatMut::new(y.slice_mut(), rows, cols);
            ctx.ops.gated(self.function, y, gate, up)?;
        } else {
            ctx.ops.activation(self.function, y.slice_mut(), x.slice())?;
        }
        Ok(y)
    }
}

impl Layer for Activation {
    fn forward(&self, _: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let y = self.apply(&x, ctx)?;
        let saved = if ctx.training() { Saved::new([x], []) } else { Saved::nothing() };
        Ok((Act::new(y), saved))
    }

    fn backward_input(
        &self,
        _: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        _: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([x], []) = saved.take()?;
        let (inputs, cols) = (self.inputs(), self.cols);
        let rows = ctx.rows.tokens();
        check_len("activation", "output gradient", dy.len(), rows * cols)?;
        let mut dx = ctx.alloc(rows, inputs)?;
        if self.gated {
            let all = MatRef::new(x.slice(), rows, inputs);
            let (gate, up) = (all.columns(0..cols)?, all.columns(cols..inputs)?);
            let d = GateUpMut::Fused(MatMut::new(dx.slice_mut(), rows, inputs));
            let dy = MatRef::new(dy.slice(), rows, cols);
            ctx.ops.gated_backward(self.function, d, gate, up, dy)?;
        } else {
            let (dx, x, dy) = (dx.slice_mut(), x.slice(), dy.slice());
            ctx.ops.activation_backward(self.function, dx, x, dy)?;
        }
        Ok((Act::new(dx), WeightWork::nothing()))
    }
}
