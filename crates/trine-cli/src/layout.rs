//! Who decides the layout of a run: the configuration, or this machine.

use crate::args::TrainArgs;
use crate::failure::Failure;
use crate::machine::cores;
use crate::{machine, memory, output, signals};
use trine_trainer::config::{Config, LayoutBy, Loaded};
use trine_trainer::run::{Devices, MachineSource};
use trine_trainer::{Choices, Fastest, Machine, OwnGpus};
use trine_trainer_gpu::{GpuRanks, Libraries};

/// A configuration with its layout.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) config: Config,
    /// Why it has this layout, if the machine decided; and the machine, if it was measured for that.
    pub(crate) chosen: Option<String>,
    pub(crate) machine: Option<Machine>,
}

/// The machine is not measured at the start of runs with less time.
const MEASURED_MINUTES_MIN: f64 = 1.0;

/// The machine that a run is planned for, or why it is not known.
pub(crate) fn machine_of(
    args: &TrainArgs,
    config: &Config,
    gpus: Option<(&dyn Devices, usize)>,
) -> Result<Machine, String> {
    let minutes = config.train.minutes_max;
    if args.machine.is_none() && 0.0 < minutes && minutes < MEASURED_MINUTES_MIN {
        return Err("the time limit is too short to measure the machine first; --machine FILE \
                    names one that was measured before"
            .to_owned());
    }
    let compute = config.train.precision.dtype();
    machine::find(args.machine.as_deref(), compute, gpus).map_err(|failure| failure.to_string())
}

/// The layout of `trine train` on processors, for so many ranks if their number is given.
pub(crate) fn decide(
    args: &TrainArgs,
    loaded: Loaded,
    ranks: Option<usize>,
) -> Result<Decided, Failure> {
    let Loaded { config, layout_by, micro_is_given, .. } = loaded;
    match layout_by {
        LayoutBy::Configuration => Ok(Decided { config, chosen: None, machine: None }),
        LayoutBy::Machine => signals::ending_at_once(|| {
            let limits = memory::limits();
            let micro = !micro_is_given;
            let choices = Choices { cores: cores(), ranks, micro, limits: &limits, gpus: None };
            fastest(args, &config, choices, None)
        }),
    }
}

/// The layout of `trine train` on GPUs, where the machine decides: ranks have a GPU each.
pub(crate) fn decide_on_gpus(
    args: &TrainArgs,
    loaded: Loaded,
    libraries: &Libraries,
) -> Result<Decided, Failure> {
    let Loaded { config, micro_is_given, .. } = loaded;
    signals::ending_at_once(|| {
        let gpus = GpuRanks::new(libraries.clone(), libraries.count());
        let gpus = gpus.map_err(|error| Failure::usage(error.to_string()))?;
        let free = (0..libraries.count()).map(|gpu| gpus.free_bytes(gpu));
        let free: Vec<u64> =
            free.collect::<Result<_, _>>().map_err(|error| Failure::Run(error.into()))?;
        let free_bytes = free.into_iter().min().unwrap_or(0).saturating_sub(gpus.beside_bytes());
        let own = Some(OwnGpus { count: libraries.count(), free_bytes });
        let (cores, micro) = (cores(), !micro_is_given);
        let choices = Choices { cores, ranks: None, micro, limits: &[], gpus: own };
        Ok(fastest(args, &config, choices, Some((&gpus, libraries.count()))))
    })?
}

fn fastest(
    args: &TrainArgs,
    config: &Config,
    choices: Choices<'_>,
    gpus: Option<(&dyn Devices, usize)>,
) -> Decided {
    let find = || {
        if args.machine.is_none() && !args.dry_run {
            output::complain("layout  measuring this machine; --machine FILE takes no time");
        }
        machine_of(args, config, gpus)
    };
    let found = Fastest::find(config, choices, MachineSource(&find));
    let is_known = found.config.degrees() == config.degrees() || config.check().is_err();
    let other = match is_known {
        true => String::new(),
        false => format!("; --layout preset takes {}", config.degrees()),
    };
    let chosen = format!("chosen  {found}{other}");
    Decided { config: found.config, chosen: Some(chosen), machine: found.machine }
}
