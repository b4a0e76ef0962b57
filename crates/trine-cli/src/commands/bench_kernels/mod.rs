//! `trine bench kernels`: each kernel by itself, beside what the machine can do at best.

mod calls;
mod cases;

use crate::args::BenchKernelsArgs;
use crate::failure::Failure;
use crate::machine::cores;
use crate::output;
use crate::output::{Align, Table, counted};
use calls::{Bench, Work};
use cases::Case;
use serde_json::{Value, json};
use std::time::Duration;
use trine_buffer::DType;
use trine_kernels::{CpuOps, Isa, KernelError, Team, Times, ceiling};

/// Threads of a team at most.
const THREADS_MAX: usize = 4096;
/// Milliseconds for a kernel at most.
const MILLISECONDS_MAX: u64 = 60_000;

/// Bytes of the arrays that show the rate of memory: several times a last cache.
const MEMORY_BYTES: usize = 256 << 20;
/// Bytes of the arrays that show the rate of the caches: about those of an activation.
const CACHE_BYTES: usize = 8 << 20;

/// Runs the command.
pub(crate) fn run(args: &BenchKernelsArgs) -> Result<(), Failure> {
    let plan = Plan::new(args)?;
    let ops = CpuOps::with_isa(Team::new(plan.threads), plan.isa).map_err(failed)?;
    let show = |text: &str| if args.json { Ok(()) } else { output::print(text) };
    show(&plan.heading(&ops))?;
    let before = Ceilings::measure(&ops, &plan.dtypes).map_err(failed)?;
    show(&format!("{}\n{}", Ceilings::table(&[("at the start", &before)]), Row::heading()))?;
    let mut rows = Vec::new();
    for &dtype in &plan.dtypes {
        for case in &plan.cases {
            let row = Row::measure(&ops, dtype, case, plan.budget, &before).map_err(failed)?;
            show(&row.line())?;
            rows.push(row);
        }
    }
    let after = Ceilings::measure(&ops, &plan.dtypes).map_err(failed)?;
    show(&format!("\n{}", Ceilings::table(&[("at the start", &before), ("at the end", &after)])))?;
    if args.json {
        output::print(&as_json(&ops, &plan, [&before, &after], &rows))?;
    }
    Ok(())
}

fn failed(error: KernelError) -> Failure {
    Failure::Run(error.into())
}

/// The arguments, checked.
struct Plan {
    threads: usize,
    isa: Isa,
    dtypes: Vec<DType>,
    budget: Duration,
    cases: Vec<Case>,
}

impl Plan {
    fn new(args: &BenchKernelsArgs) -> Result<Self, Failure> {
        let threads = args.threads.unwrap_or_else(cores);
        within("--threads", threads as u64, THREADS_MAX as u64)?;
        within("--milliseconds", args.milliseconds, MILLISECONDS_MAX)?;
        let best = Isa::detect();
        let isa = args.isa.as_deref().map_or(Ok(best), |name| isa(name, best))?;
        let dtypes = precision(&args.precision)?;
        let budget = Duration::from_millis(args.milliseconds);
        Ok(Self { threads, isa, dtypes, budget, cases: wanted(&args.filter)? })
    }

    fn heading(&self, ops: &CpuOps) -> String {
        let build = if cfg!(debug_assertions) {
            "A debug build: far from what kernels can do.\n"
        } else {
            ""
        };
        format!(
            "{build}{}, {}, {} ms a kernel. Rates and shares are those of the best call; a share is of\n\
             multiply-adds in registers or of copying in memory, at the start. What fits into a cache or is\n\
             updated in place may be faster than copying.\n\n",
            ops.isa().name(),
            counted(ops.threads(), "thread"),
            self.budget.as_millis(),
        )
    }
}

/// Checks that a number is 1 to `max`.
fn within(option: &str, number: u64, max: u64) -> Result<(), Failure> {
    if (1..=max).contains(&number) {
        return Ok(());
    }
    let nearest = number.clamp(1, max);
    let message = format!("{option} {number}: must be 1 to {max}; nearest valid: {nearest}");
    Err(Failure::usage(message))
}

/// The instruction set of this name, if it is not beyond the best of the processor.
pub(super) fn isa(name: &str, best: Isa) -> Result<Isa, Failure> {
    let valid: Vec<_> = Isa::ALL.into_iter().filter(|isa| isa.is_within(best)).collect();
    if let Some(isa) = valid.iter().find(|isa| isa.name() == name) {
        return Ok(*isa);
    }
    let names: Vec<_> = valid.into_iter().map(Isa::name).collect();
    // What a processor lacks comes nearest to the best that it has.
    let lacks = Isa::ALL.iter().any(|isa| isa.name() == name);
    let what = if lacks { "this processor lacks it" } else { "no such instruction set" };
    let nearest = if lacks { best.name() } else { nearest(name, &names) };
    let names = names.join(", ");
    let message = format!("--isa {name}: {what}; it has {names}; nearest valid: {nearest}");
    Err(Failure::usage(message))
}

/// The types of this name.
fn precision(name: &str) -> Result<Vec<DType>, Failure> {
    let all = [DType::Bf16, DType::F32, DType::F64];
    let chosen: Vec<_> =
        all.into_iter().filter(|dtype| name == "all" || dtype.to_string() == name).collect();
    if chosen.is_empty() {
        let nearest = nearest(name, &["bf16", "f32", "f64", "all"]);
        return Err(Failure::usage(format!(
            "--precision {name}: must be bf16, f32, f64 or all; nearest valid: {nearest}"
        )));
    }
    Ok(chosen)
}

/// The rows that the filters choose, each of which must choose some.
fn wanted(filters: &[String]) -> Result<Vec<Case>, Failure> {
    let mut cases = cases::all();
    for filter in filters {
        if cases.iter().any(|case| case.is_wanted(std::slice::from_ref(filter))) {
            continue;
        }
        let names: Vec<_> = cases.iter().map(Case::kernel).collect();
        let nearest = nearest(filter, &names);
        let message = format!("--filter {filter}: no row contains it; nearest valid: {nearest}");
        return Err(Failure::usage(message));
    }
    cases.retain(|case| case.is_wanted(filters));
    Ok(cases)
}

/// The name that begins most like `typed`; the first of several.
fn nearest<'a>(typed: &str, names: &[&'a str]) -> &'a str {
    let alike = |name: &str| name.chars().zip(typed.chars()).take_while(|(a, b)| a == b).count();
    let mut best = names[0];
    for name in names {
        if alike(name) > alike(best) {
            best = name;
        }
    }
    best
}

/// What the machine can do at best.
struct Ceilings {
    /// GFLOP/s by type.
    multiply_adds: Vec<(DType, f64)>,
    /// GB/s of memory.
    copy: f64,
    triad: f64,
    /// GB/s of the caches.
    cached: f64,
}

impl Ceilings {
    fn measure(ops: &CpuOps, dtypes: &[DType]) -> Result<Self, KernelError> {
        let (team, isa) = (ops.team(), ops.isa());
        let rate = |&dtype| Ok((dtype, ceiling::multiply_add_gflop_per_s(team, isa, dtype)?));
        Ok(Self {
            multiply_adds: dtypes.iter().map(rate).collect::<Result<_, KernelError>>()?,
            copy: ceiling::copy_gb_per_s(team, isa, MEMORY_BYTES)?,
            triad: ceiling::triad_gb_per_s(team, isa, MEMORY_BYTES)?,
            cached: ceiling::copy_gb_per_s(team, isa, CACHE_BYTES)?,
        })
    }

    /// Name, rate and unit of each.
    fn list(&self) -> Vec<(String, f64, &'static str)> {
        let flops = |&(dtype, rate)| (format!("multiply-adds {dtype}"), rate, "GFLOP/s");
        let mut list: Vec<_> = self.multiply_adds.iter().map(flops).collect();
        for (name, bytes, rate) in [
            ("copy", MEMORY_BYTES, self.copy),
            ("triad", MEMORY_BYTES, self.triad),
            ("copy", CACHE_BYTES, self.cached),
        ] {
            let name = format!("{name} {}", output::human_bytes(bytes as u64));
            list.push((name, rate, "GB/s"));
        }
        list
    }

    /// One column for each time they were measured, two at most.
    fn table(columns: &[(&str, &Self)]) -> String {
        let head = |column: usize| columns.get(column).map_or("", |(name, _)| *name);
        let mut table = Table::new(&[
            ("ceiling", Align::Left),
            (head(0), Align::Right),
            (head(1), Align::Right),
            ("", Align::Left),
        ]);
        let lists: Vec<_> = columns.iter().map(|(_, ceilings)| ceilings.list()).collect();
        for (index, (name, _, unit)) in lists[0].iter().enumerate() {
            let rate =
                |column: usize| lists.get(column).map_or_else(String::new, |l| digits(l[index].1));
            table.row([name.clone(), rate(0), rate(1), (*unit).to_owned()]);
        }
        table.render()
    }

    fn as_json(&self) -> Value {
        let flops = |(dtype, rate): &(DType, f64)| (dtype.to_string(), json!(rate));
        json!({
            "multiply_adds_gflop_per_s": self.multiply_adds.iter().map(flops).collect::<serde_json::Map<_, _>>(),
            "copy_gb_per_s": self.copy,
            "triad_gb_per_s": self.triad,
            "cached_copy_gb_per_s": self.cached,
        })
    }
}

/// A rate, with a decimal where it is small.
fn digits(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

/// One kernel, measured.
struct Row {
    kernel: &'static str,
    shape: String,
    dtype: DType,
    times: Times,
    /// GFLOP/s or GB/s, by what bounds the kernel.
    rate: Work,
    /// Per cent of the ceiling.
    share: f64,
}

impl Row {
    fn measure(
        ops: &CpuOps,
        dtype: DType,
        case: &Case,
        budget: Duration,
        ceilings: &Ceilings,
    ) -> Result<Self, KernelError> {
        let mut prepared = case.prepare(Bench { ops, dtype })?;
        let times = Times::of(budget, 1, &mut prepared.call)?;
        let per_s = |work: f64| work / times.best.as_secs_f64() / 1e9;
        let flops = ceilings.multiply_adds.iter().find(|(of, _)| *of == dtype);
        let (rate, share) = match prepared.work {
            Work::Flops(work) => {
                let rate = per_s(work);
                (Work::Flops(rate), flops.map_or(f64::NAN, |(_, most)| rate / most))
            }
            Work::Bytes(work) => (Work::Bytes(per_s(work)), per_s(work) / ceilings.copy),
        };
        let (kernel, shape) = (case.kernel(), case.shape());
        Ok(Self { kernel, shape, dtype, times, rate, share: 100.0 * share })
    }

    /// The heads of the columns of `line`.
    fn heading() -> String {
        columns([
            "kernel",
            "shape",
            "type",
            "calls",
            "median ms",
            "best ms",
            "GFLOP/s",
            "GB/s",
            "share",
        ])
    }

    fn line(&self) -> String {
        let ms = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        let (flops, bytes) = match self.rate {
            Work::Flops(rate) => (digits(rate), String::new()),
            Work::Bytes(rate) => (String::new(), digits(rate)),
        };
        columns([
            self.kernel,
            &self.shape,
            &self.dtype.to_string(),
            &self.times.calls.to_string(),
            &ms(self.times.median),
            &ms(self.times.best),
            &flops,
            &bytes,
            &format!("{:.0} %", self.share),
        ])
    }

    fn as_json(&self) -> Value {
        let mut object = json!({
            "kernel": self.kernel,
            "shape": self.shape,
            "precision": self.dtype.to_string(),
            "calls": self.times.calls,
            "median_ms": self.times.median.as_secs_f64() * 1e3,
            "best_ms": self.times.best.as_secs_f64() * 1e3,
            "percent_of_ceiling": self.share,
        });
        let (unit, rate) = match self.rate {
            Work::Flops(rate) => ("gflop_per_s", rate),
            Work::Bytes(rate) => ("gb_per_s", rate),
        };
        object[unit] = json!(rate);
        object
    }
}

/// A line of the report. Widths are fixed: rows appear as they are measured.
fn columns(cells: [&str; 9]) -> String {
    let [kernel, shape, dtype, calls, median, best, flops, bytes, share] = cells;
    let line = format!(
        "{kernel:<19}  {shape:<27}  {dtype:<4}  {calls:>6}  {median:>9}  {best:>9}  {flops:>7}  {bytes:>6}  {share:>6}"
    );
    format!("{}\n", line.trim_end())
}

fn as_json(ops: &CpuOps, plan: &Plan, ceilings: [&Ceilings; 2], rows: &[Row]) -> String {
    let object = json!({
        "isa": ops.isa().name(),
        "threads": ops.threads(),
        "milliseconds": plan.budget.as_millis() as u64,
        "ceilings_at_the_start": ceilings[0].as_json(),
        "ceilings_at_the_end": ceilings[1].as_json(),
        "rows": rows.iter().map(Row::as_json).collect::<Vec<_>>(),
    });
    format!("{object}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T>(result: Result<T, Failure>) -> String {
        match result {
            Err(Failure::Usage(error)) => error.to_string(),
            Err(error) => panic!("not usage: {error}"),
            Ok(_) => panic!("accepted"),
        }
    }

    #[test]
    fn instruction_sets_are_checked_against_the_processor() {
        assert_eq!(isa("avx2", Isa::Avx512).ok(), Some(Isa::Avx2));
        assert_eq!(isa("portable", Isa::Portable).ok(), Some(Isa::Portable));
        let lacking = message(isa("amx", Isa::Avx2));
        assert_eq!(
            lacking,
            "--isa amx: this processor lacks it; it has portable, avx2; nearest valid: avx2"
        );
        let other = message(isa("neon", Isa::Avx2));
        assert!(other.contains("this processor lacks it; it has portable, avx2;"), "{other}");
        let unknown = message(isa("avx513", Isa::Amx));
        assert!(unknown.contains("no such instruction set"), "{unknown}");
        assert!(unknown.ends_with("nearest valid: avx512"), "{unknown}");
    }

    #[test]
    fn numbers_and_names_have_a_nearest_valid_value() {
        let cases = [
            (message(within("--threads", 0, 8)), "--threads 0: must be 1 to 8; nearest valid: 1"),
            (message(within("--threads", 9, 8)), "--threads 9: must be 1 to 8; nearest valid: 8"),
            (
                message(precision("f16")),
                "--precision f16: must be bf16, f32, f64 or all; nearest valid: f32",
            ),
            (
                message(wanted(&["matmul".into(), "attentoin".into()])),
                "--filter attentoin: no row contains it; nearest valid: attention",
            ),
        ];
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
        assert!(within("--threads", 8, 8).is_ok());
        assert_eq!(precision("all").ok().map(|all| all.len()), Some(3));
    }

    #[test]
    fn every_column_fits() {
        let heading = Row::heading();
        let width = |text: &str| text.trim_end_matches('\n').chars().count();
        let mut rows = 0;
        for case in cases::all() {
            let times = Times {
                calls: 100_000,
                best: Duration::from_millis(60_000),
                median: Duration::from_millis(60_000),
            };
            let (kernel, shape) = (case.kernel(), case.shape());
            let rate = Work::Flops(123_456.0);
            let row = Row { kernel, shape, dtype: DType::Bf16, times, rate, share: 100.0 };
            assert_eq!(width(&row.line()), width(&heading), "{}", row.line());
            rows += 1;
        }
        assert!(rows > 50);
    }
}
