//! Every layer against finite differences, against candle's autograd, and against itself in other
//! orders; the stores.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

mod decode;
mod frozen;
mod gradients;
mod memory;
mod oracle;
mod recompute;
mod reference;
mod stores;
mod support;
mod written_in_candle;
