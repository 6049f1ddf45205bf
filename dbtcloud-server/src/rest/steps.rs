//! Steps and their logs.

use dbtcloud_core::id::StepId;
use dbtcloud_core::ports::LOG_READ_LIMIT_BYTES;
use dbtcloud_core::run::{Run, RunStep};
use dbtcloud_core::{Error, ErrorKind};
use futures::TryStreamExt;
use serde_json::Value;

use crate::auth::Right;
use crate::call::{Answer, Call};
use crate::wire::envelope;
use crate::wire::fault::Fault;
use crate::wire::step::{DEBUG_LINES, StepLogs, last_lines, view};
use crate::wire::time::day;

/// The most of one log that a run shows beside its steps; a step by itself shows more.
const BESIDE_LIMIT_BYTES: u32 = LOG_READ_LIMIT_BYTES;
/// The most of one log that a step by itself shows. What is longer can be followed at `events/`.
const ALONE_LIMIT_BYTES: u64 = 16 * 1024 * 1024;
/// The most of a debug log that is looked through for its last lines.
const DEBUG_TAIL_BYTES: u32 = 256 * 1024;

fn left_out(bytes: u64) -> String {
    format!("[{bytes} bytes before this are left out here]\n")
}

/// What stands in place of a log that retention let go.
fn gone(run: &Run, step: &RunStep) -> Option<String> {
    let at = run.logs_expired_at.filter(|_| step.log_bytes > 0)?;
    Some(format!("[This log has expired: it was removed on {}.]\n", day(at)))
}

/// A log by what reading it gave. One whose files are gone while its run does not say so yet is about to expire.
fn told(read: Result<String, Error>) -> Result<String, Fault> {
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            tracing::warn!(error = %error.chain(), "a log is not in the artifact store");
            Ok("[This log is not in the artifact store any more.]\n".to_owned())
        }
        read => Ok(read?),
    }
}

/// The end of a step's log, or all of it when it is short enough.
async fn console_tail(call: &Call, step: &RunStep) -> Result<String, Error> {
    let page = call
        .plane()
        .step_log_tail(call.account, step, BESIDE_LIMIT_BYTES)
        .await?;
    let text = String::from_utf8_lossy(&page.bytes);
    Ok(if page.offset == 0 {
        text.into_owned()
    } else {
        left_out(page.offset) + &text
    })
}

async fn console_whole(call: &Call, step: &RunStep) -> Result<String, Error> {
    if step.log_bytes > ALONE_LIMIT_BYTES {
        return console_tail(call, step).await;
    }
    let mut stream = call.plane().step_log_stream(call.account, step.clone());
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.try_next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a step's debug log: at most `limit` bytes. A store that cannot be asked has none.
async fn debug(call: &Call, step: &RunStep, limit: u32) -> Result<Option<String>, Fault> {
    match call
        .plane()
        .debug_log_tail(call.account, step.run, step.state.index, limit)
        .await
    {
        Ok(bytes) => Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::Unavailable => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The steps of a run with their logs. Debug logs are looked up only once the run has ended: they are
/// stored when their step ends, and runs are polled often.
pub(crate) async fn of_run(call: &Call, run: &Run, debug_logs: bool) -> Result<Vec<Value>, Fault> {
    let now = call.now();
    let mut views = Vec::new();
    for step in call.plane().runs().steps(call.account, run.id).await? {
        let mut logs = StepLogs {
            console: match gone(run, &step) {
                Some(gone) => gone,
                None => told(console_tail(call, &step).await)?,
            },
            ..StepLogs::default()
        };
        if debug_logs {
            logs.debug = debug(call, &step, LOG_READ_LIMIT_BYTES).await?;
        } else if run.status.is_terminal() {
            let tail = debug(call, &step, DEBUG_TAIL_BYTES).await?;
            logs.debug_tail = tail.map(|text| last_lines(&text, DEBUG_LINES).to_owned());
        }
        views.push(view(&step, call.account, &logs, now).into());
    }
    Ok(views)
}

pub(crate) async fn get(call: Call) -> Answer {
    let id = call.id("id")?;
    let step = call.plane().runs().step(call.account, StepId::new(id)).await?;
    let run = call.plane().runs().get(call.account, step.run).await?;
    if !call.who.may(Right::Read, Some(run.new.project)) {
        return Err(Fault::not_found(format!("step {id} not found")));
    }
    let whole = call.params.include().has("debug_logs");
    let debug_log = debug(
        &call,
        &step,
        if whole { LOG_READ_LIMIT_BYTES } else { DEBUG_TAIL_BYTES },
    )
    .await?;
    let logs = StepLogs {
        console: match gone(&run, &step) {
            Some(gone) => gone,
            None => told(console_whole(&call, &step).await)?,
        },
        debug_tail: debug_log
            .as_deref()
            .map(|text| last_lines(text, DEBUG_LINES).to_owned()),
        debug: debug_log.filter(|_| whole),
    };
    Ok(envelope::ok(view(&step, call.account, &logs, call.now())))
}
