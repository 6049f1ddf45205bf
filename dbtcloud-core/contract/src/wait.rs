//! Polling in place of sleeping: a test that waits says for what and for how long.

#![expect(
    clippy::disallowed_methods,
    reason = "waiting for real processes takes real time; everything else asks a `Clock`"
)]

use std::fmt::Debug;
use std::panic::Location;
use std::time::{Duration, Instant};

/// How long to wait between two looks, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// Looks again and again until there is an answer, and gives it back.
///
/// `look` says `Ok` with the answer, or `Err` with what it sees instead, which is what the panic shows.
///
/// # Panics
/// When there is no answer within `limit`, naming the caller and what was seen last.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// use std::{cell::Cell, time::Duration};
/// let looks = Cell::new(0);
/// let answer = dbtcloud_contract::wait::until(Duration::from_secs(5), || async {
///     looks.set(looks.get() + 1);
///     if looks.get() == 3 { Ok("there") } else { Err(looks.get()) }
/// }).await;
/// assert_eq!(answer, "there");
/// # });
/// ```
#[track_caller]
pub fn until<T, E, F, Fut>(limit: Duration, mut look: F) -> impl Future<Output = T>
where
    E: Debug,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let caller = Location::caller();
    async move {
        let begin = Instant::now();
        let mut pause = PAUSE.0;
        let mut looks = 0_u32;
        loop {
            looks += 1;
            let seen = match look().await {
                Ok(answer) => return answer,
                Err(seen) => seen,
            };
            assert!(
                begin.elapsed() < limit,
                "{caller}: not within {limit:?} ({looks} looks); last seen: {seen:?}"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}
