//! `trine bench gradients`: the gradients of one step in two types, for a comparison.

use crate::args::BenchGradientsArgs;
use crate::failure::Failure;
use crate::machine::cores;
use crate::written::{Kind, Output};
use crate::{output, select};
use trine_buffer::DType;
use trine_spec::Dropouts;
use trine_trainer::bench::{STEP_FILE, gradients};
use trine_trainer::config::Config;

/// Runs the command.
pub(crate) fn run(args: &BenchGradientsArgs) -> Result<(), Failure> {
    let config = Config::load(&select::typed(&args.config)?)?;
    check(&config)?;
    let path = args.write.join(STEP_FILE);
    if path.exists() {
        Output { option: "--write", path: &path, kind: Kind::GradientStep }.check(&[])?;
    }
    let mut text = String::new();
    for step in gradients(&config, cores(), &args.write)? {
        let checkpoint = args.write.join(&step.checkpoint);
        let (compute, loss) = (step.compute, step.loss);
        text += &format!("{compute}: loss {loss:.6}, gradients in {}\n", checkpoint.display());
    }
    text += &format!("tokens and losses in {}\n", path.display());
    output::print(&text)
}

/// Refuses what nobody could compare.
fn check(config: &Config) -> Result<(), Failure> {
    if config.world() != 1 {
        return Err(Failure::usage(format!(
            "{}: gradients are written of one rank; nearest valid: --tp 1 --pp 1 --dp 1",
            config.degrees()
        )));
    }
    if config.train.precision.dtype() == DType::F64 {
        return Err(Failure::usage(
            "train.precision = f64: it is what the other types are compared with; nearest valid: f32",
        ));
    }
    if config.model.dropout != Dropouts::NONE {
        return Err(Failure::usage(format!(
            "model.dropout = {}: the masks are trine's own; nearest valid: 0",
            config.model.dropout
        )));
    }
    Ok(())
}
