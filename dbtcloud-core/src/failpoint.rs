//! Named places where a test may end the process: around every commit and every act on the outside.
//!
//! Without the feature `failpoints`, which no release has, reaching one does nothing and costs nothing. With it, the
//! program that is under test says once what happens there. It is the one thing in these crates that is global to a
//! process, as the end of a process is.

#[cfg(feature = "failpoints")]
static HOOK: std::sync::OnceLock<fn(&str)> = std::sync::OnceLock::new();

/// Says what happens when a place is reached, told its name. Only the first call counts.
#[cfg(feature = "failpoints")]
pub fn install(hook: fn(&str)) {
    let _ = HOOK.set(hook);
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
