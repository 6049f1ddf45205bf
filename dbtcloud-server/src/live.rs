//! Following a run while it happens, as server-sent events. This server's own addition to the API.
//!
//! `event: run | step | node | log | end | error`, `id:` to go on from with `Last-Event-ID` or
//! `?last_event_id=`, `data:` one line of JSON. Comments keep a silent connection alive.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use dbtcloud_core::ports::EventBody;
use dbtcloud_core::run::StepState;
use dbtcloud_core::{Result, Timestamp};
use dbtcloud_runtime::{LiveCursor, LiveEvent};
use futures::{Stream, StreamExt};
use serde_json::{Value, json};

use crate::call::{Answer, Call};
use crate::rest::fetch_run;
use crate::wire::{codes, time};

fn at(at: Option<Timestamp>) -> Option<String> {
    at.map(time::spaced)
}

fn step(step: &StepState) -> Value {
    let code = codes::step(step.status);
    json!({
        "index": step.index,
        "name": step.name,
        "kind": step.kind.name(),
        "status": code.number,
        "status_humanized": code.word,
        "started_at": at(step.started_at),
        "finished_at": at(step.finished_at),
        "message": step.message,
    })
}

/// The name and the data of a journal event.
fn journal(body: &EventBody, when: Timestamp) -> (&'static str, Value) {
    match body {
        EventBody::Run { status, message } => {
            let code = codes::run(*status);
            let data = json!({
                "status": code.number,
                "status_humanized": code.word,
                "detail": status.name(),
                "status_message": message,
                "at": time::spaced(when),
            });
            ("run", data)
        }
        EventBody::Step { step: state } => ("step", step(state)),
        EventBody::Node { node } => {
            let data = json!({
                "step": node.step,
                "unique_id": node.unique_id,
                "resource_type": node.resource_type,
                "name": node.name,
                "status": node.status,
                "message": node.message,
                "execution_time": node.execution_time,
                "index": node.index,
                "total": node.total,
                "at": time::spaced(node.at),
            });
            ("node", data)
        }
    }
}

/// Log bytes as text. A character that was cut in two by a page is held back until the rest of it is there.
#[derive(Debug, Default)]
struct Texts(BTreeMap<u32, Vec<u8>>);

impl Texts {
    /// The text of these bytes and what was held back, and the offset of its first byte.
    fn take(&mut self, step: u32, offset: u64, bytes: &[u8]) -> (u64, String) {
        let mut held = self.0.remove(&step).unwrap_or_default();
        let offset = offset.saturating_sub(held.len() as u64);
        held.extend_from_slice(bytes);
        let cut = match std::str::from_utf8(&held) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            // A broken character in the middle stays; only an unfinished one at the end is held back.
            Err(_) => held.len() - unfinished(&held),
            Ok(_) => held.len(),
        };
        let rest = held.split_off(cut);
        if !rest.is_empty() {
            self.0.insert(step, rest);
        }
        (offset, String::from_utf8_lossy(&held).into_owned())
    }
}

/// How many bytes at the end begin a character and do not finish it.
fn unfinished(bytes: &[u8]) -> usize {
    (1..=3.min(bytes.len()))
        .find(|back| {
            let tail = &bytes[bytes.len() - back..];
            matches!(std::str::from_utf8(tail), Err(error) if error.valid_up_to() == 0 && error.error_len().is_none())
        })
        .unwrap_or(0)
}

fn message(event: Result<LiveEvent>, texts: &mut Texts) -> Message {
    let (cursor, name, data) = match event {
        Ok(LiveEvent::Journal(cursor, event)) => {
            let (name, data) = journal(&event.body, event.at);
            (Some(cursor), name, data)
        }
        Ok(LiveEvent::Log {
            cursor,
            step,
            offset,
            bytes,
        }) => {
            let (offset, text) = texts.take(step, offset, &bytes);
            (
                Some(cursor),
                "log",
                json!({ "step": step, "offset": offset, "text": text }),
            )
        }
        Ok(LiveEvent::End(cursor)) => (Some(cursor), "end", json!({})),
        Err(error) => {
            tracing::warn!(error = %error.chain(), "a live tail broke off");
            (None, "error", json!({ "message": error.to_string() }))
        }
    };
    let message = Message::default().event(name).data(data.to_string());
    // Who resumes gets the bytes again that were held back and not sent.
    let held = |cursor: LiveCursor, (step, bytes): (&u32, &Vec<u8>)| cursor.held_back(*step, bytes.len() as u64);
    match cursor {
        Some(cursor) => message.id(texts.0.iter().fold(cursor, held).to_string()),
        None => message,
    }
}

fn messages(
    events: impl Stream<Item = Result<LiveEvent>> + Send + 'static,
) -> impl Stream<Item = Result<Message, Infallible>> + Send + 'static {
    let mut texts = Texts::default();
    events.map(move |event| Ok(message(event, &mut texts)))
}

/// Where the client says it has come to.
fn cursor(call: &Call) -> Result<LiveCursor> {
    let header = call.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    match header.or_else(|| call.params.text("last_event_id")) {
        Some(text) => text.parse(),
        None => Ok(LiveCursor::default()),
    }
}

/// The events of a run, from the beginning or from where the client says, until it has ended.
pub(crate) async fn events(call: Call) -> Answer {
    let run = fetch_run(&call).await?;
    let events = call.plane().live(call.account, run.id, cursor(&call)?);
    let keep_alive = KeepAlive::new()
        .interval(call.app.options.keep_alive)
        .text("still here");
    // A tail that is cut by a server that stops is resumed elsewhere.
    let draining = call.app.options.draining.clone().cancelled_owned();
    let response: Response = Sse::new(messages(events).take_until(draining))
        .keep_alive(keep_alive)
        .into_response();
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_was_cut_in_two_is_whole_in_the_text() {
        let mut texts = Texts::default();
        let bytes = "aé€😀z".as_bytes();
        for cut in 0..=bytes.len() {
            let (offset, first) = texts.take(1, 0, &bytes[..cut]);
            let (next, second) = texts.take(1, cut as u64, &bytes[cut..]);
            assert_eq!((offset, next), (0, first.len() as u64));
            assert_eq!(first + &second, "aé€😀z");
        }
        let (_, broken) = texts.take(2, 0, b"\xff\xe2\x82");
        assert_eq!(broken, "\u{fffd}");
        let (_, rest) = texts.take(2, 3, b"\xac");
        assert_eq!(rest, "€");
    }
}
