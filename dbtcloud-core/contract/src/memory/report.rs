//! How an agent's report is taken in.

use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::ports::{
    Ack, BATCH_LIMIT_BYTES, BATCH_LIMIT_ITEMS, Batch, EventBody, Fence, Holder, RunPatch, Taken,
};
use dbtcloud_core::run::{RunEvent, RunStep};

use super::state::{Mutation, State, StoredRun, StoredStep, check_text, step_event};

impl State {
    pub(super) fn report(&mut self, fence: &Fence, batch: &Batch) -> Result<Ack> {
        check_batch(batch)?;
        let mut stored = self
            .runs
            .get(&fence.run())
            .cloned()
            .ok_or_else(|| Error::not_found("run", fence.run()))?;
        if !self.listens(&stored, fence) {
            return Err(Error::fenced(format!(
                "run {} does not listen to this agent any more",
                fence.run()
            )));
        }
        let before = stored.run.status;
        let ack = |stored: &StoredRun, fresh: bool| Ack {
            number: stored.taken,
            status: stored.run.status,
            taken: fresh.then(|| {
                Box::new(Taken {
                    before,
                    run: stored.run.clone(),
                })
            }),
        };
        if batch.number <= stored.taken && !self.breaks(Mutation::AcceptTwice) {
            return Ok(ack(&stored, self.breaks(Mutation::CountTwice)));
        }
        if batch.number > stored.taken + 1 && !self.breaks(Mutation::AcceptGaps) {
            return Err(Error::conflict(format!(
                "expected report {}, got {}",
                stored.taken + 1,
                batch.number
            )));
        }
        // Everything happens to the copy; it takes the original's place at the very end.
        let taken = self.take_in(&mut stored, batch);
        if taken.is_ok() {
            stored.taken = batch.number;
        }
        let answer = ack(&stored, true);
        if taken.is_ok() || self.breaks(Mutation::KeepHalves) {
            self.runs.insert(fence.run(), stored);
        }
        taken.map(|()| answer)
    }

    /// Whether the fence is that of an agent whose work still counts.
    fn listens(&self, stored: &StoredRun, fence: &Fence) -> bool {
        match fence.holder() {
            Holder::Agent { attempt } => {
                self.breaks(Mutation::IgnoreFence)
                    || attempt == stored.run.attempt && (stored.run.status.is_live() || stored.ended_by_agent)
            }
            Holder::Driver { .. } => false,
        }
    }

    fn take_in(&mut self, stored: &mut StoredRun, batch: &Batch) -> Result<()> {
        stored.run.heartbeat_at = Some(batch.at);
        stored.run.updated_at = batch.at;
        batch.patch.apply(&mut stored.run);
        let was_terminal = stored.run.status.is_terminal();
        // A beginning stands in the journal before what followed from it, an end after what led to it.
        let (first, last) = match batch.event {
            Some(RunEvent::Started) => (batch.event, None),
            event => (None, event),
        };
        self.take_event(stored, first, batch);
        for state in &batch.steps {
            let known = stored.steps.get_mut(&state.index);
            if let Some(known) = &known
                && !known.step.state.status.may_become(state.status)
            {
                return Err(Error::invalid(
                    "steps",
                    format!(
                        "step {} is {} and may not become {}",
                        state.index,
                        known.step.state.status.name(),
                        state.status.name()
                    ),
                ));
            }
            match known {
                Some(known) if known.step.state == *state => continue,
                Some(known) => {
                    known.step.state = state.clone();
                    known.step.updated_at = batch.at;
                }
                None => {
                    let step = RunStep {
                        id: self.counters.step(),
                        run: stored.run.id,
                        state: state.clone(),
                        created_at: batch.at,
                        updated_at: batch.at,
                        log_bytes: 0,
                        log_first: 0,
                        log_parts: Vec::new(),
                        log_object: None,
                    };
                    stored.steps.insert(state.index, StoredStep { step, log: Vec::new() });
                }
            }
            self.tell(stored, batch.at, step_event(state));
        }
        for node in &batch.nodes {
            self.tell(stored, batch.at, EventBody::Node { node: node.clone() });
        }
        for chunk in &batch.logs {
            let Some(step) = stored.steps.get_mut(&chunk.step) else {
                return Err(Error::invalid(
                    "logs",
                    format!("step {} was never reported", chunk.step),
                ));
            };
            if chunk.offset != step.step.log_bytes && !self.breaks(Mutation::IgnoreOffsets) {
                return Err(Error::conflict(format!(
                    "log of step {}: expected offset {}, got {}",
                    chunk.step, step.step.log_bytes, chunk.offset
                )));
            }
            step.log.extend_from_slice(&chunk.bytes);
            step.step.log_bytes += chunk.bytes.len() as u64;
            step.step.updated_at = batch.at;
        }
        self.take_event(stored, last, batch);
        stored.ended_by_agent |= !was_terminal && stored.run.status.is_terminal();
        Ok(())
    }

    fn take_event(&mut self, stored: &mut StoredRun, event: Option<RunEvent>, batch: &Batch) {
        let Some(event) = event else { return };
        // Illegal: something else was quicker. The rest of the report still counts.
        let Ok(to) = stored.run.status.apply(event) else {
            return;
        };
        let patch = RunPatch {
            message: batch.patch.message.clone(),
            ..RunPatch::default()
        };
        self.advance(stored, to, event, &patch, batch.at);
    }
}

fn check_batch(batch: &Batch) -> Result<()> {
    let bytes: usize = batch.logs.iter().map(|chunk| chunk.bytes.len()).sum();
    if bytes > BATCH_LIMIT_BYTES {
        return Err(Error::invalid(
            "logs",
            format!("expected at most {BATCH_LIMIT_BYTES} bytes, got {bytes}"),
        ));
    }
    let items = batch.steps.len() + batch.nodes.len() + batch.logs.len();
    if items > BATCH_LIMIT_ITEMS {
        return Err(Error::invalid(
            "batch",
            format!("expected at most {BATCH_LIMIT_ITEMS} items, got {items}"),
        ));
    }
    check_text("steps", &batch.steps)?;
    check_text("nodes", &batch.nodes)?;
    check_text("patch", &batch.patch)
}
