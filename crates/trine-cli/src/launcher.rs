//! Who has started this process as one of several, from the variables that launchers set.

use crate::failure::Failure;

/// A launcher's variables: rank and size where it tells them.
#[derive(Debug, Clone, Copy)]
struct Variables {
    launcher: &'static str,
    rank: &'static str,
    size: Option<&'static str>,
}

/// Launchers of MPI programs, the innermost first: what Open MPI's mpirun sets it sets itself, while
/// Slurm's variables are inherited by whatever runs inside a step.
const MPI: &[Variables] = &[
    Variables {
        launcher: "mpirun of Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        size: Some("OMPI_COMM_WORLD_SIZE"),
    },
    Variables { launcher: "a launcher with PMI", rank: "PMI_RANK", size: Some("PMI_SIZE") },
    Variables { launcher: "a launcher with PMIx", rank: "PMIX_RANK", size: None },
    Variables { launcher: "srun", rank: "SLURM_PROCID", size: Some("SLURM_STEP_NUM_TASKS") },
];

/// What torchrun sets.
const TORCHRUN: [&str; 4] = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"];

/// A process that is one of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launched {
    pub(crate) rank: usize,
    pub(crate) size: Option<usize>,
    /// What says so: the launcher and its variables.
    pub(crate) by: String,
}

/// What ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Threads,
    Mpi,
}

/// A look at the environment.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Finds out whether a launcher has started this process, and which rank it is.
pub(crate) fn find(env: Env<'_>) -> Result<Option<Launched>, Failure> {
    let mut found: Vec<Launched> = Vec::new();
    for variables in MPI {
        // sbatch sets a rank for the script itself; only a step has a number of tasks.
        let is_slurm = variables.launcher == "srun";
        if is_slurm && (env("SLURM_STEP_NUM_TASKS").is_none() || are_daemons(env, &found)) {
            continue;
        }
        if let Some(launched) = read(env, variables)? {
            found.push(launched);
        }
    }
    let Some(first) = found.first() else { return Ok(None) };
    let differs = |other: &&Launched| {
        other.rank != first.rank
            || other.size.zip(first.size).is_some_and(|(other, first)| other != first)
    };
    if let Some(other) = found.iter().find(differs) {
        return Err(Failure::usage(format!(
            "two launchers' variables are at odds: {}, but {}; unset those of the one that did \
             not start this process",
            first.by, other.by
        )));
    }
    Ok(Some(Launched { size: found.iter().find_map(|launched| launched.size), ..first.clone() }))
}

/// Whether Slurm's tasks are the daemons of another launcher, one a node: their rank is not ours.
fn are_daemons(env: Env<'_>, found: &[Launched]) -> bool {
    !found.is_empty() && env("SLURM_STEP_NUM_TASKS") == env("SLURM_STEP_NUM_NODES")
}

fn read(env: Env<'_>, variables: &Variables) -> Result<Option<Launched>, Failure> {
    let number = |name: &str| -> Result<Option<usize>, Failure> {
        let Some(text) = env(name) else { return Ok(None) };
        let number = text.trim().parse();
        number.map(Some).map_err(|_| {
            Failure::usage(format!("{name}={text:?} is not a number; only a launcher sets it"))
        })
    };
    let Some(rank) = number(variables.rank)? else { return Ok(None) };
    let size = variables.size.map(number).transpose()?.flatten();
    let said = size.zip(variables.size).map(|(size, name)| format!(", {name}={size}"));
    let by =
        format!("{} ({}={rank}{})", variables.launcher, variables.rank, said.unwrap_or_default());
    if size.is_some_and(|size| rank >= size) {
        return Err(Failure::usage(format!("{by}: the rank is not one of the ranks")));
    }
    Ok(Some(Launched { rank, size, by }))
}

/// Which backend is meant by `--backend` and the variables; `has_mpi`: whether this binary has it.
pub(crate) fn choose(
    asked: &str,
    launched: Option<&Launched>,
    env: Env<'_>,
    has_mpi: bool,
) -> Result<Backend, Failure> {
    let torchrun = TORCHRUN.iter().map(|name| Some(format!("{name}={}", env(name)?)));
    let torchrun: Option<Vec<String>> = torchrun.collect();
    let several = launched.filter(|launched| launched.size != Some(1));
    match (asked, several) {
        ("auto" | "mpi", _) if launched.is_none() && torchrun.is_some() => {
            Err(Failure::usage(format!(
                "started by torchrun ({}), but no backend can use its variables; start the run by \
                 mpirun or srun (--backend mpi), or as one process (--backend threads)",
                torchrun.unwrap_or_default().join(", ")
            )))
        }
        ("threads", Some(launched)) => Err(Failure::usage(format!(
            "--backend threads runs all ranks in one process, but this is one of several, by {}; \
             use --backend mpi, or start one process",
            launched.by
        ))),
        ("mpi", _) | ("auto", Some(_)) if !has_mpi => {
            let by = launched.map_or_else(String::new, |launched| format!(" ({})", launched.by));
            Err(Failure::usage(format!(
                "this binary cannot run ranks as processes{by}; build it with --features mpi, as \
                 `cargo xtask train --backend mpi` does"
            )))
        }
        ("mpi", _) | ("auto", Some(_)) => Ok(Backend::Mpi),
        ("auto" | "threads", _) => Ok(Backend::Threads),
        (other, _) => Err(Failure::usage(format!("--backend {other}: takes auto, threads or mpi"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            variables.iter().find(|(own, _)| *own == name).map(|(_, value)| value.to_string())
        }
    }

    fn found(variables: &[(&str, &str)]) -> Option<(usize, Option<usize>)> {
        find(&with(variables)).unwrap().map(|launched| (launched.rank, launched.size))
    }

    fn message(failure: Failure) -> String {
        match failure {
            Failure::Usage(error) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    const OMPI: [(&str, &str); 3] =
        [("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "8"), ("PMIX_RANK", "3")];
    const SRUN: [(&str, &str); 3] =
        [("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_STEP_NUM_NODES", "2")];

    #[test]
    fn every_launcher_is_known_by_its_variables() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&OMPI), Some((3, Some(8))));
        assert_eq!(found(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]), Some((0, Some(2))));
        assert_eq!(found(&SRUN), Some((5, Some(8))));
        // srun --mpi=pmix tells the rank by PMIx, and the number of ranks itself.
        assert_eq!(found(&[&SRUN[..], &[("PMIX_RANK", "5")]].concat()), Some((5, Some(8))));
        // The script of sbatch is no step.
        assert_eq!(found(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), None);
        // mpirun starts a daemon on each of two nodes by srun.
        let daemons =
            [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_STEP_NUM_NODES", "2")];
        assert_eq!(found(&[&OMPI[..], &daemons[..]].concat()), Some((3, Some(8))));
    }

    #[test]
    fn variables_at_odds_are_an_error_that_names_both() {
        let text = message(find(&with(&[&OMPI[..], &SRUN[..]].concat())).unwrap_err());
        assert!(
            text.contains("OMPI_COMM_WORLD_RANK=3") && text.contains("SLURM_PROCID=5"),
            "{text}"
        );
        let sizes = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("PMI_RANK", "1"),
            ("PMI_SIZE", "4"),
        ];
        let text = message(find(&with(&sizes)).unwrap_err());
        assert!(text.contains("SIZE=8") && text.contains("PMI_SIZE=4"), "{text}");
        let text = message(find(&with(&[("PMI_RANK", "x")])).unwrap_err());
        assert!(text.contains("PMI_RANK=\"x\" is not a number"), "{text}");
        let text = message(find(&with(&[("PMI_RANK", "2"), ("PMI_SIZE", "2")])).unwrap_err());
        assert!(text.contains("PMI_RANK=2, PMI_SIZE=2"), "{text}");
    }

    #[test]
    fn the_backend_follows_from_option_and_launcher() {
        let ompi = find(&with(&OMPI)).unwrap();
        let one = find(&with(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")])).unwrap();
        let nothing = with(&[]);
        let cases = [
            ("auto", None, Ok(Backend::Threads)),
            ("auto", one.as_ref(), Ok(Backend::Threads)),
            ("auto", ompi.as_ref(), Ok(Backend::Mpi)),
            ("mpi", None, Ok(Backend::Mpi)),
            ("mpi", ompi.as_ref(), Ok(Backend::Mpi)),
            ("threads", None, Ok(Backend::Threads)),
            ("threads", ompi.as_ref(), Err("OMPI_COMM_WORLD_SIZE=8")),
            ("nccl", None, Err("takes auto, threads or mpi")),
        ];
        for (asked, launched, wanted) in cases {
            match (choose(asked, launched, &nothing, true), wanted) {
                (Ok(got), Ok(wanted)) => assert_eq!(got, wanted, "{asked}"),
                (Err(error), Err(words)) => assert!(message(error).contains(words), "{asked}"),
                (got, wanted) => panic!("{asked}: {got:?} instead of {wanted:?}"),
            }
        }
        let without = message(choose("auto", ompi.as_ref(), &nothing, false).unwrap_err());
        assert!(without.contains("--features mpi") && without.contains("RANK=3"), "{without}");
    }

    #[test]
    fn torchruns_variables_are_refused_unless_threads_are_meant() {
        let env =
            with(&[("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "a")]);
        let text = message(choose("auto", None, &env, true).unwrap_err());
        assert!(text.contains("RANK=1, WORLD_SIZE=4") && text.contains("torchrun"), "{text}");
        assert_eq!(choose("threads", None, &env, true).unwrap(), Backend::Threads);
        let rank_only = with(&[("RANK", "1")]);
        assert_eq!(choose("auto", None, &rank_only, true).unwrap(), Backend::Threads);
    }
}
