//! An agent that runs no dbt: it speaks the real protocol with the real desk, over a network that loses and repeats,
//! and prints a text that is known beforehand.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, header};
use bytes::Bytes;
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor, Observation, RunPatch};
use dbtcloud_core::run::{RunEvent, RunStatus, StepKind, StepState, StepStatus};
use dbtcloud_runtime::protocol::{LogPart, Redeem, Report, ReportAck, RunPlan};
use futures::FutureExt as _;
use tower::ServiceExt as _;

use crate::world::World;

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long an agent without a host goes on.
const LOST_LIMIT: Duration = Duration::from_secs(150);
/// How long a ticket is tried.
const REDEEM_LIMIT: Duration = Duration::from_secs(300);
/// How long a report is tried.
const DELIVERY_LIMIT: Duration = Duration::from_secs(900);
/// The longest answer that is read.
const BODY_LIMIT: usize = 1 << 20;

/// Why an agent stops in the middle.
enum Stop {
    /// It is dead.
    Dead,
    /// The control plane does not want it any more; the exit code.
    Exit(i32),
}

type Step<T> = Result<T, Stop>;

/// Bytes of the text that a step of a run prints.
pub fn printed(run: i64, step: u32, from: u64, to: u64) -> Bytes {
    let line = format!("run {run} step {step} counts on and on\n");
    let line = line.as_bytes();
    let length = line.len() as u64;
    (from..to)
        .map(|at| {
            let number = at / length;
            match at % length {
                0 => b'0' + u8::try_from(number % 10).unwrap_or(0),
                place => line[usize::try_from(place).unwrap_or(0)],
            }
        })
        .collect::<Vec<u8>>()
        .into()
}

struct Agent {
    world: Arc<World>,
    id: ExecutionId,
    /// Which start of the execution it is.
    start: usize,
    key: String,
    /// Since when its host is lost to the platform.
    lost: Option<Duration>,
    number: u64,
}

/// The life of one agent, from its start.
pub async fn live(world: Arc<World>, spec: ExecutionSpec) {
    let sim = world.sim.clone();
    let key: String = (0..8).map(|_| format!("{:08x}", sim.draw(1 << 32))).collect();
    let start = world.executor.starts(spec.id);
    let mut agent = Agent {
        world: world.clone(),
        id: spec.id,
        start,
        key,
        lost: None,
        number: 0,
    };
    sim.tell(format_args!("agent {} begins", agent.id));
    let ticket = spec.ticket.as_ref().map_or("", |ticket| ticket.expose()).to_owned();
    let end = agent.work(&ticket).await;
    world.oracle.leaves(agent.id, agent.start);
    match end {
        Ok(()) => {
            sim.sleep(sim.span(10, 2_000)).await;
            agent.exit(0);
        }
        Err(Stop::Exit(code)) => agent.exit(code),
        Err(Stop::Dead) => sim.tell(format_args!("agent {} is dead", agent.id)),
    }
}

impl Agent {
    fn exit(&self, code: i32) {
        self.world.sim.tell(format_args!("agent {} exits with {code}", self.id));
        if self.lost.is_none() {
            self.world.executor.finish(self.id, code);
        }
    }

    fn observed(&self) -> Observation {
        let seen = self.world.executor.observe(self.id).now_or_never();
        seen.and_then(Result::ok).unwrap_or(Observation::Absent)
    }

    /// Lets a span pass, in which much can happen.
    async fn pause(&mut self, span: Duration) -> Step<()> {
        let sim = self.world.sim.clone();
        sim.sleep(span).await;
        let weather = self.world.weather();
        if let Some(since) = self.lost {
            let over = sim.now() > since + LOST_LIMIT;
            return if over { Err(Stop::Dead) } else { Ok(()) };
        }
        let mine = self.world.executor.starts(self.id) == self.start;
        if !mine || !matches!(self.observed(), Observation::Running { .. }) {
            return Err(Stop::Dead);
        }
        if sim.happens(weather.agent_dies) {
            match sim.draw(3) {
                0 => self.world.executor.finish(self.id, 137),
                1 => self.world.executor.starve(self.id),
                _ => {
                    sim.tell(format_args!("agent {} loses its host", self.id));
                    self.world.executor.vanish(self.id);
                    self.lost = Some(sim.now());
                    return Ok(());
                }
            }
            return Err(Stop::Dead);
        }
        Ok(())
    }

    /// Whether the executor asked for its end.
    fn told(&self) -> bool {
        self.lost.is_none() && self.world.executor.cancelled().iter().any(|(id, _)| *id == self.id)
    }

    async fn work(&mut self, ticket: &str) -> Step<()> {
        let sim = self.world.sim.clone();
        self.pause(sim.span(20, 3_000)).await?;
        let plan = self.redeem(ticket).await?;
        let run = plan.run.get();
        self.world.oracle.works(self.id, self.start);
        let mut report = self.next();
        report.event = Some(RunEvent::Started);
        report.steps = plan
            .steps
            .iter()
            .map(|step| self.state(step, StepStatus::Pending))
            .collect();
        let mut status = self.say(report).await?;
        let (mut failed, mut stopped) = (false, false);
        for step in &plan.steps {
            stopped |= status == RunStatus::Cancelling || self.told();
            if failed || stopped {
                let end = if failed {
                    StepStatus::Skipped
                } else {
                    StepStatus::Cancelled
                };
                let mut report = self.next();
                report.steps = vec![self.state(step, end)];
                status = self.say(report).await?;
                continue;
            }
            let mut length = 0;
            let mut state = StepStatus::Running;
            for piece in 0..=sim.draw(3) {
                let more = if sim.happens(300) { 0 } else { sim.draw(1_500) };
                let mut report = self.next();
                if piece == 0 {
                    report.steps = vec![self.state(step, state)];
                }
                report.logs = vec![LogPart {
                    step: step.index,
                    offset: length,
                    bytes: printed(run, step.index, length, length + more),
                }];
                length += more;
                status = self.say(report).await?;
                self.world.oracle.heard(plan.run, step.index, length);
                if status == RunStatus::Cancelling || self.told() {
                    stopped = true;
                    break;
                }
                self.pause(sim.span(100, 4_000)).await?;
            }
            state = match () {
                () if stopped => StepStatus::Cancelled,
                () if step.kind == StepKind::Command && sim.happens(100) => StepStatus::Error,
                () => StepStatus::Success,
            };
            failed |= state == StepStatus::Error;
            if sim.happens(500) {
                self.put(step.index).await?;
            }
            let mut report = self.next();
            report.steps = vec![self.state(step, state)];
            status = self.say(report).await?;
        }
        let mut report = self.next();
        report.patch = RunPatch::message("the agent's last word");
        report.event = Some(match (failed, stopped) {
            (true, _) => RunEvent::Failed,
            (false, true) => RunEvent::Stopped,
            (false, false) => RunEvent::Succeeded,
        });
        self.say(report).await?;
        self.world.oracle.delivered(plan.run);
        Ok(())
    }

    fn next(&mut self) -> Report {
        self.number += 1;
        Report {
            number: self.number,
            ..Report::default()
        }
    }

    fn state(&self, step: &dbtcloud_core::run::StepPlan, status: StepStatus) -> StepState {
        StepState {
            index: step.index,
            name: step.name.clone(),
            kind: step.kind,
            status,
            started_at: None,
            finished_at: None,
            exit_code: None,
            message: None,
            backend: None,
        }
    }

    async fn redeem(&mut self, ticket: &str) -> Step<RunPlan> {
        let ask = Redeem {
            ticket: ticket.to_owned(),
            key: self.key.clone(),
        };
        let body = Bytes::from(serde_json::to_vec(&ask).unwrap());
        let until = self.world.sim.now() + REDEEM_LIMIT;
        loop {
            match self.send(Method::POST, "redeem", &body).await {
                Some((200, body)) => return Ok(serde_json::from_slice(&body).unwrap()),
                Some((410, _)) => return Err(Stop::Exit(3)),
                Some((status, _)) if status < 500 => return Err(Stop::Exit(4)),
                _ if self.world.sim.now() > until => return Err(Stop::Exit(5)),
                _ => {}
            }
            self.pause(self.world.sim.span(50, 3_000)).await?;
        }
    }

    /// Says something until it is heard.
    async fn say(&mut self, report: Report) -> Step<RunStatus> {
        let (number, frame) = (report.number, report.encode().unwrap());
        let until = self.world.sim.now() + DELIVERY_LIMIT;
        loop {
            match self.send(Method::POST, "report", &frame).await {
                Some((200, body)) => {
                    let ack: ReportAck = serde_json::from_slice(&body).unwrap();
                    if ack.number != number {
                        let what = format!("{}: report {number} was answered with {}", self.id, ack.number);
                        self.world.sim.accuse(what);
                    }
                    return Ok(ack.status);
                }
                Some((410, _)) => return Err(Stop::Exit(3)),
                Some((status, body)) if status < 500 => {
                    let body = String::from_utf8_lossy(&body).into_owned();
                    let what = format!("{}: report {number} was refused: {status} {body}", self.id);
                    self.world.sim.accuse(what);
                    return Err(Stop::Exit(4));
                }
                _ if self.world.sim.now() > until => return Err(Stop::Exit(5)),
                _ => {}
            }
            self.pause(self.world.sim.span(50, 3_000)).await?;
        }
    }

    /// Stores a file, as often as it takes to be told of it.
    async fn put(&mut self, step: u32) -> Step<()> {
        let path = format!("artifacts/{step}/run_results.json");
        for _ in 0..20 {
            match self.send(Method::PUT, &path, &Bytes::from_static(b"{}")).await {
                Some((200, _)) => return Ok(()),
                Some((410, _)) => return Err(Stop::Exit(3)),
                _ => self.pause(self.world.sim.span(50, 1_000)).await?,
            }
        }
        Ok(())
    }

    /// Sends a request once; `None` when no answer came.
    async fn send(&self, method: Method, path: &str, body: &Bytes) -> Option<(u16, Bytes)> {
        let sim = &self.world.sim;
        let weather = self.world.weather();
        sim.sleep(sim.span(1, 30)).await;
        let letter = Letter {
            world: self.world.clone(),
            method,
            path: format!("/agent/v1/{path}"),
            key: self.key.clone(),
            body: body.clone(),
        };
        if sim.happens(weather.repeated) {
            // A copy that takes another way, and arrives whenever it likes.
            let (copy, late) = (letter.clone(), sim.span(0, 15_000));
            let clock = sim.clone();
            sim.spawn(async move {
                clock.sleep(late).await;
                copy.deliver().await;
            });
        }
        if sim.happens(weather.lost) {
            sim.sleep(sim.span(100, 5_000)).await;
            return None;
        }
        let answer = letter.deliver().await;
        sim.sleep(sim.span(1, 30)).await;
        answer.filter(|_| !sim.happens(weather.lost))
    }
}

/// A request on its way.
#[derive(Clone)]
struct Letter {
    world: Arc<World>,
    method: Method,
    path: String,
    key: String,
    body: Bytes,
}

impl Letter {
    async fn deliver(self) -> Option<(u16, Bytes)> {
        let app = self.world.app()?;
        let request = Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(self.body))
            .unwrap();
        let answered = async {
            let response = app.router.clone().oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let body = axum::body::to_bytes(response.into_body(), BODY_LIMIT).await.unwrap();
            (status, body)
        };
        let answered = app.life.during(answered);
        let limit = self.world.sim.sleep(ANSWER_LIMIT);
        match futures::future::select(Box::pin(answered), limit).await {
            futures::future::Either::Left((answer, _)) => answer,
            futures::future::Either::Right(_) => None,
        }
    }
}

/// What time it really is.
pub fn now(world: &Arc<World>) -> dbtcloud_core::Timestamp {
    world.eye().clock().now()
}
