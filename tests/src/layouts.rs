//! The layouts that are compared with the serial run.

use trine_mesh::Degrees;
use trine_schedule::ScheduleKind;
use trine_trainer::engine::{EngineConfig, ZeroStage};

/// One way to run a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Degrees: tensor, pipeline and data parallel ranks.
    pub degrees: Degrees,
    /// Order of work in the pipeline.
    pub schedule: ScheduleKind,
    /// Stages on each rank.
    pub virtual_stages: usize,
    /// What data-parallel ranks share out.
    pub zero: ZeroStage,
    /// Whether blocks are run again in backward.
    pub recompute: bool,
    /// Whether the residual stream is split by rows.
    pub sequence_parallel: bool,
}

impl Layout {
    /// The configuration of a serial run, run this way. Four stages on four ranks get three micro-batches, of
    /// several samples each.
    pub fn apply(&self, serial: &EngineConfig) -> EngineConfig {
        let each = serial.global_batch / self.degrees.dp;
        EngineConfig {
            degrees: self.degrees,
            micro_batch: if self.degrees.pp == 4 && self.virtual_stages == 1 {
                each / 3
            } else {
                serial.micro_batch
            },
            schedule: self.schedule.into(),
            virtual_stages: self.virtual_stages,
            zero: self.zero,
            recompute: self.recompute.into(),
            sequence_parallel: self.sequence_parallel,
            ..serial.clone()
        }
    }
}

/// All degrees in {1, 2, 4}³ with at most eight ranks.
pub fn degrees() -> Vec<Degrees> {
    let sizes = [1, 2, 4];
    let mut all = Vec::new();
    for tp in sizes {
        for pp in sizes {
            for dp in sizes {
                let degrees = Degrees { tp, pp, dp, ..Degrees::SERIAL };
                if degrees.world() <= 8 {
                    all.push(degrees);
                }
            }
        }
    }
    all
}

/// Every combination of degrees, schedule, ZeRO stage, recompute and sequence parallelism.
pub fn all() -> Vec<Layout> {
    let mut layouts = Vec::new();
    for degrees in degrees() {
        for schedule in [ScheduleKind::GPipe, ScheduleKind::OneFOneB] {
            for zero in [ZeroStage::Zero0, ZeroStage::Zero1] {
                for recompute in [false, true] {
                    for sequence_parallel in [false, true] {
                        let options = (schedule, zero, recompute, sequence_parallel);
                        let (schedule, zero, recompute, sequence_parallel) = options;
                        layouts.push(Layout {
                            degrees,
                            schedule,
                            virtual_stages: 1,
                            zero,
                            recompute,
                            sequence_parallel,
                        });
                    }
                }
            }
        }
    }
    layouts
}

/// Each degree and each option once or twice, for models of other kinds.
pub fn few() -> Vec<Layout> {
    [
        (1, 1, 1, ScheduleKind::OneFOneB, ZeroStage::Zero0, true, false),
        (2, 1, 1, ScheduleKind::GPipe, ZeroStage::Zero0, false, false),
        (2, 1, 2, ScheduleKind::OneFOneB, ZeroStage::Zero1, true, true),
        (4, 1, 1, ScheduleKind::OneFOneB, ZeroStage::Zero0, false, true),
        (4, 2, 1, ScheduleKind::OneFOneB, ZeroStage::Zero1, false, false),
        (1, 4, 2, ScheduleKind::ZbH1, ZeroStage::Zero1, true, false),
        (2, 2, 2, ScheduleKind::ZbH2, ZeroStage::Zero1, false, true),
    ]
    .map(|(tp, pp, dp, schedule, zero, recompute, sequence_parallel)| Layout {
        degrees: Degrees { tp, pp, dp, ..Degrees::SERIAL },
        schedule,
        virtual_stages: 1,
        zero,
        recompute,
        sequence_parallel,
    })
    .into()
}

/// Zero-bubble schedules, which keep B and W apart: every number of stages, with a choice of the rest.
pub fn zero_bubble() -> Vec<Layout> {
    let mut layouts = Vec::new();
    for schedule in [ScheduleKind::ZbH1, ScheduleKind::ZbH2] {
        for (tp, pp, dp, zero) in [
            (1, 2, 1, ZeroStage::Zero0),
            (1, 4, 1, ZeroStage::Zero0),
            (2, 2, 1, ZeroStage::Zero0),
            (1, 2, 2, ZeroStage::Zero1),
            (2, 2, 2, ZeroStage::Zero1),
        ] {
            layouts.push(Layout {
                degrees: Degrees { tp, pp, dp, ..Degrees::SERIAL },
                schedule,
                virtual_stages: 1,
                zero,
                recompute: dp == 2,
                sequence_parallel: tp == 2,
            });
        }
    }
    layouts
}

/// Schedules with several stages on a rank, in loops and as a V, with each way to hold states and activations: on one
/// rank, which then has both copies of a tied embedding, and on two. For at least five blocks.
pub fn several_stages() -> Vec<Layout> {
    let mut layouts = Vec::new();
    for (schedule, chunks) in [
        (ScheduleKind::Interleaved, [5, 2]),
        (ScheduleKind::BreadthFirst, [3, 2]),
        (ScheduleKind::ZbV, [2, 2]),
        (ScheduleKind::DualPipeV, [2, 2]),
    ] {
        for (tp, pp, dp, zero) in [
            (1, 1, 1, ZeroStage::Zero0),
            (1, 2, 1, ZeroStage::Zero0),
            (2, 2, 1, ZeroStage::Zero1),
            (1, 2, 2, ZeroStage::Zero1),
            (2, 2, 2, ZeroStage::Zero1),
        ] {
            layouts.push(Layout {
                degrees: Degrees { tp, pp, dp, ..Degrees::SERIAL },
                schedule,
                virtual_stages: chunks[pp - 1],
                zero,
                recompute: dp == 2,
                sequence_parallel: tp == 2,
            });
        }
    }
    layouts
}

/// The same on four ranks: for at least eight blocks.
pub fn several_stages_on_four_ranks() -> Vec<Layout> {
    let schedules = [
        ScheduleKind::Interleaved,
        ScheduleKind::BreadthFirst,
        ScheduleKind::ZbV,
        ScheduleKind::DualPipeV,
    ];
    let layout = |schedule| Layout {
        degrees: Degrees { pp: 4, ..Degrees::SERIAL },
        schedule,
        virtual_stages: 2,
        zero: ZeroStage::Zero0,
        recompute: false,
        sequence_parallel: false,
    };
    schedules.map(layout).to_vec()
}

/// Eight tensor-parallel ranks: alone with each way to hold the stream and to run blocks, then with stages or with
/// replicas.
pub fn eight_tensor_ranks() -> Vec<Layout> {
    let layout = |pp, dp, (recompute, sequence_parallel)| Layout {
        degrees: Degrees { tp: 8, pp, dp, ..Degrees::SERIAL },
        schedule: ScheduleKind::OneFOneB,
        virtual_stages: 1,
        zero: if dp == 1 { ZeroStage::Zero0 } else { ZeroStage::Zero1 },
        recompute,
        sequence_parallel,
    };
    let alone = [(false, false), (false, true), (true, true)];
    let mut layouts: Vec<Layout> = alone.map(|options| layout(1, 1, options)).to_vec();
    layouts.extend([layout(2, 1, (false, true)), layout(1, 2, (false, false))]);
    layouts
}

/// Each kind of schedule on ranks of each kind, with each way to hold states, activations and the stream: for at least
/// five blocks, whoever they are of.
pub fn own_pieces() -> Vec<Layout> {
    use ScheduleKind::{GPipe, Interleaved, OneFOneB, ZbH1, ZbV};
    use ZeroStage::{Zero0, Zero1};
    let layout = |((tp, pp, dp), (schedule, virtual_stages), zero, (again, split))| Layout {
        degrees: Degrees { tp, pp, dp, ..Degrees::SERIAL },
        schedule,
        virtual_stages,
        zero,
        recompute: again,
        sequence_parallel: split,
    };
    let layouts = [
        ((2, 1, 1), (OneFOneB, 1), Zero0, (false, false)),
        ((4, 1, 1), (OneFOneB, 1), Zero0, (true, true)),
        ((4, 1, 2), (GPipe, 1), Zero1, (true, false)),
        ((2, 1, 2), (GPipe, 1), Zero1, (false, true)),
        ((1, 2, 2), (GPipe, 1), Zero0, (true, false)),
        ((2, 2, 1), (OneFOneB, 1), Zero0, (false, true)),
        ((2, 2, 2), (OneFOneB, 1), Zero1, (true, false)),
        ((1, 4, 2), (OneFOneB, 1), Zero1, (false, false)),
        ((2, 4, 1), (GPipe, 1), Zero0, (true, true)),
        ((1, 2, 1), (Interleaved, 2), Zero0, (true, false)),
        ((2, 2, 2), (Interleaved, 2), Zero1, (false, true)),
        ((1, 2, 2), (ZbV, 2), Zero1, (false, false)),
        ((2, 2, 1), (ZbV, 2), Zero0, (true, true)),
        ((4, 2, 1), (ZbH1, 1), Zero0, (false, true)),
    ];
    layouts.map(layout).to_vec()
}

/// A fixed part of [`all`] in which every pair of choices (of degrees and an option, or of two
/// options) occurs: the combination that covers most pairs not yet seen is taken again and again.
pub fn pairwise() -> Vec<Layout> {
    let (all, mut chosen) = (all(), Vec::new());
    let mut missing: Vec<Pair> = Vec::new();
    for pair in all.iter().flat_map(pairs) {
        if !missing.contains(&pair) {
            missing.push(pair);
        }
    }
    while !missing.is_empty() {
        let gain = |layout: &&Layout| pairs(layout).iter().filter(|p| missing.contains(p)).count();
        // max_by_key would take the last of several best ones; any fixed choice will do.
        let best = *all.iter().max_by_key(gain).expect("invariant: there are layouts");
        missing.retain(|pair| !pairs(&best).contains(pair));
        chosen.push(best);
    }
    chosen
}

/// Two factors with their choices.
type Pair = ((usize, usize), (usize, usize));

fn pairs(layout: &Layout) -> Vec<Pair> {
    let at = degrees().iter().position(|degrees| *degrees == layout.degrees);
    let choices = [
        at.expect("invariant: listed degrees"),
        usize::from(layout.schedule == ScheduleKind::OneFOneB),
        usize::from(layout.zero == ZeroStage::Zero1),
        usize::from(layout.recompute),
        usize::from(layout.sequence_parallel),
    ];
    let mut pairs = Vec::new();
    for first in 0..choices.len() {
        for second in first + 1..choices.len() {
            pairs.push(((first, choices[first]), (second, choices[second])));
        }
    }
    pairs
}
