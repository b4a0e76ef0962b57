//! `trine doctor`: what this machine has, what each lack costs, and whether its numbers are right.

mod gpus;

use crate::args::DoctorArgs;
use crate::failure::Failure;
use crate::machine::cores;
use crate::memory;
use crate::output::{self, Align, Table};
use std::borrow::Cow;
use std::ffi::OsString;
use std::process::{Command, Stdio};
use trine_buffer::DType;
use trine_kernels::{CpuOps, Isa, Team};
use trine_nn::Numerics;
use trine_nn::oracle::{self, Agreement, Sizes};
use trine_trainer::parity::{self, LayoutCheck};

/// The types that kernels are checked in, and how far a result may be from candle's in f64 on the same numbers,
/// relative to the largest: a few roundings. A wrong number is off by its own size.
const BOUNDS: [(DType, f64); 3] = [(DType::F64, 1e-12), (DType::F32, 1e-4), (DType::Bf16, 0.05)];

/// Wide enough for whole vectors and tiles, with a rest that fills none: heads of 68 features, 102 to 204 in a layer.
const SIZES: Sizes = Sizes { seq: 37, wide: 17 };

/// Runs the command.
pub(crate) fn run(
    args: &DoctorArgs,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<(), Failure> {
    let search = crate::gpus::search(&args.gpu_libraries, env)?;
    output::print(&inventory("this machine", items()))?;
    output::print(&format!("\n{}", gpus::report(&search)))?;
    if args.quick {
        return Ok(());
    }
    let ops = CpuOps::new(Team::new(cores()));
    let run = |error: trine_nn::NnError| Failure::Run(error.into());
    let kernels = BOUNDS.map(|(dtype, _)| oracle::agreement(&ops, dtype, SIZES).map_err(run));
    let [f64s, f32s, bf16s] = kernels;
    let (kernels, mut wrong) = kernel_table(&[f64s?, f32s?, bf16s?]);
    output::print(&format!(
        "\nEvery kernel, forward and backward, against candle's autograd in f64\n\n{kernels}"
    ))?;
    let layouts = parity::check().map_err(|error| Failure::Run(error.into()))?;
    let (layouts, of_layouts) = layout_table(&layouts);
    let degrees = parity::LAYOUT;
    output::print(&format!(
        "\nGradients of a tiny model in {degrees} against the serial run\n\n{layouts}"
    ))?;
    wrong.extend(of_layouts);
    if wrong.is_empty() {
        return output::print("\nAll numbers are right.\n");
    }
    let list = wrong.join("\n  ");
    Err(Failure::Run(anyhow::anyhow!("this machine computes wrong numbers:\n  {list}")))
}

/// One thing that a machine has or lacks.
struct Item {
    name: Cow<'static, str>,
    /// `None` if it is missing.
    found: Option<String>,
    /// What its lack, or what is found, costs.
    cost: &'static str,
}

impl Item {
    /// What costs something only where it is missing.
    fn if_missing(
        name: impl Into<Cow<'static, str>>,
        found: Option<String>,
        cost: &'static str,
    ) -> Self {
        let cost = if found.is_some() { "" } else { cost };
        Self { name: name.into(), found, cost }
    }
}

fn inventory(of: &str, items: Vec<Item>) -> String {
    let mut table =
        Table::new(&[(of, Align::Left), ("has", Align::Left), ("what that costs", Align::Left)]);
    for Item { name, found, cost } in items {
        table.row([name.into_owned(), found.unwrap_or_else(|| "missing".into()), cost.into()]);
    }
    table.render()
}

fn items() -> Vec<Item> {
    let (cores, isa) = (cores(), Isa::detect());
    let alone =
        if cores == 1 { "ranks take turns: layouts are for learning, not for speed" } else { "" };
    vec![
        Item { name: "cores".into(), found: Some(cores.to_string()), cost: alone },
        Item { name: "instruction set".into(), found: Some(isa.name().into()), cost: cost_of(isa) },
        Item::if_missing(
            "memory",
            memory::total_bytes().map(output::human_bytes),
            "a run that needs too much is not refused beforehand",
        ),
        Item::if_missing(
            "memory that may be used",
            narrowest(),
            "a run that needs too much is not refused beforehand",
        ),
        Item::if_missing(
            "free disk in this folder",
            free_bytes().map(output::human_bytes),
            "whether a checkpoint fits is not known beforehand",
        ),
        mpi(),
        Item::if_missing(
            "Rust compiler",
            version("rustc"),
            "the binary cannot be built again here",
        ),
        Item::if_missing(
            "C compiler",
            version("cc"),
            "crates with C code, such as MPI's, cannot be built",
        ),
    ]
}

/// What is slower with this instruction set than with the richest.
fn cost_of(isa: Isa) -> &'static str {
    match isa {
        Isa::Portable => "no kernels of its own: several times slower than AVX2",
        Isa::Neon => "bf16 is computed as f32",
        Isa::Avx2 => "half the width of AVX-512; bf16 is computed as f32",
        Isa::Avx512 => "bf16 is computed as f32",
        Isa::Avx512Bf16 => "no matrix tiles: products are several times slower than with AMX",
        Isa::Amx => "",
    }
}

fn mpi() -> Item {
    let found = version("mpirun");
    let cost = match (&found, cfg!(feature = "mpi")) {
        (Some(_), true) => "",
        (Some(_), false) => "this binary is built without it: build with --features mpi",
        (None, _) => "ranks are threads of one process on this host",
    };
    Item { name: "MPI".into(), found, cost }
}

/// The first line that a program says of its version; `None` if it cannot be run.
fn version(program: &str) -> Option<String> {
    let mut command = Command::new(program);
    let output =
        command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.lines().next().unwrap_or(program).to_owned())
}

/// The least that a limit leaves: of the machine, the control group or the process.
fn narrowest() -> Option<String> {
    let limit = memory::limits().into_iter().min_by_key(|limit| limit.bytes)?;
    Some(format!("{} ({})", output::human_bytes(limit.bytes), limit.by))
}

fn free_bytes() -> Option<u64> {
    let stat = rustix::fs::statvfs(".").ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Rows of kernels, a column a type of [`BOUNDS`]; and what is wrong.
fn kernel_table(types: &[Vec<Agreement>; 3]) -> (String, Vec<String>) {
    let [(f64s, _), (f32s, _), (bf16s, _)] = BOUNDS;
    let columns = [f64s, f32s, bf16s].map(|dtype| dtype.to_string());
    let mut table = Table::new(&[
        ("largest error", Align::Left),
        (&columns[0], Align::Right),
        (&columns[1], Align::Right),
        (&columns[2], Align::Right),
    ]);
    let mut wrong = Vec::new();
    for row in 0..types[0].len() {
        let name = types[0][row].name;
        let mut cells = vec![name.to_owned()];
        for (found, (dtype, bound)) in types.iter().zip(BOUNDS) {
            let error = found[row].error_max();
            cells.push(format!("{error:.1e}"));
            if !within(error, bound) {
                wrong.push(format!("{name} in {dtype} is off by {error:.1e}, allowed {bound:.0e}"));
            }
        }
        table.row(std::array::from_fn(|column| std::mem::take(&mut cells[column])));
    }
    let [of_f64, of_f32, of_bf16] = BOUNDS.map(|(_, bound)| format!("{bound:.0e}"));
    table.row(["allowed".into(), of_f64, of_f32, of_bf16]);
    (table.render(), wrong)
}

fn layout_table(checks: &[LayoutCheck]) -> (String, Vec<String>) {
    let mut table = Table::new(&[
        ("type", Align::Left),
        ("numerics", Align::Left),
        ("largest error", Align::Right),
        ("allowed", Align::Right),
        ("of", Align::Left),
    ]);
    let mut wrong = Vec::new();
    for LayoutCheck { compute, numerics, parameter, error, bound } in checks {
        let name = match numerics {
            Numerics::Fast => "fast",
            Numerics::Reference => "reference",
        };
        let (found, allowed) = (format!("{error:.1e}"), format!("{bound:.0e}"));
        table.row([compute.to_string(), name.into(), found, allowed, parameter.clone()]);
        if !within(*error, *bound) {
            wrong.push(format!(
                "the layout's gradient of {parameter} in {compute}, {name} numerics, is off by {error:.1e}, allowed {bound:.0e}"
            ));
        }
    }
    (table.render(), wrong)
}

/// False also for what is not a number.
fn within(error: f64, bound: f64) -> bool {
    error <= bound
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreement(output: f64) -> Vec<Agreement> {
        vec![Agreement { name: "gelu", output, input_gradient: 0.0, parameter_gradients: 0.0 }]
    }

    #[test]
    fn a_wrong_kernel_is_named_with_its_type_and_bound() {
        let (text, wrong) = kernel_table(&[agreement(1e-15), agreement(1e-6), agreement(1e-3)]);
        assert!(text.contains("gelu") && text.contains("1.0e-15") && wrong.is_empty(), "{text}");
        let (_, wrong) = kernel_table(&[agreement(1e-15), agreement(0.2), agreement(f64::NAN)]);
        let expected = [
            "gelu in f32 is off by 2.0e-1, allowed 1e-4",
            "gelu in bf16 is off by NaN, allowed 5e-2",
        ];
        assert_eq!(wrong, expected);
    }

    #[test]
    fn a_layout_in_reference_numerics_must_have_the_bits() {
        let check = |error| LayoutCheck {
            compute: DType::F32,
            numerics: Numerics::Reference,
            parameter: "head.norm".into(),
            error,
            bound: 0.0,
        };
        assert!(layout_table(&[check(0.0)]).1.is_empty());
        let (_, wrong) = layout_table(&[check(1e-12)]);
        assert!(wrong.len() == 1 && wrong[0].contains("head.norm in f32, reference"), "{wrong:?}");
    }

    #[test]
    fn what_is_missing_has_a_cost() {
        for Item { name, found, cost } in items() {
            assert!(found.is_some() || !cost.is_empty(), "{name}");
        }
    }
}
