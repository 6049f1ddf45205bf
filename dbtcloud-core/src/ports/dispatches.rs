use async_trait::async_trait;

use crate::error::Result;
use crate::id::{AccountId, JobId, NotificationId, RunId, WebhookId};
use crate::page::{Page, Paged};
use crate::time::Timestamp;

/// The longest body, error or answer of a dispatch, in bytes. What is longer is for the caller to cut.
pub const DISPATCH_TEXT_LIMIT_BYTES: usize = 64 * 1024;

/// By what way something leaves the house. Each has carriers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// Webhooks.
    Webhook,
    /// Notifications.
    Notification,
}

impl Channel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Webhook, Self::Notification];

    /// The name it is stored by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Notification => "notification",
        }
    }

    /// The channel of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.name() == name)
    }
}

/// Who is to get something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Addressee {
    /// A webhook.
    Webhook(WebhookId),
    /// A notification.
    Notification(NotificationId),
}

impl Addressee {
    /// By what way it gets it.
    pub const fn channel(self) -> Channel {
        match self {
            Self::Webhook(_) => Channel::Webhook,
            Self::Notification(_) => Channel::Notification,
        }
    }

    /// The integer of its id.
    pub const fn id(self) -> i64 {
        match self {
            Self::Webhook(id) => id.get(),
            Self::Notification(id) => id.get(),
        }
    }

    /// The one with this id.
    pub const fn of(channel: Channel, id: i64) -> Self {
        match channel {
            Channel::Webhook => Self::Webhook(WebhookId::new(id)),
            Channel::Notification => Self::Notification(NotificationId::new(id)),
        }
    }
}

/// The name of something that is to be sent: who is told of which event of a run. It is the same however often it is
/// posted and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DispatchId {
    /// Who gets it.
    pub to: Addressee,
    /// The run it tells of.
    pub run: RunId,
    /// The run's event it tells of.
    pub sequence: u64,
    /// Its place among several that tell of one event, from 0.
    pub part: u32,
}

/// Something that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// Its name.
    pub id: DispatchId,
    /// Whose.
    pub account: AccountId,
    /// The job of the run.
    pub job: JobId,
    /// What kind of event it tells of.
    pub event: String,
    /// What is sent.
    pub body: String,
    /// When it was posted.
    pub created_at: Timestamp,
}

/// Where a dispatch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DispatchState {
    /// It is still to be sent.
    Waiting,
    /// It arrived.
    Delivered,
    /// It was tried as often as it may be.
    Failed,
    /// Nobody wants it any more.
    Dropped,
}

impl DispatchState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Delivered, Self::Failed, Self::Dropped];

    /// The name it is stored by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// What came of one try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// When it was made.
    pub at: Timestamp,
    /// The code of the answer; none when nobody answered.
    pub code: Option<u16>,
    /// What went wrong; empty when nothing did.
    pub error: String,
    /// The beginning of the answer.
    pub answer: String,
}

/// A dispatch and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatched {
    /// What it is.
    pub dispatch: Dispatch,
    /// Where it stands.
    pub state: DispatchState,
    /// How often it was taken to be sent.
    pub tries: u32,
    /// What came of the last try that was written down.
    pub last: Option<Try>,
}

/// What is to happen after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is tried again from this instant on.
    Again(Timestamp),
    /// Nothing: it stands so for good. Never [`DispatchState::Waiting`].
    End(DispatchState),
}

/// What is on its way to people and programs outside, and for a time what was: each addressee's apart, so that one who
/// does not answer holds up nobody else. At least once: a dispatch that was sent and not settled is sent again.
#[async_trait]
pub trait Dispatches: Send + Sync {
    /// Stores what is to be sent, all of it or nothing; each is due at once. One whose name is there already stays as
    /// it is.
    ///
    /// Errors: `Invalid` for a text with a NUL.
    async fn post(&self, dispatches: &[Dispatch]) -> Result<()>;

    /// Takes dispatches of a channel that are due, at most `limit` in all and `each` of one addressee, none of those
    /// in `except`; no addressee's second one before everybody's first. They come in the order of their names. Until `until` none of them is offered to
    /// another caller, and after that they are again unless they were [settled](Dispatches::settle). Of one addressee
    /// and run only the earliest that waits is offered. With any number of callers one dispatch is taken by one at a
    /// time.
    async fn take(
        &self,
        channel: Channel,
        now: Timestamp,
        until: Timestamp,
        limit: u32,
        each: u32,
        except: &[Addressee],
    ) -> Result<Vec<Dispatched>>;

    /// Writes down what came of a try and what is to happen next. Of one that does not wait any more nothing changes,
    /// nor of one that never was.
    ///
    /// Errors: `Invalid` for a text with a NUL.
    async fn settle(&self, id: &DispatchId, tried: &Try, next: Next) -> Result<()>;

    /// One dispatch.
    ///
    /// Errors: `NotFound`, also when it belongs to another account.
    async fn dispatch(&self, account: AccountId, id: &DispatchId) -> Result<Dispatched>;

    /// What an addressee was to get, newest first, with the total.
    async fn dispatches(&self, account: AccountId, to: Addressee, page: Page) -> Result<Paged<Dispatched>>;

    /// An addressee's last tries, the newest first, at most `limit`; with `ended` only those after which nothing is to
    /// happen any more, and not those that were dropped.
    async fn last_tries(&self, to: Addressee, ended: bool, limit: u32) -> Result<Vec<Dispatched>>;

    /// How many of a channel wait to be sent, those included that were taken or are to be tried again.
    async fn undelivered(&self, channel: Channel) -> Result<u64>;

    /// How many were posted before an instant and do not wait any more: what [`Dispatches::forget_dispatches`] would
    /// forget.
    async fn old_dispatches(&self, before: Timestamp) -> Result<u64>;

    /// Forgets what was posted before an instant and does not wait any more, at most `limit`; how many.
    async fn forget_dispatches(&self, before: Timestamp, limit: u32) -> Result<u64>;
}
