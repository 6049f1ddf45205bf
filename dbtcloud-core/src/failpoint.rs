//! Named places where a test may end the process, around every commit and every act on the outside; and calls to the
//! outside that a test may have made twice.
//!
//! Without the feature `failpoints`, which no release has, reaching a place does nothing, a call is made once, and both
//! cost nothing. With it, the program that is under test says once what happens. It is the one thing in these crates
//! that is global to a process, as the end of a process is.

use std::future::Future;

use crate::error::Result;

#[cfg(feature = "failpoints")]
static HOOK: std::sync::OnceLock<fn(&str)> = std::sync::OnceLock::new();
#[cfg(feature = "failpoints")]
static REPEATS: std::sync::OnceLock<fn(&str) -> Repeat> = std::sync::OnceLock::new();

/// How a call to the outside is made.
#[cfg(feature = "failpoints")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Once.
    Not,
    /// Again after the first was answered; the second answer is given.
    Answered,
    /// Twice at the same time; the second answer is given.
    Together,
    /// Once, and the answer is lost: whoever called is told that there was none, and calls again.
    Lost,
}

/// Says what happens when a place is reached, told its name. Only the first call counts.
#[cfg(feature = "failpoints")]
pub fn install(hook: fn(&str)) {
    let _ = HOOK.set(hook);
}

/// Says how calls to the outside are made, told `{room}.{call}`. Only the first call counts.
#[cfg(feature = "failpoints")]
pub fn install_repeats(hook: fn(&str) -> Repeat) {
    let _ = REPEATS.set(hook);
}

/// Reaches the place `{room}.{call}.{moment}`.
#[cfg(feature = "failpoints")]
pub fn reached(room: &'static str, call: &'static str, moment: &'static str) {
    if let Some(hook) = HOOK.get() {
        hook(&format!("{room}.{call}.{moment}"));
    }
}

/// Reaches the place `{room}.{call}.{moment}`: nothing happens.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn reached(_room: &'static str, _call: &'static str, _moment: &'static str) {}

/// Makes a call to the outside that may arrive twice. What became of it is a place of its own: `{room}.{call}.twice` or
/// `{room}.{call}.lost`.
///
/// # Errors
/// What the call answers; `Unavailable` when its answer was lost.
#[cfg(feature = "failpoints")]
pub async fn call<T, F>(room: &'static str, call: &'static str, make: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let how = REPEATS
        .get()
        .map_or(Repeat::Not, |hook| hook(&format!("{room}.{call}")));
    let answer = match how {
        Repeat::Not => return make().await,
        Repeat::Answered => {
            let _ = make().await;
            make().await
        }
        Repeat::Together => futures::future::join(make(), make()).await.1,
        Repeat::Lost => {
            let _ = make().await;
            reached(room, call, "lost");
            return Err(crate::Error::unavailable("a test lost the answer"));
        }
    };
    reached(room, call, "twice");
    answer
}

/// Makes a call to the outside: once.
///
/// # Errors
/// What the call answers.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub async fn call<T, F>(_room: &'static str, _call: &'static str, make: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    make().await
}
