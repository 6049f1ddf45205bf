//! Every door of the house on one page. A port call is one atomic, idempotent intention; no transaction,
//! pool, pod or HTTP request passes through. What a port means is its suite in `dbtcloud-contract`.
//!
//! Rules for every method, unless its own text says otherwise: it may be called concurrently; dropping its
//! future leaves either the whole effect or none; `Unavailable` means that it may or may not have happened
//! and that calling again is safe.

mod artifacts;
mod audit;
mod catalog;
mod clock;
mod dispatches;
mod executor;
mod history;
mod journal;
mod leases;
mod logs;
mod outbox;
mod runs;
mod schedules;
mod sessions;
mod tickets;
mod vault;
mod volume;
mod wakeups;

pub use artifacts::{
    ARTIFACT_PATH_LIMIT_BYTES, Area, ArtifactKey, ArtifactMeta, ArtifactPath, Artifacts, ByteRange, ByteStream,
    RunStream,
};
pub use audit::Audit;
pub use catalog::Catalog;
pub use clock::Clock;
pub use dispatches::{
    Addressee, Channel, DISPATCH_TEXT_LIMIT_BYTES, Dispatch, DispatchId, DispatchState, Dispatched, Dispatches, Next,
    Try,
};
pub use executor::{Execution, ExecutionId, ExecutionSpec, Executor, Exit, Observation, Workload, WorkloadLimits};
pub use history::{Accounts, EndedFilter, History, MONTHS_AHEAD, RunPart};
pub use journal::{Event, EventBody, Journal};
pub use leases::Leases;
pub use logs::{LOG_READ_LIMIT_BYTES, LogPage, LogPart, Logs};
pub use outbox::{Consumer, Delivery, Outbox};
pub use runs::{
    Ack, BATCH_LIMIT_BYTES, BATCH_LIMIT_ITEMS, Batch, Claimed, Enqueued, Fence, Holder, LogChunk, MESSAGE_LIMIT_BYTES,
    Owner, Renewed, RunChange, RunFilter, RunPatch, RunRequest, RunSort, RunState, Runs, Since, Taken,
};
pub use schedules::{FIRE_LIMIT, Fired, Firing, ScheduleEntry, Schedules};
pub use sessions::{NewSession, SessionChange, Sessions};
pub use tickets::{AgentIdentity, Digest, TicketIssue, Tickets};
pub use vault::Vault;
pub use volume::{Mount, Volume, VolumeId};
pub use wakeups::{Bell, BellStream, Wakeups};

/// All storage ports together, for the builder that is given one storage. No function but a builder may
/// ask for it: a function asks for the traits it uses.
pub trait Storage:
    Audit
    + Catalog
    + Dispatches
    + History
    + Journal
    + Leases
    + Logs
    + Outbox
    + Runs
    + Schedules
    + Sessions
    + Tickets
    + Wakeups
    + Send
    + Sync
    + 'static
{
}

impl<T> Storage for T where
    T: Audit
        + Catalog
        + Dispatches
        + History
        + Journal
        + Leases
        + Logs
        + Outbox
        + Runs
        + Schedules
        + Sessions
        + Tickets
        + Wakeups
        + Send
        + Sync
        + 'static
{
}
