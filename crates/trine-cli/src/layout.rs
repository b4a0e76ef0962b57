//! Who decides the layout of a run: the configuration, or this machine.

use crate::args::TrainArgs;
use crate::failure::Failure;
use crate::machine::cores;
use crate::{machine, memory, output, signals};
use trine_trainer::config::{Config, LayoutBy, Loaded};
use trine_trainer::run::MachineSource;
use trine_trainer::{Choices, Fastest, Machine};

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
pub(crate) fn machine_of(args: &TrainArgs, config: &Config) -> Result<Machine, String> {
    let minutes = config.train.minutes_max;
    if args.machine.is_none() && 0.0 < minutes && minutes < MEASURED_MINUTES_MIN {
        return Err("the time limit is too short to measure the machine first; --machine FILE \
                    names one that was measured before"
            .to_owned());
    }
    let compute = config.train.precision.dtype();
    machine::find(args.machine.as_deref(), compute).map_err(|failure| failure.to_string())
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
        LayoutBy::Machine => {
            signals::ending_at_once(|| fastest(args, &config, ranks, !micro_is_given))
        }
    }
}

fn fastest(args: &TrainArgs, config: &Config, ranks: Option<usize>, micro: bool) -> Decided {
    let find = || {
        if args.machine.is_none() && !args.dry_run {
            output::complain("layout  measuring this machine; --machine FILE takes no time");
        }
        machine_of(args, config)
    };
    let choices = Choices { cores: cores(), ranks, micro, limits: &memory::limits() };
    let found = Fastest::find(config, choices, MachineSource(&find));
    let is_known = found.config.degrees() == config.degrees() || config.check().is_err();
    let other = match is_known {
        true => String::new(),
        false => format!("; --layout preset takes {}", config.degrees()),
    };
    let chosen = format!("chosen  {found}{other}");
    Decided { config: found.config, chosen: Some(chosen), machine: found.machine }
}
