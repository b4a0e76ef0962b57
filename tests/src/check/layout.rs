//! Eight ranks on one GPU against the serial run.

use super::{Machine, Options, Outcome, shortened, text};
use crate::compare::{Finding, different_bits, findings};
use crate::gpu::{eight_ranks, exact, small};
use crate::{Mutation, Outcome as Step, step};
use trine_buffer::DType;
use trine_nn::Numerics;
use trine_testkit::toy;
use trine_trainer::engine::EngineConfig;

pub(super) fn run(options: &Options) -> Result<Outcome, String> {
    let mut layouts = eight_ranks();
    if options.simulated {
        layouts.truncate(1);
    }
    let (mut wrong, count) = (Vec::new(), layouts.len());
    let base = small(toy::gpt(), DType::F32);
    let reference = EngineConfig { numerics: Numerics::Reference, ..base.clone() };
    let one = on_one_gpu(options, &reference)?;
    for layout in layouts {
        let named = |found: Finding| format!("{layout:?}: {found}");
        let config = layout.apply(&base);
        let (exact, bound) = exact(&config)?;
        let got = on_one_gpu(options, &config);
        wrong.extend(findings(&got, &exact, bound).into_iter().map(named));
        let got = on_one_gpu(options, &layout.apply(&reference));
        wrong.extend(different_bits(&got, &one).into_iter().map(named));
    }
    if !wrong.is_empty() {
        return Err(shortened(&wrong));
    }
    let near = "within the bound of the serial run on the CPU";
    let equal = "and in reference numerics equal to one rank on the GPU, to the bit";
    Ok(Outcome::Passed(format!("{count} layouts of 8 ranks on one GPU: {near}, {equal}")))
}

fn on_one_gpu(options: &Options, config: &EngineConfig) -> Result<Step, String> {
    let machine: Machine = options.sharing(config.degrees.world())?;
    let outcome = step(config, &Mutation { devices: Some(&machine.ranks), ..Mutation::NONE });
    machine.found().map_err(text)?;
    outcome
}
