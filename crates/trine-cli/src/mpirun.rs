//! mpirun as a child of this process, and whatever it leaves behind on this host.

use crate::args::LaunchArgs;
use crate::failure::Failure;
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often it is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// How long it has to end after it was told to.
const ENDS_WITHIN: Duration = Duration::from_millis(1000);

/// Shells and mpirun tell a signal of their child by this number and the signal's.
const SIGNALLED: i32 = 128;

/// A running one.
pub(crate) struct Mpirun {
    program: PathBuf,
    child: Child,
}

impl Mpirun {
    /// Starts `ranks` processes of this program, which train with the given arguments and variables.
    pub(crate) fn start(
        args: &LaunchArgs,
        ranks: usize,
        train: &[OsString],
        variables: &[(&str, String)],
    ) -> Result<Self, Failure> {
        let trine = std::env::current_exe().context("cannot find the path of this program")?;
        let mut command = Command::new(&args.mpirun);
        command.args(["-n", &ranks.to_string()]);
        if is_open_mpi(&args.mpirun) {
            // Threads of a rank must not share one core; ranks may outnumber cores; the environment
            // does not reach other hosts by itself.
            command.args(["--quiet", "--bind-to", "none", "--oversubscribe"]);
            command.args(variables.iter().flat_map(|(name, _)| ["-x", name]));
            if rustix::process::geteuid().is_root() {
                command.arg("--allow-run-as-root");
            }
        }
        command.args(&args.mpirun_arg).arg(trine).args(["train", "--backend", "mpi"]).args(train);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        // An interrupt from the terminal is for the supervisor, which asks the ranks to save.
        command.process_group(0);
        command.stdin(Stdio::null());
        let child = command.spawn().map_err(|error| {
            Failure::usage(format!(
                "cannot run {}: {error}; install an MPI library (Debian: openmpi-bin), or say where \
                 it is with --mpirun",
                args.mpirun.display()
            ))
        })?;
        Ok(Self { program: args.mpirun.clone(), child })
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.child.try_wait().context("cannot wait for mpirun")?)
    }

    /// Asks it to ask the ranks to finish their step, save and end. It may be asked again.
    pub(crate) fn ask_to_stop(&self) {
        self.signal(Signal::USR1);
    }

    /// How it ended, for people.
    pub(crate) fn how(&self, status: ExitStatus) -> String {
        let program = self.program.display();
        match (status.signal(), status.code()) {
            (Some(signal), _) => format!("{program} was killed by signal {signal}"),
            (None, Some(code)) if code > SIGNALLED => {
                let signal = code - SIGNALLED;
                format!("{program} ended with code {code}, that of signal {signal}")
            }
            (None, code) => format!("{program} ended with code {}", code.unwrap_or(0)),
        }
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may have ended in the meantime.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it and everything that it has left on this host. Other hosts' ranks end with their daemons,
    /// and by themselves when the side channel is gone.
    pub(crate) fn end_all(&mut self) -> Result<(), Failure> {
        if self.ended()?.is_none() {
            self.signal(Signal::TERM);
            let told = Instant::now();
            while self.ended()?.is_none() && told.elapsed() < ENDS_WITHIN {
                std::thread::sleep(TICK);
            }
            if self.ended()?.is_none() {
                if let Some(pid) = self.pid() {
                    let _ = kill_process_group(pid, Signal::KILL);
                }
                self.child.wait().context("cannot wait for mpirun")?;
            }
        }
        orphans::end()
    }
}

fn is_open_mpi(mpirun: &Path) -> bool {
    let version = Command::new(mpirun).arg("--version").output();
    let says = version.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&says).contains("Open MPI")
}

/// What outlives mpirun becomes a child of this process, which can then end it.
#[cfg(target_os = "linux")]
pub(crate) mod orphans {
    use crate::failure::Failure;
    use anyhow::Context;
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
    use std::time::{Duration, Instant};

    /// How long it may take to end them.
    const END_WITHIN: Duration = Duration::from_secs(5);

    /// From now on they become this process's.
    pub(crate) fn adopt() -> Result<(), Failure> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("cannot become the parent of what mpirun leaves behind")?;
        Ok(())
    }

    /// Ends them, one generation after the other.
    pub(super) fn end() -> Result<(), Failure> {
        let began = Instant::now();
        while let Some(orphans) = Some(children()).filter(|all| !all.is_empty()) {
            for orphan in orphans {
                let _ = kill_process(orphan, Signal::KILL);
            }
            while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
            if began.elapsed() > END_WITHIN {
                return Err(Failure::Run(anyhow::anyhow!("some ranks could not be ended")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// This process's children, as Linux lists them.
    fn children() -> Vec<Pid> {
        let mut all = Vec::new();
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
            all.extend(pids.filter_map(Pid::from_raw));
        }
        all
    }
}

/// Systems without adoption: what outlives mpirun ends by itself when the side channel is gone.
#[cfg(not(target_os = "linux"))]
pub(crate) mod orphans {
    use crate::failure::Failure;

    pub(crate) fn adopt() -> Result<(), Failure> {
        Ok(())
    }

    pub(super) fn end() -> Result<(), Failure> {
        Ok(())
    }
}
