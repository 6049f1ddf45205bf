//! [`ControlPlane`]: the ports and the operations on them that more than one door needs.

mod jobs;
mod live;
mod logs;
mod trigger;
mod wait;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dbtcloud_core::ports::{
    Artifacts, Audit, Bell, Catalog, Channel, Clock, Consumer, Dispatches, Executor, History, Journal, Leases, Logs,
    Outbox, Owner, Runs, Schedules, Sessions, Storage, Tickets, Vault, Volume, Wakeups,
};
use dbtcloud_core::run::{Run, RunStatus};
use dbtcloud_core::{Error, Result};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use live::{LiveCursor, LiveEvent};
pub(crate) use logs::part_key;
pub use logs::{LogLines, debug_log_path, log_part_path, log_path};
pub use trigger::{NotRetryable, REQUEST_KEPT};

use crate::clock::{SystemClock, Watch};
use crate::config::Config;
use crate::dispatch::{Mail, Webhooks};
use crate::metrics::Metrics;
use crate::outbox::{Consume, Follow, Notify};
use crate::trace::{self, Tracer, log_span};
use crate::wakeups::Bells;
use crate::{census, cleanup, desk, dispatch, outbox, scheduler, wakeups};

/// Which loops a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Fires schedules, admits and drives runs.
    pub scheduler: bool,
    /// Runs the background chores and delivers the outbox.
    pub cleanup: bool,
}

impl Roles {
    /// All of them.
    pub const ALL: Self = Self {
        scheduler: true,
        cleanup: true,
    };
    /// None: a process that only answers requests.
    pub const NONE: Self = Self {
        scheduler: false,
        cleanup: false,
    };
}

/// A control plane that runs in the background. Dropping it leaves it running; [`Running::stop`] ends it.
#[derive(Debug)]
pub struct Running {
    shutdown: CancellationToken,
    loops: tokio::task::JoinHandle<Result<()>>,
    door: Option<tokio::task::JoinHandle<()>>,
}

impl Running {
    /// Ends the loops and the door and waits for them. Executions go on.
    ///
    /// # Errors
    /// `Unavailable` when a loop had panicked.
    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        let ended =
            |error: tokio::task::JoinError| Error::unavailable("the control plane's loops ended").because(error);
        self.loops.await.map_err(ended)??;
        match self.door {
            Some(door) => door.await.map_err(ended),
            None => Ok(()),
        }
    }
}

struct Shared {
    storage: Arc<dyn Storage>,
    executor: Arc<dyn Executor>,
    artifacts: Option<Arc<dyn Artifacts>>,
    volume: Option<Arc<dyn Volume>>,
    vault: Option<Arc<dyn Vault>>,
    clock: Arc<dyn Clock>,
    config: Config,
    bells: Bells,
    watch: Watch,
    scheduler_fault: Mutex<Option<String>>,
    consumers: BTreeMap<Consumer, Arc<dyn Consume>>,
    webhooks: Option<Webhooks>,
    mail: Option<Mail>,
    /// Whether this process would send mail.
    notifies: AtomicBool,
    metrics: Metrics,
    tracer: Option<Arc<dyn Tracer>>,
}

/// A control plane. Cheap to clone; two of them in one process do not know of each other.
#[derive(Clone)]
pub struct ControlPlane {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlane")
            .field("instance", &self.shared.config.instance)
            .finish_non_exhaustive()
    }
}

/// Puts a [`ControlPlane`] together. Storage, executor and config are needed; the rest is optional.
pub struct Builder {
    shared: Shared,
}

impl Builder {
    /// Where runs leave their files. Without it artifacts are refused and runs go on.
    #[must_use]
    pub fn artifacts(mut self, artifacts: impl Artifacts + 'static) -> Self {
        self.shared.artifacts = Some(Arc::new(artifacts));
        self
    }

    /// Where working copies of develop sessions live.
    #[must_use]
    pub fn volume(mut self, volume: impl Volume + 'static) -> Self {
        self.shared.volume = Some(Arc::new(volume));
        self
    }

    /// What seals secrets. Without it nothing secret can be stored.
    #[must_use]
    pub fn vault(mut self, vault: impl Vault + 'static) -> Self {
        self.shared.vault = Some(Arc::new(vault));
        self
    }

    /// How webhooks are sent. Without it they can be edited and nothing is sent.
    #[must_use]
    pub fn webhooks(mut self, webhooks: Webhooks) -> Self {
        self.shared.webhooks = Some(webhooks);
        self
    }

    /// How mail is sent. Without it notifications can be edited and nothing is sent.
    #[must_use]
    pub fn mail(mut self, mail: Mail) -> Self {
        self.shared.mail = Some(mail);
        self
    }

    /// What is done when a run's status changes, in place of what is built in: chained jobs for
    /// [`Consumer::Follow`], webhooks and mail for [`Consumer::Notify`], nothing for the others. It is called by processes with the cleanup role.
    #[must_use]
    pub fn consumer(mut self, consumer: Consumer, consume: impl Consume + 'static) -> Self {
        self.shared.consumers.insert(consumer, Arc::new(consume));
        self
    }

    /// What time it is; the machine's clock when not said.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.shared.clock = Arc::new(clock);
        self
    }

    /// Where traces go; nowhere when not said.
    #[must_use]
    pub fn tracer(mut self, tracer: Arc<dyn Tracer>) -> Self {
        self.shared.tracer = Some(tracer);
        self
    }

    /// The control plane. Nothing is started yet.
    #[must_use]
    pub fn build(self) -> ControlPlane {
        ControlPlane {
            shared: Arc::new(self.shared),
        }
    }
}

impl ControlPlane {
    /// Begins to put a control plane together.
    pub fn builder(storage: impl Storage, executor: impl Executor + 'static, config: Config) -> Builder {
        Builder {
            shared: Shared {
                storage: Arc::new(storage),
                executor: Arc::new(executor),
                artifacts: None,
                volume: None,
                vault: None,
                clock: Arc::new(SystemClock),
                config,
                bells: Bells::default(),
                watch: Watch::default(),
                scheduler_fault: Mutex::default(),
                consumers: BTreeMap::from([
                    (Consumer::Follow, Arc::new(Follow) as Arc<dyn Consume>),
                    (Consumer::Notify, Arc::new(Notify)),
                ]),
                webhooks: None,
                mail: None,
                notifies: AtomicBool::default(),
                metrics: Metrics::default(),
                tracer: None,
            },
        }
    }

    /// Who changed what.
    pub fn audit(&self) -> &dyn Audit {
        &*self.shared.storage
    }

    /// Everything that people edit.
    pub fn catalog(&self) -> &dyn Catalog {
        &*self.shared.storage
    }

    /// Runs.
    pub fn runs(&self) -> &dyn Runs {
        &*self.shared.storage
    }

    /// Clock hands.
    pub fn schedules(&self) -> &dyn Schedules {
        &*self.shared.storage
    }

    /// Step logs in the database. [`ControlPlane::step_log`] also reads those that were moved.
    pub fn logs(&self) -> &dyn Logs {
        &*self.shared.storage
    }

    /// What is kept of runs that have ended.
    pub fn history(&self) -> &dyn History {
        &*self.shared.storage
    }

    /// What happened.
    pub fn journal(&self) -> &dyn Journal {
        &*self.shared.storage
    }

    /// What consumers have still to be told.
    pub fn outbox(&self) -> &dyn Outbox {
        &*self.shared.storage
    }

    /// What is on its way to people and programs outside.
    pub fn dispatches(&self) -> &dyn Dispatches {
        &*self.shared.storage
    }

    /// How webhooks are sent, if they are.
    pub fn webhooks(&self) -> Option<&Webhooks> {
        self.shared.webhooks.as_ref()
    }

    /// How mail is sent, if it is.
    pub fn mail(&self) -> Option<&Mail> {
        self.shared.mail.as_ref()
    }

    /// Why this process, whose role it is, tells nobody by mail how runs ended.
    pub fn mail_fault(&self) -> Option<String> {
        let silent = self.shared.notifies.load(Ordering::Relaxed) && self.mail().is_none();
        silent.then(|| "no mail is sent: smtp_url names no server".to_owned())
    }

    /// Develop sessions.
    pub fn sessions(&self) -> &dyn Sessions {
        &*self.shared.storage
    }

    /// Agents' tickets.
    pub fn tickets(&self) -> &dyn Tickets {
        &*self.shared.storage
    }

    /// Named leases.
    pub fn leases(&self) -> &dyn Leases {
        &*self.shared.storage
    }

    /// What starts things.
    pub fn executor(&self) -> &dyn Executor {
        &*self.shared.executor
    }

    /// Files of runs.
    ///
    /// # Errors
    /// `Unavailable` when the control plane was built without.
    pub fn artifacts(&self) -> Result<&dyn Artifacts> {
        self.shared
            .artifacts
            .as_deref()
            .ok_or_else(|| Error::unavailable("no artifact store is configured"))
    }

    /// Volumes.
    ///
    /// # Errors
    /// `Unavailable` when the control plane was built without.
    pub fn volume(&self) -> Result<&dyn Volume> {
        self.shared
            .volume
            .as_deref()
            .ok_or_else(|| Error::unavailable("no volume store is configured"))
    }

    /// What seals secrets.
    ///
    /// # Errors
    /// `Unavailable` when the control plane was built without.
    pub fn vault(&self) -> Result<&dyn Vault> {
        self.shared
            .vault
            .as_deref()
            .ok_or_else(|| Error::unavailable("no key is configured to seal secrets with"))
    }

    /// What time it is.
    pub fn clock(&self) -> &dyn Clock {
        &*self.shared.clock
    }

    /// What it was told.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// What it counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Where traces go.
    pub fn tracer(&self) -> Option<&Arc<dyn Tracer>> {
        self.shared.tracer.as_ref()
    }

    /// A run was moved on by this process, and that was written down: it is counted, and traced when it ended.
    pub(crate) fn moved(&self, before: RunStatus, run: &Run) {
        self.metrics().moved(before, run);
        if before != run.status {
            let begins = run.status == RunStatus::Running;
            let message = if begins { "run begins" } else { "run ended" };
            if begins || run.status.is_terminal() {
                log_span(run).in_scope(|| tracing::info!(status = run.status.name(), message));
            }
        }
        if let Some(tracer) = self
            .tracer()
            .filter(|_| before != run.status && run.status.is_terminal())
        {
            let (plane, tracer, run) = (self.clone(), tracer.clone(), run.clone());
            tokio::spawn(async move { trace::tell(&plane, &*tracer, &run).await });
        }
    }

    /// This process, as leases name it.
    pub fn owner(&self) -> Owner {
        Owner::new(self.shared.config.instance.clone())
    }

    /// Bells between processes. [`ControlPlane::ring`] rings here and there.
    pub fn wakeups(&self) -> &dyn Wakeups {
        &*self.shared.storage
    }

    /// Rings a bell: in this process at once, in the others soon, while [`ControlPlane::run`] runs. It says
    /// *look*, never what happened, and is called after the change that there is to see.
    pub fn ring(&self, bell: Bell) {
        self.shared.bells.ring(bell);
    }

    /// Changes whenever the bell rang, here or elsewhere. Whoever waits for it also polls.
    pub fn bell(&self, bell: Bell) -> watch::Receiver<u64> {
        self.shared.bells.receiver(bell)
    }

    /// Why this process does not hear the bells of others, while it should. It polls all the same.
    pub fn wakeups_fault(&self) -> Option<String> {
        self.shared.bells.fault()
    }

    /// Why the scheduler of this process does not come to the end of its rounds, while there is one.
    pub fn scheduler_fault(&self) -> Option<String> {
        let fault = self.shared.scheduler_fault.lock();
        fault.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_scheduler_fault(&self, fault: Option<String>) {
        let mut stored = self
            .shared
            .scheduler_fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *stored = fault;
    }

    /// What is wrong with the clock of this machine: it was set back while this process ran.
    pub fn clock_fault(&self) -> Option<String> {
        let behind = self.shared.watch.look(self.clock().now())?;
        Some(format!(
            "the clock is {} s behind what it was; set it right: what was queued before the change begins when it is \
             there again",
            behind.as_secs()
        ))
    }

    pub(crate) fn bells(&self) -> &Bells {
        &self.shared.bells
    }

    pub(crate) fn consumer(&self, consumer: Consumer) -> Option<&dyn Consume> {
        self.shared.consumers.get(&consumer).map(AsRef::as_ref)
    }

    /// The door of agents, `/agent/v1/…`, to be served where [`crate::config::AgentLaunch::server`] says.
    pub fn agent_router(&self) -> axum::Router {
        desk::router(self.clone())
    }

    /// Starts the agents' door (when agents come by a unix socket) and the loops, in the background.
    ///
    /// # Errors
    /// `Unavailable` when the socket cannot be opened, with its path.
    pub async fn start(&self, roles: Roles) -> Result<Running> {
        let shutdown = CancellationToken::new();
        let door = match self.config().agent.server.strip_prefix("unix:") {
            Some(path) => {
                let path = std::path::PathBuf::from(path);
                let door = desk::door::open(&path)?;
                Some(tokio::spawn(desk::door::serve(
                    path,
                    door,
                    self.agent_router(),
                    shutdown.clone(),
                )))
            }
            None => None,
        };
        let (plane, token) = (self.clone(), shutdown.clone());
        let loops = tokio::spawn(async move { plane.run(roles, token).await });
        Ok(Running { shutdown, loops, door })
    }

    /// Runs the loops until `shutdown`. Runs that execute go on without it and are found again by the next
    /// process: leases are given up on the way out.
    ///
    /// # Errors
    /// None today: a loop that fails is logged and begins again.
    pub async fn run(&self, roles: Roles, shutdown: CancellationToken) -> Result<()> {
        let mut loops = tokio::task::JoinSet::new();
        let (plane, token) = (self.clone(), shutdown.clone());
        loops.spawn(async move { wakeups::run(&plane, &token).await });
        if roles.scheduler {
            let (plane, shutdown) = (self.clone(), shutdown.clone());
            loops.spawn(async move { scheduler::run(&plane, &shutdown).await });
        }
        if roles.cleanup {
            self.shared.notifies.store(true, Ordering::Relaxed);
            if let Some(fault) = self.mail_fault() {
                tracing::info!("{fault}; notifications are kept");
            }
            let token = shutdown.clone();
            let (plane, shutdown) = (self.clone(), shutdown.clone());
            loops.spawn(async move { cleanup::run(&plane, &shutdown).await });
            let (plane, shutdown) = (self.clone(), token.clone());
            loops.spawn(async move { census::run(&plane, &shutdown).await });
            for consumer in Consumer::ALL {
                let (plane, shutdown) = (self.clone(), token.clone());
                loops.spawn(async move { outbox::run(&plane, consumer, &shutdown).await });
            }
            for channel in Channel::ALL {
                let (plane, shutdown) = (self.clone(), token.clone());
                loops.spawn(async move { dispatch::run(&plane, channel, &shutdown).await });
            }
        }
        while let Some(ended) = loops.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a loop of the control plane ended");
            }
        }
        shutdown.cancelled().await;
        Ok(())
    }
}
