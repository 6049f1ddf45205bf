//! The account of it all, when nothing goes wrong any more: read from the database, from the logs as people read them,
//! and from the marks that commands left.

use std::collections::{BTreeMap, BTreeSet};

use dbtcloud_tests::fake;
use serde_json::json;

use crate::people::{Asked, Due};
use crate::stage::Stage;

/// The step of a run whose log is looked at, and the command it runs.
const STEPS: [(usize, &str); 2] = [(3, "seed"), (4, "build")];
const MINUTE: i64 = 60_000_000;

/// A run as the database has it.
struct Run {
    id: i64,
    account: i64,
    job: i64,
    status: String,
    attempt: i64,
    scheduled_for: Option<i64>,
    created_at: i64,
    started: bool,
    cause: String,
    message: String,
}

impl Run {
    fn execution(&self) -> String {
        format!("run-{}-{}", self.id, self.attempt)
    }
}

/// Something that took place with a run: micros, `+1` for a begin and `-1` for an end.
type Step = (i64, i64);

fn rows(stage: &Stage, statement: &str) -> Vec<Vec<String>> {
    let answer = stage.database.ask(statement);
    let fields = |row: &str| row.split('\u{1f}').map(str::to_owned).collect();
    answer.lines().map(fields).collect()
}

fn runs(stage: &Stage) -> Vec<Run> {
    let columns = [
        "id",
        "account_id",
        "job_id",
        "status",
        "attempt",
        "coalesce(scheduled_for, 0)",
        "created_at",
        "dequeued_at IS NOT NULL",
        "cause_body::json ->> 'cause'",
        "replace(coalesce(message, ''), E'\\n', ' ')",
    ];
    let statement = format!(
        "SELECT concat_ws(E'\\x1f', {}) FROM runs ORDER BY id",
        columns.join(", ")
    );
    let number = |field: &String| field.parse::<i64>().unwrap();
    rows(stage, &statement)
        .into_iter()
        .map(|row| Run {
            id: number(&row[0]),
            account: number(&row[1]),
            job: number(&row[2]),
            status: row[3].clone(),
            attempt: number(&row[4]),
            scheduled_for: Some(number(&row[5])).filter(|at| *at > 0),
            created_at: number(&row[6]),
            started: row[7] == "t",
            cause: row[8].clone(),
            message: row[9].clone(),
        })
        .collect()
}

/// Everything that must hold. What was counted.
pub async fn audit(stage: &Stage, asked: &[Asked], due: &[Due]) -> Vec<(String, usize)> {
    let runs = runs(stage);
    let mut wrong = Vec::new();
    statuses(stage, &runs, asked, &mut wrong);
    triggers(&runs, asked, &mut wrong);
    instants(stage, &runs, due, &mut wrong);
    let journal = journal(stage, &runs, &mut wrong);
    let marks = marks(stage, &runs, &journal, &mut wrong);
    let bytes = logs(stage, &runs, &mut wrong).await;
    for (what, statement) in [
        ("outbox is not drained", "SELECT run_id FROM outbox"),
        ("the queue is not empty", "SELECT run_id FROM run_queue"),
        (
            "steps are not whole in the database",
            "SELECT run_id FROM run_steps s WHERE log_bytes - log_first <> coalesce((SELECT sum(length) FROM log_chunks c \
             WHERE c.run_id = s.run_id AND c.step_index = s.step_index), 0)",
        ),
    ] {
        let left = stage.database.ask(statement);
        if !left.is_empty() {
            wrong.push(format!("{what}: {left}"));
        }
    }
    assert!(wrong.is_empty(), "{} things are wrong: {wrong:#?}", wrong.len());
    let of = |status: &str| runs.iter().filter(|run| run.status == status).count();
    vec![
        ("runs".to_owned(), runs.len()),
        ("runs that went well".to_owned(), of("success")),
        ("runs whose agent was killed".to_owned(), of("error")),
        ("runs cancelled by people or superseded".to_owned(), of("cancelled")),
        (
            "runs of schedules".to_owned(),
            runs.iter().filter(|run| run.scheduled_for.is_some()).count(),
        ),
        ("requests for a run".to_owned(), asked.len()),
        (
            "of them unanswered".to_owned(),
            asked.iter().filter(|one| one.run.is_none()).count(),
        ),
        ("marks of commands".to_owned(), marks),
        ("bytes of logs, each as it was printed".to_owned(), bytes),
    ]
}

/// Every run has ended, and as it must: well, unless its agent was killed, somebody stopped it or a newer one took its
/// place.
fn statuses(stage: &Stage, runs: &[Run], asked: &[Asked], wrong: &mut Vec<String>) {
    let stopped: BTreeMap<i64, bool> = asked.iter().filter_map(|one| Some((one.run?, one.stopped?))).collect();
    for run in runs {
        let killed = stage.killed.contains(&run.execution());
        let superseded = run.scheduled_for.is_some() && !run.started && run.message.starts_with("Superseded by run");
        let right = match run.status.as_str() {
            "success" => true,
            "error" => killed && run.started,
            "cancelled" => superseded || stopped.contains_key(&run.id),
            _ => false,
        };
        if !right || run.attempt > 1 {
            wrong.push(format!(
                "run {} is {} after {} attempts: {}",
                run.id, run.status, run.attempt, run.message
            ));
        }
    }
}

/// Each request that was answered made one run, one that was not at most one.
fn triggers(runs: &[Run], asked: &[Asked], wrong: &mut Vec<String>) {
    let mut made: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.scheduled_for.is_none()) {
        made.entry(&run.cause).or_default().push(run.id);
    }
    for one in asked {
        let made = made.remove(one.cause.as_str()).unwrap_or_default();
        let right = match one.run {
            Some(run) => made == [run],
            None => made.len() < 2,
        };
        if !right {
            wrong.push(format!("{one:?} made {made:?}"));
        }
    }
    if !made.is_empty() {
        wrong.push(format!("runs that nobody asked for: {made:?}"));
    }
}

/// Each instant made one run; a job of every minute missed none that it did not make up for.
fn instants(stage: &Stage, runs: &[Run], due: &[Due], wrong: &mut Vec<String>) {
    let mut fired: BTreeMap<(i64, i64), usize> = BTreeMap::new();
    for run in runs {
        if let Some(at) = run.scheduled_for {
            *fired.entry((run.job, at)).or_default() += 1;
        }
    }
    for (which, count) in fired.iter().filter(|(_, count)| **count > 1) {
        wrong.push(format!("{count} runs for job and instant {which:?}"));
    }
    for Due { at, jobs } in due {
        for job in jobs.iter().flatten() {
            if !fired.contains_key(&(*job, *at)) {
                wrong.push(format!("job {job} was due at {at} and did not run"));
            }
        }
    }
    let known: BTreeSet<i64> = due.iter().map(|due| due.at).collect();
    for tenant in &stage.tenants {
        for run in runs.iter().filter(|run| tenant.herd.contains(&run.job)) {
            if !run.scheduled_for.is_some_and(|at| known.contains(&at)) {
                wrong.push(format!("run {} is for an instant that never was", run.id));
            }
        }
        let mut last = None::<(i64, i64)>;
        let mut minutely: Vec<&Run> = runs.iter().filter(|run| run.job == tenant.minutely).collect();
        minutely.sort_by_key(|run| run.scheduled_for);
        for run in minutely {
            let at = run.scheduled_for.unwrap_or_default();
            // The first whole minute after the one before, or after the moment in which that was made up for.
            let expected = last.map(|(seen, fired)| (seen.max(fired) / MINUTE + 1) * MINUTE);
            if expected.is_some_and(|expected| expected != at) || at % MINUTE != 0 {
                wrong.push(format!("run {} is for {at}, expected {expected:?}", run.id));
            }
            last = Some((at, run.created_at));
        }
    }
}

/// The most that went on at one time; of what ends and begins at one instant the end comes first.
fn most(mut steps: Vec<Step>) -> i64 {
    steps.sort_unstable();
    let mut now = 0;
    let counts = steps.into_iter().map(|(_, change)| {
        now += change;
        now
    });
    counts.max().unwrap_or(0)
}

/// Journals are whole, and by the order in which they were committed no account had more runs at work than slots and no
/// job more than one. When each run ended.
fn journal(stage: &Stage, runs: &[Run], wrong: &mut Vec<String>) -> BTreeMap<i64, i64> {
    let gaps = stage.database.ask(
        "SELECT run_id FROM journal GROUP BY run_id HAVING max(sequence) <> count(*) \
         UNION SELECT id FROM runs WHERE id NOT IN (SELECT run_id FROM journal)",
    );
    if !gaps.is_empty() {
        wrong.push(format!("journals with gaps: {gaps}"));
    }
    let statement = "SELECT concat_ws(E'\\x1f', run_id, (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint, \
                     body::json ->> 'status') FROM journal WHERE body::json ->> 'type' = 'run' ORDER BY run_id, sequence";
    let (mut begun, mut ended) = (BTreeMap::new(), BTreeMap::new());
    for row in rows(stage, statement) {
        let (run, at): (i64, i64) = (row[0].parse().unwrap(), row[1].parse().unwrap());
        if ended.contains_key(&run) {
            wrong.push(format!("run {run} went on to {} after its end", row[2]));
        }
        match row[2].as_str() {
            "starting" => _ = begun.insert(run, at),
            "success" | "error" | "cancelled" | "warned" => _ = ended.insert(run, at),
            _ => {}
        }
    }
    let mut of: BTreeMap<(&str, i64), Vec<Step>> = BTreeMap::new();
    for run in runs {
        let Some(end) = ended.get(&run.id) else {
            wrong.push(format!("the journal does not know how run {} ended", run.id));
            continue;
        };
        if let Some(begin) = begun.get(&run.id) {
            for whose in [("account", run.account), ("job", run.job)] {
                of.entry(whose).or_default().extend([(*begin, 1), (*end, -1)]);
            }
        }
    }
    check_most(stage, "runs at work by the journal", of, wrong);
    ended
}

fn check_most(stage: &Stage, what: &str, of: BTreeMap<(&str, i64), Vec<Step>>, wrong: &mut Vec<String>) {
    for ((whose, id), steps) in of {
        let tenant = stage.tenants.iter().find(|tenant| tenant.api.account == id);
        let limit = match tenant {
            Some(tenant) if whose == "account" => i64::from(tenant.slots),
            _ => 1,
        };
        let most = most(steps);
        if most > limit {
            wrong.push(format!("{most} {what} of {whose} {id}, {limit} may be"));
        }
    }
}

/// Every command ran once, none after its run had ended, and no more at one time than there are slots. How many marks.
fn marks(stage: &Stage, runs: &[Run], ended: &BTreeMap<i64, i64>, wrong: &mut Vec<String>) -> usize {
    let text = std::fs::read_to_string(&stage.marks).unwrap_or_default();
    let mut seen: BTreeMap<String, Vec<(i64, String)>> = BTreeMap::new();
    for line in text.lines() {
        let [at, what, execution, command, _] = line.split(' ').collect::<Vec<_>>()[..] else {
            wrong.push(format!("a torn mark: {line}"));
            continue;
        };
        let at = at.replace(['.', ','], "").parse().unwrap();
        seen.entry(execution.to_owned())
            .or_default()
            .push((at, format!("{what} {command}")));
    }
    let mut of: BTreeMap<(&str, i64), Vec<Step>> = BTreeMap::new();
    for run in runs {
        let marks = seen.remove(&run.execution()).unwrap_or_default();
        for (_, command) in STEPS {
            let count = |what: &str| {
                marks
                    .iter()
                    .filter(|(_, mark)| *mark == format!("{what} {command}"))
                    .count()
            };
            let (begins, ends) = (count("begins"), count("ends"));
            let well = run.status != "success" || begins == 1 && ends == 1;
            if begins > 1 || ends > begins || !well {
                wrong.push(format!(
                    "{} {command} of {} began {begins} times and ended {ends} times",
                    run.status,
                    run.execution()
                ));
            }
        }
        let (Some((first, _)), Some((last, _))) = (marks.first(), marks.last()) else {
            continue;
        };
        if ended.get(&run.id).is_none_or(|end| last > end) {
            wrong.push(format!("{} worked after its run had ended", run.execution()));
        }
        for whose in [("account", run.account), ("job", run.job)] {
            of.entry(whose).or_default().extend([(*first, 1), (*last, -1)]);
        }
    }
    if !seen.is_empty() {
        wrong.push(format!("executions that no run knows: {:?}", seen.keys()));
    }
    check_most(stage, "runs at work by the marks", of, wrong);
    text.lines().count()
}

/// Whether this is what the agent says of a command that went well, and nothing else.
fn is_verdict(rest: &str) -> bool {
    rest.starts_with("[exit code 0, ") && rest.ends_with("]\n") && rest.lines().count() == 1
}

/// Whether a log is the beginning of what was printed, maybe cut within a line, and what the agent adds of how it
/// stopped the command.
fn is_beginning(log: &str, printed: &str) -> bool {
    let same = log.bytes().zip(printed.bytes()).take_while(|(one, other)| one == other);
    let rest = &log.as_bytes()[same.count()..];
    !String::from_utf8_lossy(rest).contains(" says ")
}

/// Every log of a run that went well is what its command printed, byte for byte; of others it is the beginning of it.
/// How many bytes.
async fn logs(stage: &Stage, runs: &[Run], wrong: &mut Vec<String>) -> usize {
    let mut bytes = 0;
    for run in runs.iter().filter(|run| run.started) {
        let tenant = stage.tenants.iter().find(|tenant| tenant.api.account == run.account);
        let api = &tenant.unwrap().api;
        let seen = api.run(run.id).await.unwrap();
        for (place, command) in STEPS {
            let log = seen["run_steps"][place]["logs"].as_str().unwrap_or_default();
            let said = fake::said(&run.execution(), command);
            let printed = format!("$ dbt {command} --target default --profile user\n{said}");
            let whole = run.status == "success" || seen["run_steps"][place]["status"] == json!(10);
            let rest = log.strip_prefix(&printed);
            if whole && !rest.is_some_and(is_verdict) || !is_beginning(log, &printed) {
                let end: String = log.chars().skip(printed.len().saturating_sub(100)).collect();
                wrong.push(format!(
                    "log of {command} of {}: {} bytes, … {end}",
                    run.execution(),
                    log.len()
                ));
            }
            bytes += log.len();
        }
    }
    bytes
}
