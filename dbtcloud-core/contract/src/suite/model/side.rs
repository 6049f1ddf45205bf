//! One side of the model test: a storage, and the names of what has come to be in it.

use std::fmt::Debug;

use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::{Draft, Kind, Row};
use dbtcloud_core::error::Result;
use dbtcloud_core::id::{AccountId, JobId, ProjectId, RunId, SessionId, UserId};
use dbtcloud_core::ports::{
    Batch, Claimed, Consumer, Delivery, Digest, EventBody, Fence, Fired, Firing, LogPart, NewSession, Owner, RunChange,
    RunPart, RunPatch, ScheduleEntry, SessionChange, TicketIssue,
};
use dbtcloud_core::run::{Admission, CauseCategory, NewRun, Run, RunEvent, RunStatus, Trigger};
use dbtcloud_core::session::Session;
use dbtcloud_core::time::Timestamp;
use serde_json::json;

use super::command::{Command, Report};
use crate::suite::Stores;
use crate::suite::samples::{ACCOUNT, agent, at, batch, chunk, new_run, node, step};

pub(super) const KINDS: [Kind; 3] = [Kind::Job, Kind::User, Kind::Token];
const NAMES: [&str; 6] = ["orders", "Orders", "daily_orders", "100%", "été", ""];
const LEASE_SECONDS: i64 = 25;

pub(super) struct Side {
    pub(super) stores: Stores,
    seconds: i64,
    pub(super) runs: Vec<(AccountId, RunId)>,
    claims: Vec<Claim>,
    rows: Vec<Row>,
    pub(super) sessions: Vec<SessionId>,
    deliveries: Vec<(Consumer, RunId, u64)>,
}

struct Claim {
    claimed: Claimed,
    /// The highest report that was acknowledged.
    acknowledged: u64,
}

/// An answer as text in which no number depends on the storage.
fn answer<T: Debug>(result: Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:#?}"),
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn nothing() -> String {
    "nothing there yet".to_owned()
}

fn trigger(cause: u8) -> Trigger {
    let category = match cause {
        1 => CauseCategory::Scheduled,
        2 => CauseCategory::Merge,
        _ => CauseCategory::Api,
    };
    Trigger {
        github_pull_request_id: cause.checked_sub(2).filter(|id| *id > 0).map(i64::from),
        ..Trigger::new(category, "a story")
    }
}

fn digest(number: u8) -> Digest {
    Digest([number; 32])
}

impl Side {
    pub(super) fn new(stores: Stores) -> Self {
        Self {
            stores,
            seconds: 0,
            runs: Vec::new(),
            claims: Vec::new(),
            rows: Vec::new(),
            sessions: Vec::new(),
            deliveries: Vec::new(),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        at(self.seconds)
    }

    fn later(&self, seconds: i64) -> Timestamp {
        at(self.seconds + seconds)
    }

    /// A run without what the ports leave open.
    pub(super) fn plain(&self, mut run: Run) -> Run {
        let place = self
            .runs
            .iter()
            .position(|(_, id)| *id == run.id)
            .map_or(-1, |place| place as i64);
        run.id = RunId::new(place);
        run.new.due_at = at(0);
        run.message = run.message.map(|text| self.plain_text(&text));
        run
    }

    /// A text in which runs are named by their place.
    fn plain_text(&self, text: &str) -> String {
        let named = self.runs.iter().enumerate();
        named.fold(text.to_owned(), |text, (place, (_, id))| {
            text.replace(&format!("by run {id}:"), &format!("by the run at {place}:"))
        })
    }

    pub(super) fn plain_body(&self, body: EventBody) -> EventBody {
        match body {
            EventBody::Run { status, message } => EventBody::Run {
                status,
                message: message.map(|text| self.plain_text(&text)),
            },
            other => other,
        }
    }

    pub(super) fn plain_session(&self, mut session: Session) -> Session {
        let place = self
            .sessions
            .iter()
            .position(|id| *id == session.id)
            .map_or(-1, |place| place as i64);
        session.id = SessionId::new(place);
        session
    }

    pub(super) fn plain_row(&self, mut row: Row) -> Row {
        let same = |known: &Row| known.kind == row.kind && known.id == row.id;
        row.id = self.rows.iter().position(same).map_or(-1, |place| place as i64);
        row
    }

    fn note(&mut self, run: &Run) {
        if !self.runs.iter().any(|(_, id)| *id == run.id) {
            self.runs.push((run.new.account, run.id));
        }
    }

    fn run(&self, index: usize) -> Option<(AccountId, RunId)> {
        self.runs.get(index.checked_rem(self.runs.len())?).copied()
    }

    fn claim(&self, index: usize) -> Option<usize> {
        index.checked_rem(self.claims.len())
    }

    fn fence(&self, index: usize) -> Option<Fence> {
        Some(self.claims[self.claim(index)?].claimed.fence)
    }

    fn note_claims(&mut self, claimed: Result<Vec<Claimed>>) -> String {
        let mut claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) => return answer(Err::<(), _>(error)),
        };
        claimed.sort_by_key(|claimed| claimed.run.id);
        let runs: Vec<Run> = claimed.iter().map(|claimed| self.plain(claimed.run.clone())).collect();
        for claimed in claimed {
            // A new driver of the same attempt goes on where its agent was.
            let same = |claim: &&Claim| agent(&claim.claimed) == agent(&claimed);
            let acknowledged = self.claims.iter().find(same).map_or(0, |claim| claim.acknowledged);
            self.claims.push(Claim { claimed, acknowledged });
        }
        answer(Ok(runs))
    }

    pub(super) async fn obey(&mut self, command: &Command) -> String {
        match command {
            Command::Wait { seconds } => {
                self.seconds += seconds;
                String::new()
            }
            Command::Insert { .. } | Command::Update { .. } => self.edit(command).await,
            Command::Enqueue {
                account,
                job,
                instant,
                exclusive,
                takes_slot,
                delay,
                cause,
            } => {
                let new = NewRun {
                    trigger: trigger(*cause),
                    scheduled_for: instant.map(at),
                    exclusive: *exclusive,
                    takes_slot: *takes_slot,
                    due_at: self.later(*delay),
                    ..new_run(AccountId::new(*account), JobId::new(account * 10 + job))
                };
                let queued = self.stores.runs.enqueue(&new, self.now()).await;
                if let Ok(queued) = &queued {
                    self.note(&queued.clone().into_run());
                }
                answer(queued.map(|queued| self.plain(queued.into_run())))
            }
            Command::Claim { admissions } => {
                let find =
                    |(run, slot): &(usize, Option<u32>)| self.run(*run).map(|(_, run)| Admission { run, slot: *slot });
                let admissions: Vec<_> = admissions.iter().filter_map(find).collect();
                let owner = Owner::new("driver");
                let until = self.later(LEASE_SECONDS);
                let claimed = self.stores.runs.claim(&owner, &admissions, self.now(), until).await;
                self.note_claims(claimed)
            }
            Command::Reclaim => {
                let until = self.later(LEASE_SECONDS);
                let taken = self
                    .stores
                    .runs
                    .reclaim(&Owner::new("other"), self.now(), until, 1_000)
                    .await;
                self.note_claims(taken)
            }
            Command::Renew { claim } => {
                let Some(fence) = self.fence(*claim) else {
                    return nothing();
                };
                let renewed = self.stores.runs.renew(&[fence], self.later(LEASE_SECONDS)).await;
                answer(renewed.map(|list| {
                    list.into_iter()
                        .map(|renewed| self.plain(renewed.run))
                        .collect::<Vec<_>>()
                }))
            }
            Command::Release { claim } => {
                let Some(fence) = self.fence(*claim) else {
                    return nothing();
                };
                answer(self.stores.runs.release(&[fence], self.now()).await)
            }
            Command::Change {
                claim,
                event,
                stale,
                text,
            } => {
                self.change(*claim, *event, *stale, text.map(|text| format!("text {text}")))
                    .await
            }
            Command::Cancel { run, stranger } => {
                let Some((account, run)) = self.run(*run) else {
                    return nothing();
                };
                let account = if *stranger {
                    AccountId::new(account.get() + 5)
                } else {
                    account
                };
                let cancelled = self.stores.runs.request_cancel(account, run, "stop", self.now()).await;
                answer(cancelled.map(|run| self.plain(run)))
            }
            Command::Report(report) => self.report(report).await,
            Command::Moved {
                run,
                step,
                wrong,
                percent,
            } => {
                let Some((account, run)) = self.run(*run) else {
                    return nothing();
                };
                let steps = self.stores.runs.steps(account, run).await.unwrap_or_default();
                let known = steps.iter().find(|known| known.state.index == *step);
                let (first, length) = known.map_or((0, 0), |known| (known.log_first, known.log_bytes));
                let part = LogPart {
                    start: first + u64::from(*wrong),
                    end: first + (length - first) * u64::from(*percent) / 100,
                };
                answer(self.stores.logs.moved(account, run, *step, part).await)
            }
            Command::Expire { run } => {
                let Some((account, run)) = self.run(*run) else {
                    return nothing();
                };
                let logs = self.stores.history.expire(account, run, RunPart::Logs, at(1)).await;
                let files = self
                    .stores
                    .history
                    .expire(account, run, RunPart::Artifacts, at(2))
                    .await;
                answer(logs.and(files))
            }
            Command::Take { .. } | Command::Settle { .. } => self.outbox(command).await,
            Command::Put { .. } | Command::Fire { .. } => self.schedule(command).await,
            Command::Open { .. } | Command::Session { .. } => self.session(command).await,
            _ => self.lease_or_ticket(command).await,
        }
    }

    async fn edit(&mut self, command: &Command) -> String {
        let draft = |kind, account, name: u8, lookup: Option<u8>, deleted, at| Draft {
            kind,
            account,
            project: Some(ProjectId::new(i64::from(name % 2))),
            parent: None,
            name: NAMES[usize::from(name) % NAMES.len()].to_owned(),
            lookup: lookup.map(|lookup| format!("lookup {lookup}")),
            deleted,
            body: json!({ "name": name, "list": [1, 2.5, null] }),
            at,
            by: Actor::System,
        };
        match command {
            Command::Insert {
                kind,
                account,
                name,
                lookup,
            } => {
                let kind = KINDS[usize::from(*kind) % KINDS.len()];
                let draft = draft(kind, AccountId::new(*account), *name, *lookup, false, self.now());
                let row = self.stores.catalog.insert(draft).await;
                self.rows.extend(row.as_ref().ok().cloned());
                answer(row.map(|row| self.plain_row(row)))
            }
            Command::Update {
                row,
                stale,
                name,
                lookup,
                deleted,
            } => {
                let Some(place) = row.checked_rem(self.rows.len()) else {
                    return nothing();
                };
                let known = self.rows[place].clone();
                let draft = draft(known.kind, known.account, *name, *lookup, *deleted, self.now());
                let version = known.version + u64::from(*stale);
                let row = self.stores.catalog.update(known.id, version, draft).await;
                if let Ok(row) = &row {
                    self.rows[place] = row.clone();
                }
                answer(row.map(|row| self.plain_row(row)))
            }
            _ => unreachable!("edits only"),
        }
    }

    async fn change(&mut self, claim: usize, event: RunEvent, stale: bool, message: Option<String>) -> String {
        let Some(place) = self.claim(claim) else {
            return nothing();
        };
        let (run, fence) = (self.claims[place].claimed.run.clone(), self.claims[place].claimed.fence);
        let from = match self.stores.runs.get(run.new.account, run.id).await {
            Ok(_) if stale => RunStatus::Starting,
            Ok(run) => run.status,
            Err(error) => return answer(Err::<(), _>(error)),
        };
        let patch = RunPatch {
            message,
            ..RunPatch::default()
        };
        let Ok(change) = RunChange::new(from, event, patch, self.now()) else {
            return "illegal".to_owned();
        };
        let changed = self.stores.runs.change(&fence, &change).await;
        answer(changed.map(|run| self.plain(run)))
    }

    async fn log_length(&self, account: AccountId, run: RunId, step: u32) -> u64 {
        let steps = self.stores.runs.steps(account, run).await.unwrap_or_default();
        steps
            .iter()
            .find(|known| known.state.index == step)
            .map_or(0, |step| step.log_bytes)
    }

    async fn report(&mut self, report: &Report) -> String {
        let Some(place) = self.claim(report.claim) else {
            return nothing();
        };
        let claimed = self.claims[place].claimed.clone();
        let run = &claimed.run;
        let number = (self.claims[place].acknowledged + 1)
            .saturating_add_signed(report.slip)
            .max(1);
        let mut steps: Vec<_> = report
            .steps
            .iter()
            .map(|(index, status)| step(*index, *status))
            .collect();
        for step in &mut steps {
            step.started_at = None;
        }
        let mut logs = Vec::new();
        if let Some((step, length, slip)) = report.log {
            let end = self.log_length(run.new.account, run.id, step).await;
            logs.push(chunk(
                step,
                end.saturating_add_signed(slip),
                vec![number.to_le_bytes()[0]; length],
            ));
        }
        let message = report.text.map(|text| format!("said {text}"));
        let report = Batch {
            steps,
            nodes: report.node.then(|| node(1, "model.shop.orders")).into_iter().collect(),
            logs,
            // An agent begins with its start: what a step of an attempt that never began is, no port says.
            event: if number == 1 {
                Some(RunEvent::Started)
            } else {
                report.event
            },
            patch: RunPatch {
                message,
                has_docs: report.text.map(|text| text % 2 == 0),
                ..RunPatch::default()
            },
            ..batch(number, self.now())
        };
        let ack = self.stores.runs.report(&agent(&claimed), &report).await;
        if let Ok(ack) = &ack {
            for claim in &mut self.claims {
                if agent(&claim.claimed) == agent(&claimed) {
                    claim.acknowledged = ack.number;
                }
            }
        }
        answer(ack)
    }

    async fn outbox(&mut self, command: &Command) -> String {
        let outbox = &self.stores.outbox;
        match command {
            Command::Take {
                consumer,
                seconds,
                limit,
            } => {
                let consumer = Consumer::ALL[*consumer];
                let taken = outbox.take(consumer, self.now(), self.later(*seconds), *limit).await;
                let taken = match taken {
                    Ok(taken) => taken,
                    Err(error) => return answer(Err::<(), _>(error)),
                };
                let events = taken.iter().map(|delivery| &delivery.event);
                self.deliveries
                    .extend(events.map(|event| (consumer, event.run, event.sequence)));
                let place = |run: RunId| self.runs.iter().position(|(_, id)| *id == run);
                let plain = taken
                    .into_iter()
                    .map(|Delivery { event, tries }| (place(event.run), event.at, self.plain_body(event.body), tries));
                answer(Ok(plain.collect::<Vec<_>>()))
            }
            Command::Settle { delivery, postpone } => {
                let Some(place) = delivery.checked_rem(self.deliveries.len()) else {
                    return nothing();
                };
                let (consumer, run, sequence) = self.deliveries[place];
                let until = postpone.map(|seconds| self.later(seconds));
                answer(match until {
                    Some(until) => outbox.postpone(consumer, run, sequence, until).await,
                    None => outbox.delivered(consumer, run, sequence).await,
                })
            }
            _ => unreachable!("deliveries only"),
        }
    }

    async fn schedule(&mut self, command: &Command) -> String {
        match command {
            Command::Put { job, version, next } => {
                let next_at = next.map(at);
                let entry = ScheduleEntry {
                    account: ACCOUNT,
                    job: JobId::new(10 + job),
                    job_version: *version,
                    next_at,
                };
                answer(self.stores.schedules.put(&entry, self.now()).await)
            }
            Command::Fire { job, stale, next, run } => {
                let job = JobId::new(10 + job);
                let known = self.stores.schedules.of(&[job]).await.unwrap_or_default();
                let Some(entry) = known.first() else { return nothing() };
                let seen = entry.next_at.unwrap_or(at(0));
                let new = NewRun {
                    trigger: trigger(1),
                    scheduled_for: Some(seen),
                    ..new_run(ACCOUNT, job)
                };
                let firing = Firing {
                    job,
                    seen,
                    job_version: entry.job_version + u64::from(*stale),
                    next: next.map(at),
                    run: run.then_some(new),
                };
                let fired = self.stores.schedules.fire(&[firing], self.now()).await;
                let fired = fired.map(|mut fired| fired.remove(0));
                if let Ok(Fired::Queued(run)) = &fired {
                    self.note(run);
                }
                answer(fired.map(|fired| match fired {
                    Fired::Queued(run) => Fired::Queued(Box::new(self.plain(*run))),
                    other => other,
                }))
            }
            _ => unreachable!("schedules only"),
        }
    }

    async fn session(&mut self, command: &Command) -> String {
        match command {
            Command::Open { user } => {
                let new = NewSession {
                    account: ACCOUNT,
                    project: ProjectId::new(1),
                    user: UserId::new(*user),
                };
                let session = self.stores.sessions.open(new, self.now()).await;
                if let Ok(session) = &session
                    && !self.sessions.contains(&session.id)
                {
                    self.sessions.push(session.id);
                }
                answer(session.map(|session| self.plain_session(session)))
            }
            Command::Session {
                session,
                event,
                stale,
                address,
                active,
            } => {
                let Some(place) = session.checked_rem(self.sessions.len()) else {
                    return nothing();
                };
                let id = self.sessions[place];
                let known = match self.stores.sessions.get(ACCOUNT, id).await {
                    Ok(known) => known,
                    Err(error) => return answer(Err::<(), _>(error)),
                };
                let change = SessionChange {
                    from: known.status,
                    event: *event,
                    generation: known.generation + u32::from(*stale),
                    address: address.map(|address| format!("http://10.0.0.{address}")),
                    active: *active,
                };
                let changed = self.stores.sessions.change(ACCOUNT, id, &change, self.now()).await;
                answer(changed.map(|session| self.plain_session(session)))
            }
            _ => unreachable!("sessions only"),
        }
    }

    async fn lease_or_ticket(&mut self, command: &Command) -> String {
        let tickets = &self.stores.tickets;
        match command {
            Command::Acquire { name, owner, seconds } => {
                let (name, owner) = (format!("lease {name}"), Owner::new(format!("owner {owner}")));
                let until = self.later(*seconds);
                let term = self.stores.leases.acquire(&name, &owner, self.now(), until).await;
                answer(term.map(|term| term.is_some()))
            }
            Command::GiveUp { name, owner } => {
                let owner = Owner::new(format!("owner {owner}"));
                answer(self.stores.leases.release(&format!("lease {name}"), &owner).await)
            }
            Command::Issue { claim, ticket, seconds } => {
                let Some(place) = self.claim(*claim) else {
                    return nothing();
                };
                let run = &self.claims[place].claimed.run;
                let issue = TicketIssue {
                    ticket: digest(*ticket),
                    account: run.new.account,
                    run: run.id,
                    attempt: run.attempt,
                    expires_at: self.later(*seconds),
                };
                answer(tickets.issue(&issue).await)
            }
            Command::Redeem { ticket, key } => {
                let identity = tickets.redeem(digest(*ticket), digest(100 + key), self.now()).await;
                answer(identity.map(|identity| (identity.account, identity.fence.holder())))
            }
            Command::Authenticate { key } => {
                let identity = tickets.authenticate(digest(100 + key)).await;
                answer(identity.map(|identity| (identity.account, identity.fence.holder())))
            }
            Command::Purge { age } => loop {
                match tickets.purge(self.later(-age), 3).await {
                    Ok(0) => return String::new(),
                    Ok(_) => {}
                    Err(error) => return answer(Err::<(), _>(error)),
                }
            },
            _ => unreachable!("leases and tickets only"),
        }
    }
}
