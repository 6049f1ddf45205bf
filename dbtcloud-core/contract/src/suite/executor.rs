//! What [`Executor`] means, on anything that can hold a workload: the commands come from a [`Fixture`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dbtcloud_core::error::ErrorKind;
use dbtcloud_core::id::{AccountId, RunId, SessionId};
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor, Exit, Observation, Workload, WorkloadLimits};

use super::samples::{kind, together};
use crate::wait::until;

cases! { $ executor_cases, executor, Arc<dyn Fixture>:
    what_was_never_started_is_absent,
    a_task_ends_with_its_code,
    an_end_is_told_until_it_is_removed,
    an_end_is_told_to_another_instance,
    a_running_task_is_seen_running,
    starting_again_starts_nothing,
    starting_what_has_ended_starts_nothing,
    two_instances_start_one_thing,
    an_impossible_spec_is_invalid,
    an_environment_is_what_was_asked,
    an_interrupt_ends_what_listens,
    what_ignores_an_interrupt_is_ended_after_the_grace,
    a_shorter_grace_shortens,
    a_longer_grace_does_not_lengthen,
    a_cancellation_outlives_its_caller,
    cancelling_what_is_absent_or_ended_is_fine,
    children_end_with_a_cancelled_parent,
    children_end_with_a_parent_that_left,
    children_end_with_a_removed_parent,
    a_service_answers_at_its_address,
    a_service_is_found_again,
    a_service_ends_when_it_is_cancelled,
    what_runs_is_found_again,
    what_runs_can_be_cancelled_by_another_instance,
    removing_what_runs_ends_it,
    removing_what_is_absent_is_fine,
    the_list_has_all_that_is_not_absent,
    names_are_apart,
}

/// What the suite needs from an executor's world: the executor, and commands that do as they are called.
/// Every case gets a world of its own.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The executor.
    fn executor(&self) -> Arc<dyn Executor>;

    /// Another instance over the same world, as after a restart of the process that had the first.
    async fn restart(&self) -> Arc<dyn Executor>;

    /// A task that ends at once with this code.
    fn exits(&self, id: ExecutionId, code: i32) -> ExecutionSpec;

    /// A task that runs until an interrupt ends it.
    fn runs_until_cancelled(&self, id: ExecutionId) -> ExecutionSpec;

    /// A task that runs on whatever interrupts come.
    fn ignores_interrupt(&self, id: ExecutionId) -> ExecutionSpec;

    /// A service that answers soon, and ends by an interrupt.
    fn serves(&self, id: ExecutionId) -> ExecutionSpec;

    /// A task that starts processes of its own, which ignore interrupts, and waits for them or leaves
    /// (exit code 0) while they run. `None` where nothing can be started.
    fn spawns_children(&self, id: ExecutionId, waits: bool) -> Option<ExecutionSpec> {
        let _ = (id, waits);
        None
    }

    /// How many of those processes run now.
    async fn children(&self, id: ExecutionId) -> usize {
        let _ = id;
        0
    }

    /// A task that ends with 0 if `GREETING` is `a 'b' $c`, `DBTCLOUD_TICKET` is `the-ticket`, and nothing
    /// of this process's environment (`CARGO_PKG_NAME`, `HOME`) is there, and with 1 otherwise. The suite
    /// fills in environment and ticket. `None` where no command is really run.
    fn checks_environment(&self, id: ExecutionId) -> Option<ExecutionSpec> {
        let _ = id;
        None
    }

    /// A task that can never be started.
    fn impossible(&self, id: ExecutionId) -> ExecutionSpec;

    /// How often the command of this execution really began.
    async fn starts(&self, id: ExecutionId) -> usize;

    /// Whether a service answers at this address.
    async fn answers(&self, address: &str) -> bool;

    /// How long anything may take.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// A task of this name that does nothing in particular.
pub fn plain_spec(id: ExecutionId) -> ExecutionSpec {
    ExecutionSpec {
        id,
        account: AccountId::new(1),
        workload: Workload::Task,
        command: vec!["true".to_owned()],
        environment: BTreeMap::new(),
        ticket: None,
        mounts: Vec::new(),
        limits: WorkloadLimits::default(),
        placement: Default::default(),
    }
}

type World = Arc<dyn Fixture>;

const ID: ExecutionId = run(1, 1);
/// Longer than any case: what ends earlier did not wait for it.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(200);

const fn run(run: i64, attempt: u32) -> ExecutionId {
    ExecutionId::Run {
        run: RunId::new(run),
        attempt,
    }
}

/// Looks, and insists on an answer: an executor that cannot tell for a moment is asked again. A look that
/// waits for something to happen is a failure.
async fn look(world: &World, executor: &Arc<dyn Executor>, id: ExecutionId) -> Observation {
    until(world.patience(), || async {
        let answer = tokio::time::timeout(Duration::from_secs(20), executor.observe(id)).await;
        match answer.expect("observe never waits for anything to happen") {
            Ok(seen) => Ok(seen),
            Err(error) if error.kind() == ErrorKind::Unavailable => Err(error),
            Err(error) => panic!("observe answered {error}"),
        }
    })
    .await
}

/// Waits for its end.
async fn ended(world: &World, executor: &Arc<dyn Executor>, id: ExecutionId) -> Exit {
    until(world.patience(), || async {
        match look(world, executor, id).await {
            Observation::Exited(exit) => Ok(exit),
            other => Err(other),
        }
    })
    .await
}

/// Waits until it runs (a service: until it answers); its address.
async fn runs(world: &World, executor: &Arc<dyn Executor>, spec: &ExecutionSpec) -> Option<String> {
    until(world.patience(), || async {
        match look(world, executor, spec.id).await {
            Observation::Running { address } if spec.workload == Workload::Task => Ok(address),
            Observation::Running { address: Some(address) } => Ok(Some(address)),
            Observation::Exited(exit) => panic!("{} should run, but ended: {exit:?}", spec.id),
            other => Err(other),
        }
    })
    .await
}

/// Starts it and waits until its command has really begun.
async fn begun(world: &World, executor: &Arc<dyn Executor>, spec: &ExecutionSpec) {
    executor.start(spec).await.unwrap();
    runs(world, executor, spec).await;
    until(world.patience(), || async {
        match world.starts(spec.id).await {
            1 => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

async fn tidy(executor: &Arc<dyn Executor>, ids: &[ExecutionId]) {
    for id in ids {
        executor.remove(*id).await.unwrap();
    }
}

async fn what_was_never_started_is_absent(world: World) {
    let executor = world.executor();
    assert_eq!(look(&world, &executor, ID).await, Observation::Absent);
    assert_eq!(executor.list().await.unwrap(), []);
}

async fn a_task_ends_with_its_code(world: World) {
    let executor = world.executor();
    for (attempt, code) in [(1, 0), (2, 3)] {
        let id = run(1, attempt);
        executor.start(&world.exits(id, code)).await.unwrap();
        let exit = ended(&world, &executor, id).await;
        assert_eq!((exit.code, exit.signal, exit.out_of_memory), (Some(code), None, false));
    }
    tidy(&executor, &[run(1, 1), run(1, 2)]).await;
}

async fn an_end_is_told_until_it_is_removed(world: World) {
    let executor = world.executor();
    executor.start(&world.exits(ID, 3)).await.unwrap();
    let exit = ended(&world, &executor, ID).await;
    for _ in 0..3 {
        assert_eq!(look(&world, &executor, ID).await, Observation::Exited(exit.clone()));
    }
    executor.remove(ID).await.unwrap();
    assert_eq!(look(&world, &executor, ID).await, Observation::Absent);
    assert_eq!(executor.list().await.unwrap(), []);
}

async fn an_end_is_told_to_another_instance(world: World) {
    let executor = world.executor();
    executor.start(&world.exits(ID, 3)).await.unwrap();
    drop(executor);
    let second = world.restart().await;
    let exit = ended(&world, &second, ID).await;
    assert_eq!(exit.code, Some(3));
    let third = world.restart().await;
    assert_eq!(look(&world, &third, ID).await, Observation::Exited(exit));
    tidy(&third, &[ID]).await;
    assert_eq!(look(&world, &second, ID).await, Observation::Absent);
}

async fn a_running_task_is_seen_running(world: World) {
    let executor = world.executor();
    let spec = world.runs_until_cancelled(ID);
    executor.start(&spec).await.unwrap();
    assert_eq!(runs(&world, &executor, &spec).await, None, "a task has no address");
    tidy(&executor, &[ID]).await;
}

async fn starting_again_starts_nothing(world: World) {
    let executor = world.executor();
    let spec = world.runs_until_cancelled(ID);
    begun(&world, &executor, &spec).await;
    executor.start(&spec).await.unwrap();
    world.restart().await.start(&world.exits(ID, 3)).await.unwrap();
    assert!(matches!(look(&world, &executor, ID).await, Observation::Running { .. }));
    assert_eq!((world.starts(ID).await, executor.list().await.unwrap().len()), (1, 1));
    tidy(&executor, &[ID]).await;
}

async fn starting_what_has_ended_starts_nothing(world: World) {
    let executor = world.executor();
    executor.start(&world.exits(ID, 3)).await.unwrap();
    let exit = ended(&world, &executor, ID).await;
    executor.start(&world.exits(ID, 3)).await.unwrap();
    world
        .restart()
        .await
        .start(&world.runs_until_cancelled(ID))
        .await
        .unwrap();
    assert_eq!(look(&world, &executor, ID).await, Observation::Exited(exit));
    assert_eq!(world.starts(ID).await, 1);
    tidy(&executor, &[ID]).await;
}

async fn two_instances_start_one_thing(world: World) {
    let instances = [world.executor(), world.restart().await];
    for attempt in 1..=4 {
        let id = run(1, attempt);
        let spec = world.exits(id, 3);
        let started = together(8, |index| {
            let (executor, spec) = (instances[index % 2].clone(), spec.clone());
            async move { executor.start(&spec).await }
        });
        for result in started.await {
            // Losing the race may look like an outage, never like anything else.
            let error = result.err().map(|error| error.kind());
            assert!(error.is_none_or(|kind| kind == ErrorKind::Unavailable), "{error:?}");
        }
        let exits = [
            ended(&world, &instances[0], id).await,
            ended(&world, &instances[1], id).await,
        ];
        assert_eq!(exits[0], exits[1]);
        assert_eq!((exits[0].code, world.starts(id).await), (Some(3), 1));
        tidy(&instances[1], &[id]).await;
    }
}

async fn an_impossible_spec_is_invalid(world: World) {
    let executor = world.executor();
    assert_eq!(kind(executor.start(&world.impossible(ID)).await), ErrorKind::Invalid);
    assert_eq!(look(&world, &executor, ID).await, Observation::Absent);
    assert_eq!(executor.list().await.unwrap(), []);
}

async fn an_environment_is_what_was_asked(world: World) {
    let Some(mut spec) = world.checks_environment(ID) else {
        return;
    };
    let executor = world.executor();
    spec.environment.insert("GREETING".to_owned(), "a 'b' $c".to_owned());
    spec.ticket = Some(dbtcloud_core::secret::Secret::new("the-ticket"));
    executor.start(&spec).await.unwrap();
    let exit = ended(&world, &executor, ID).await;
    assert_eq!(exit.code, Some(0), "{}", exit.message);
    tidy(&executor, &[ID]).await;
}

async fn an_interrupt_ends_what_listens(world: World) {
    let executor = world.executor();
    begun(&world, &executor, &world.runs_until_cancelled(ID)).await;
    executor.cancel(ID, LONG).await.unwrap();
    ended(&world, &executor, ID).await;
    tidy(&executor, &[ID]).await;
}

async fn what_ignores_an_interrupt_is_ended_after_the_grace(world: World) {
    let executor = world.executor();
    begun(&world, &executor, &world.ignores_interrupt(ID)).await;
    executor.cancel(ID, SHORT).await.unwrap();
    let exit = ended(&world, &executor, ID).await;
    assert_ne!(exit.code, Some(0), "it did not end by itself: {exit:?}");
    tidy(&executor, &[ID]).await;
}

async fn a_shorter_grace_shortens(world: World) {
    let executor = world.executor();
    begun(&world, &executor, &world.ignores_interrupt(ID)).await;
    executor.cancel(ID, LONG).await.unwrap();
    let seen = look(&world, &executor, ID).await;
    assert!(
        matches!(seen, Observation::Running { .. }),
        "it has its grace: {seen:?}"
    );
    executor.cancel(ID, SHORT).await.unwrap();
    ended(&world, &executor, ID).await;
    tidy(&executor, &[ID]).await;
}

async fn a_longer_grace_does_not_lengthen(world: World) {
    let executor = world.executor();
    begun(&world, &executor, &world.ignores_interrupt(ID)).await;
    executor.cancel(ID, SHORT).await.unwrap();
    executor.cancel(ID, LONG).await.unwrap();
    ended(&world, &executor, ID).await;
    tidy(&executor, &[ID]).await;
}

async fn a_cancellation_outlives_its_caller(world: World) {
    let executor = world.executor();
    begun(&world, &executor, &world.ignores_interrupt(ID)).await;
    executor.cancel(ID, SHORT).await.unwrap();
    drop(executor);
    let executor = world.restart().await;
    ended(&world, &executor, ID).await;
    tidy(&executor, &[ID]).await;
}

async fn cancelling_what_is_absent_or_ended_is_fine(world: World) {
    let executor = world.executor();
    executor.cancel(run(9, 9), SHORT).await.unwrap();
    assert_eq!(look(&world, &executor, run(9, 9)).await, Observation::Absent);
    executor.start(&world.exits(ID, 3)).await.unwrap();
    let exit = ended(&world, &executor, ID).await;
    executor.cancel(ID, Duration::ZERO).await.unwrap();
    assert_eq!(look(&world, &executor, ID).await, Observation::Exited(exit));
    tidy(&executor, &[ID]).await;
}

/// Waits until so many children run.
async fn children(world: &World, wanted: fn(usize) -> bool) {
    until(world.patience(), || async {
        let count = world.children(ID).await;
        if wanted(count) { Ok(()) } else { Err(count) }
    })
    .await;
}

async fn children_end_with_a_cancelled_parent(world: World) {
    let Some(spec) = world.spawns_children(ID, true) else {
        return;
    };
    let executor = world.executor();
    begun(&world, &executor, &spec).await;
    children(&world, |count| count > 0).await;
    executor.cancel(ID, SHORT).await.unwrap();
    ended(&world, &executor, ID).await;
    assert_eq!(
        world.children(ID).await,
        0,
        "it has ended when everything it started has"
    );
    tidy(&executor, &[ID]).await;
}

async fn children_end_with_a_parent_that_left(world: World) {
    let Some(spec) = world.spawns_children(ID, false) else {
        return;
    };
    let executor = world.executor();
    executor.start(&spec).await.unwrap();
    assert_eq!(ended(&world, &executor, ID).await.code, Some(0));
    assert_eq!(world.children(ID).await, 0, "nobody is left behind");
    tidy(&executor, &[ID]).await;
}

async fn children_end_with_a_removed_parent(world: World) {
    let Some(spec) = world.spawns_children(ID, true) else {
        return;
    };
    let executor = world.executor();
    begun(&world, &executor, &spec).await;
    children(&world, |count| count > 0).await;
    executor.remove(ID).await.unwrap();
    children(&world, |count| count == 0).await;
    assert_eq!(look(&world, &executor, ID).await, Observation::Absent);
}

async fn a_service_answers_at_its_address(world: World) {
    let executor = world.executor();
    let spec = world.serves(ID);
    assert_eq!(spec.workload, Workload::Service, "the fixture's service is one");
    executor.start(&spec).await.unwrap();
    let address = runs(&world, &executor, &spec).await.expect("a service has an address");
    assert!(
        world.answers(&address).await,
        "it tells its address once it answers: {address}"
    );
    tidy(&executor, &[ID]).await;
}

async fn a_service_is_found_again(world: World) {
    let executor = world.executor();
    let spec = world.serves(ID);
    executor.start(&spec).await.unwrap();
    let address = runs(&world, &executor, &spec).await;
    drop(executor);
    let executor = world.restart().await;
    assert_eq!(look(&world, &executor, ID).await, Observation::Running { address });
    tidy(&executor, &[ID]).await;
}

async fn a_service_ends_when_it_is_cancelled(world: World) {
    let executor = world.executor();
    let spec = world.serves(ID);
    executor.start(&spec).await.unwrap();
    let address = runs(&world, &executor, &spec).await.expect("a service has an address");
    executor.cancel(ID, Duration::from_secs(5)).await.unwrap();
    ended(&world, &executor, ID).await;
    assert!(!world.answers(&address).await, "nobody answers there any more");
    tidy(&executor, &[ID]).await;
}

async fn what_runs_is_found_again(world: World) {
    let executor = world.executor();
    let spec = world.runs_until_cancelled(ID);
    begun(&world, &executor, &spec).await;
    let listed = executor.list().await.unwrap();
    drop(executor);
    let executor = world.restart().await;
    assert!(matches!(look(&world, &executor, ID).await, Observation::Running { .. }));
    assert_eq!(executor.list().await.unwrap(), listed);
    tidy(&executor, &[ID]).await;
}

async fn what_runs_can_be_cancelled_by_another_instance(world: World) {
    let executor = world.executor();
    begun(&world, &executor, &world.runs_until_cancelled(ID)).await;
    let other = world.restart().await;
    other.cancel(ID, LONG).await.unwrap();
    let seen = [ended(&world, &executor, ID).await, ended(&world, &other, ID).await];
    assert_eq!(seen[0], seen[1]);
    tidy(&other, &[ID]).await;
}

async fn removing_what_runs_ends_it(world: World) {
    let executor = world.executor();
    let spec = world.serves(ID);
    executor.start(&spec).await.unwrap();
    let address = runs(&world, &executor, &spec).await.expect("a service has an address");
    executor.remove(ID).await.unwrap();
    assert_eq!(look(&world, &executor, ID).await, Observation::Absent);
    until(world.patience(), || async {
        if world.answers(&address).await {
            Err("it answers still")
        } else {
            Ok(())
        }
    })
    .await;
}

async fn removing_what_is_absent_is_fine(world: World) {
    let executor = world.executor();
    executor.remove(ID).await.unwrap();
    executor.start(&world.exits(ID, 0)).await.unwrap();
    ended(&world, &executor, ID).await;
    executor.remove(ID).await.unwrap();
    executor.remove(ID).await.unwrap();
    assert_eq!(look(&world, &executor, ID).await, Observation::Absent);
}

async fn the_list_has_all_that_is_not_absent(world: World) {
    let executor = world.executor();
    let (running, gone) = (run(1, 2), run(1, 3));
    executor.start(&world.exits(ID, 0)).await.unwrap();
    begun(&world, &executor, &world.runs_until_cancelled(running)).await;
    executor.start(&world.exits(gone, 0)).await.unwrap();
    ended(&world, &executor, ID).await;
    executor.remove(gone).await.unwrap();
    let listed: BTreeSet<_> = executor.list().await.unwrap().into_iter().map(|one| one.id).collect();
    assert_eq!(listed, BTreeSet::from([ID, running]));
    tidy(&executor, &[ID, running]).await;
}

async fn names_are_apart(world: World) {
    let executor = world.executor();
    let session = ExecutionId::Session {
        session: SessionId::new(1),
        generation: 1,
    };
    let ids = [run(1, 1), run(1, 11), run(11, 1), session];
    for (id, code) in ids.into_iter().zip(10..) {
        executor.start(&world.exits(id, code)).await.unwrap();
    }
    for (id, code) in ids.into_iter().zip(10..) {
        assert_eq!(ended(&world, &executor, id).await.code, Some(code), "{id}");
    }
    executor.remove(run(1, 1)).await.unwrap();
    assert_eq!(executor.list().await.unwrap().len(), 3);
    tidy(&executor, &ids).await;
}
