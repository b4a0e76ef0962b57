//! A rank's side channel: heartbeats out, the first cause of a failure in.

use crate::failure::Failure;
use crate::output;
use crate::supervised::{DIRECTORY, STEPPING, STORE, TOKEN, keep};
use crate::terminal::quoted_path;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use trine_comm::{Diagnosis, PostMortem};
use trine_rendezvous::{Client, RendezvousError, Stop, Store, StoreOptions, Token, Watch};
use trine_trainer::config::Config;
use trine_trainer::{Process, TrainError};

/// The code of a run that may be started again: `EX_TEMPFAIL`.
pub(crate) const TRY_AGAIN: u8 = 75;

/// How long a rank that is told to stop has to say its last.
const GRACE: Duration = Duration::from_secs(1);

/// How long a failure may take to the store of the rank that has seen it.
const CAUSE_WITHIN: Duration = Duration::from_secs(1);

/// How long the flight recorders of the others are waited for.
const RECORDS_WITHIN: Duration = Duration::from_secs(1);

/// A rank's side channel, open from the placement to the end.
pub(crate) struct Side {
    client: Client,
    watch: Watch,
    /// Of rank 0, where nobody outside of the run has one.
    store: Option<Store>,
    stopped: Arc<AtomicBool>,
    supervised: bool,
    /// Once it is known.
    directory: Arc<OnceLock<String>>,
    /// Whether this rank has said why the run has ended.
    explained: Arc<AtomicBool>,
    /// What goes on with the run where nobody supervises it, before its directory.
    start_again: String,
}

/// Where the supervisor listens, if there is one.
pub(crate) fn supervisor(
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<(SocketAddr, Token)>, TrainError> {
    let (Some(address), Some(token)) = (env(STORE), env(TOKEN)) else { return Ok(None) };
    let refused = |what: &str| {
        TrainError::Refused(format!(
            "{what}: only `trine launch` sets it; unset it to start without"
        ))
    };
    let address = address.parse().map_err(|_| refused(&format!("{STORE}={address}")))?;
    let token = token.parse().map_err(|_| refused(TOKEN))?;
    Ok(Some((address, token)))
}

impl Side {
    /// Opens it. A collective call.
    pub(crate) fn open(
        process: &Process,
        config: &Config,
        supervisor: Option<(SocketAddr, Token)>,
        interface: Option<IpAddr>,
        program: &str,
    ) -> Result<Self, TrainError> {
        let unwatched = |error: RendezvousError| TrainError::Unwatched(error.to_string());
        let is_first = process.world().rank() == 0;
        let supervised = supervisor.is_some();
        let mut store = None;
        let (address, token) = match supervisor {
            Some(known) => known,
            None => {
                let made = if is_first { Some(bind(process, config, interface)) } else { None };
                store = process.agree(made.transpose(), TrainError::is_usage)?;
                let said =
                    store.as_ref().map_or_else(String::new, |(store, token): &(Store, Token)| {
                        format!("{} {}", store.address(), token.reveal())
                    });
                let said = process.rank_0_says(&said)?;
                let parts = said.split_once(' ').and_then(|(address, token)| {
                    Some((address.parse().ok()?, token.parse().ok()?))
                });
                // What it said is not shown: the run's token is in it.
                parts.ok_or_else(|| TrainError::Refused("rank 0 has said no address".into()))?
            }
        };
        let (rank, host) = (process.world().rank(), process.host());
        let client = Client::connect(address, &token, rank, host, config.deadline());
        let client = process.agree(client.map_err(unwatched), TrainError::is_usage)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let (flag, world) = (stopped.clone(), process.world().clone());
        let directory = Arc::new(OnceLock::new());
        let explained = Arc::new(AtomicBool::new(false));
        let (run, said) = (directory.clone(), explained.clone());
        let start_again = format!("start it as before, with: {program} train --resume");
        let again = start_again.clone();
        let first_host = process.hosts()[0].clone();
        let on_stop = move |stop: Stop| {
            flag.store(true, Ordering::Release);
            let cause = match stop {
                Stop::Failed(cause) => cause,
                Stop::Unheard(own) if supervised => own,
                // Rank 0 has the store, so it is the one that is gone or stands still.
                Stop::Unheard(own) => unheard(&first_host, own),
            };
            // Rank 0 speaks for all; if it is the one that is gone, the next one does. At once: other
            // launchers than ours end all ranks as soon as one has ended.
            let speaks = rank == 0 || (rank == 1 && cause.rank == 0);
            if !supervised && speaks && !said.swap(true, Ordering::AcqRel) {
                explain(&cause, run.get(), &again);
            }
            world.abort(&cause.to_string());
            std::thread::sleep(GRACE);
            // The rank's own thread is stuck in a computation or in MPI.
            signal_hook::low_level::exit(if supervised { 1 } else { i32::from(TRY_AGAIN) });
        };
        let watch = client.watch(process.world().recorder(), on_stop).map_err(unwatched);
        let watch = process.agree(watch, TrainError::is_usage)?;
        let store = store.map(|(store, _)| store);
        Ok(Self { client, watch, store, stopped, supervised, directory, explained, start_again })
    }

    /// Whether the run is watched over from outside.
    pub(crate) fn is_supervised(&self) -> bool {
        self.supervised
    }

    /// What goes on with the run, before its directory.
    pub(crate) fn resume_by(&self, program: &str) -> String {
        if self.supervised {
            format!("{program} launch -- --resume")
        } else {
            self.start_again.clone()
        }
    }

    /// Tells where the run is.
    pub(crate) fn put_directory(&self, path: &std::path::Path) {
        let path = path.display().to_string();
        // Without it a supervisor cannot go on with the run, and says so.
        let _ = self.client.put(DIRECTORY, path.as_bytes());
        self.directory.get_or_init(|| path);
    }

    /// Tells that there is something to save from now on.
    pub(crate) fn put_stepping(&self) {
        // Without it a supervisor that is asked to stop ends the run at once.
        let _ = self.client.put(STEPPING, b"1");
    }

    /// The rank has failed, or was stopped: who is told, and the code to end with.
    pub(crate) fn failed(self, process: &Process, failure: &Failure) -> u8 {
        let recorder = process.world().recorder().clone();
        let was_stopped = self.stopped.load(Ordering::Acquire) || failure.is_aborted();
        if !was_stopped {
            let beats = vec![recorder.beat()];
            let (rank, failure) = match failure.elsewhere() {
                Some((rank, said)) => (rank, said.to_owned()),
                None => (recorder.rank(), failure.to_string()),
            };
            // Without a store the others find out by themselves.
            let _ = self.client.fail(&Diagnosis { rank, failure, beats });
        }
        let _ = self.client.record(&recorder.record());
        if self.supervised {
            return 1;
        }
        if let Some(store) = &self.store {
            // Rank 0 is the one that knows. The news may have reached its own thread first.
            let diagnosis = store.cause_within(CAUSE_WITHIN);
            if let Some(cause) = &diagnosis
                && !self.explained.swap(true, Ordering::AcqRel)
            {
                explain(cause, self.directory.get(), &self.start_again);
            }
            let records = store.records_within(RECORDS_WITHIN);
            match (diagnosis, self.directory.get()) {
                (Some(diagnosis), Some(directory)) => {
                    keep(directory, &PostMortem { diagnosis, records });
                }
                (Some(_), None) => {}
                (None, _) => output::complain(&format!("error: {failure}")),
            }
        }
        TRY_AGAIN
    }

    /// The rank has done its work.
    pub(crate) fn farewell(self) {
        self.watch.farewell();
        if let Some(store) = &self.store {
            // The others' farewells would not find it any more.
            store.over_within(GRACE);
        }
    }
}

/// What a rank that hears nothing of rank 0's store knows: it is about rank 0.
fn unheard(host: &str, own: Diagnosis) -> Diagnosis {
    let failure = format!("nothing is heard of it, on {host}: {}", own.failure);
    Diagnosis { rank: 0, failure, beats: own.beats }
}

/// Says why the run has ended, and how it goes on.
fn explain(cause: &Diagnosis, directory: Option<&String>, start_again: &str) {
    output::complain(&format!("error: {cause}"));
    if let Some(directory) = directory {
        output::complain(&format!("resume: {start_again} {}", quoted_path(directory.as_ref())));
    }
}

/// Rank 0's store, on the given interface or on one that all ranks reach.
fn bind(
    process: &Process,
    config: &Config,
    interface: Option<IpAddr>,
) -> Result<(Store, Token), TrainError> {
    let refused = |error: RendezvousError| TrainError::Refused(error.to_string());
    let host = process.host();
    let is_alone = process.hosts().iter().all(|other| other == host);
    let address = match interface {
        Some(address) => address,
        None if is_alone => Ipv4Addr::LOCALHOST.into(),
        None => {
            let found = (host, 0u16).to_socket_addrs().ok().and_then(|mut all| all.next());
            let found = found.map(|address| address.ip()).filter(|address| !address.is_loopback());
            found.ok_or_else(|| {
                TrainError::Refused(format!(
                    "{host} does not know an address of its own that other hosts reach; give one \
                     with --interface ADDRESS"
                ))
            })?
        }
    };
    let token = Token::generate().map_err(refused)?;
    let options = StoreOptions {
        deadline: config.deadline(),
        join_within: StoreOptions::join_within(config.deadline()),
        owner: Some(0),
        ..StoreOptions::new((address, 0).into(), process.hosts().len(), token.clone())
    };
    Ok((Store::bind(options).map_err(refused)?, token))
}
