use std::fmt;
use std::pin::Pin;

use async_trait::async_trait;
use futures::Stream;

use crate::error::Result;

/// Where it may be worth to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bell {
    /// The queue, the clock hands, or what a driver drives: schedulers look.
    Queue,
    /// What agents reported: live tails and whoever waits for a run look.
    Reports,
    /// The outbox: whoever delivers it looks.
    Outbox,
}

impl Bell {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Reports, Self::Outbox];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Reports => "reports",
            Self::Outbox => "outbox",
        }
    }

    /// The bell of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bell| bell.name() == name)
    }
}

impl fmt::Display for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Bells as they are heard.
pub type BellStream = Pin<Box<dyn Stream<Item = Result<Bell>> + Send>>;

/// Wake-ups between processes. They say *look*, never what happened: nothing is correct because a bell was
/// heard, and nothing is lost when one was not; whoever listens also polls.
#[async_trait]
pub trait Wakeups: Send + Sync {
    /// Rings a bell in every process that listens on this storage, this one included.
    ///
    /// - To be called after the change it tells of was answered `Ok`, never as part of it.
    /// - On `Ok` every stream that [`Wakeups::listen`] had given before, and that has not ended, has this bell
    ///   at least once more. Several rings may be heard as one.
    /// - Nobody needs to listen. A second call rings again.
    /// - An adapter without a way to other processes reaches its own handles alone, and its documentation
    ///   says so.
    ///
    /// Errors: `Unavailable`: it may not have been heard; the listeners' poll makes up for it.
    async fn ring(&self, bell: Bell) -> Result<()>;

    /// Begins to listen to all bells.
    ///
    /// - What is rung after this returned is heard; what was rung before is not promised. Whoever begins to
    ///   listen looks once by itself.
    /// - The stream gives one error and ends when it can hear no more (a lost connection): call again. What
    ///   was rung meanwhile is lost.
    /// - Dropping the stream stops listening.
    ///
    /// Errors: `Unavailable`: try again later.
    async fn listen(&self) -> Result<BellStream>;
}
