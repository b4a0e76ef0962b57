//! Element-wise activations of the MLP.

use crate::{Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork, check_len};
use trine_buffer::Act;
use trine_kernels::{GateUpMut, GeluKind, MatMut, MatRef};

/// The MLP's activation. `cols` is the (local) width of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GELU (1606.08415) of `[rows, cols]`, in GPT-2's tanh form.
    Gelu {
        /// Elements of a row.
        cols: usize,
    },
    /// SwiGLU (2002.05202): `[rows, gate cols | up cols]` to `[rows, cols]`.
    SwiGlu {
        /// Elements of an output row.
        cols: usize,
    },
}

impl Activation {
    fn widths(self) -> (usize, usize) {
        match self {
            Self::Gelu { cols } => (cols, cols),
            Self::SwiGlu { cols } => (2 * cols, cols),
        }
    }
}

impl Layer for Activation {
    fn forward(&self, _: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let (inputs, cols) = self.widths();
        let rows = ctx.rows.tokens();
        check_len("activation", "input", x.len(), rows * inputs)?;
        let mut y = ctx.alloc(rows, cols)?;
        match self {
            Self::Gelu { .. } => ctx.ops.gelu(GeluKind::Tanh, y.slice_mut(), x.slice())?,
            Self::SwiGlu { .. } => {
                let all = MatRef::new(x.slice(), rows, inputs);
                let (gate, up) = (all.columns(0..cols)?, all.columns(cols..inputs)?);
                ctx.ops.swiglu(MatMut::new(y.slice_mut(), rows, cols), gate, up)?;
            }
        }
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
        let (inputs, cols) = self.widths();
        let rows = ctx.rows.tokens();
        check_len("activation", "output gradient", dy.len(), rows * cols)?;
        let mut dx = ctx.alloc(rows, inputs)?;
        match self {
            Self::Gelu { .. } => {
                ctx.ops.gelu_backward(GeluKind::Tanh, dx.slice_mut(), x.slice(), dy.slice())?;
            }
            Self::SwiGlu { .. } => {
                let all = MatRef::new(x.slice(), rows, inputs);
                let (gate, up) = (all.columns(0..cols)?, all.columns(cols..inputs)?);
                let d = GateUpMut::Fused(MatMut::new(dx.slice_mut(), rows, inputs));
                ctx.ops.swiglu_backward(d, gate, up, MatRef::new(dy.slice(), rows, cols))?;
            }
        }
        Ok((Act::new(dx), WeightWork::nothing()))
    }
}
