use async_trait::async_trait;
use dbtcloud_core::error::Result;
use dbtcloud_core::id::JobId;
use dbtcloud_core::ports::{Enqueued, Fired, Firing, ScheduleEntry, Schedules};
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::state::{Mutation, State, check_new};

#[async_trait]
impl Schedules for MemoryStorage {
    async fn put(&self, entry: &ScheduleEntry, _now: Timestamp) -> Result<()> {
        let mut state = self.lock();
        // A job that is off the clock keeps its entry: an older version must not bring it back.
        if state
            .schedules
            .get(&entry.job)
            .is_none_or(|stored| stored.job_version <= entry.job_version)
        {
            state.schedules.insert(entry.job, entry.clone());
        }
        Ok(())
    }

    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<ScheduleEntry>> {
        let state = self.lock();
        let is_due = |entry: &&ScheduleEntry| entry.next_at.is_some_and(|at| at <= now);
        let mut due: Vec<ScheduleEntry> = state.schedules.values().filter(is_due).cloned().collect();
        due.sort_by_key(|entry| (entry.next_at, entry.job));
        due.truncate(limit as usize);
        Ok(due)
    }

    async fn next(&self) -> Result<Option<Timestamp>> {
        Ok(self.lock().schedules.values().filter_map(|entry| entry.next_at).min())
    }

    async fn of(&self, jobs: &[JobId]) -> Result<Vec<ScheduleEntry>> {
        let state = self.lock();
        Ok(state
            .schedules
            .values()
            .filter(|entry| jobs.contains(&entry.job))
            .cloned()
            .collect())
    }

    async fn fire(&self, firings: &[Firing], now: Timestamp) -> Result<Vec<Fired>> {
        Firing::check(firings)?;
        let mut state = self.lock();
        if !state.breaks(Mutation::FireHalf) {
            let standing = firings.iter().filter(|firing| state.stands(firing));
            standing
                .filter_map(|firing| firing.run.as_ref())
                .try_for_each(check_new)?;
        }
        firings.iter().map(|firing| state.fire(firing, now)).collect()
    }
}

impl State {
    fn stands(&self, firing: &Firing) -> bool {
        let stands =
            |entry: &ScheduleEntry| entry.next_at == Some(firing.seen) && entry.job_version == firing.job_version;
        self.schedules.get(&firing.job).is_some_and(stands) || self.breaks(Mutation::IgnoreHands)
    }

    fn fire(&mut self, firing: &Firing, now: Timestamp) -> Result<Fired> {
        if !self.stands(firing) {
            return Ok(Fired::Lost);
        }
        let fired = match &firing.run {
            Some(new) => match self.enqueue(new, now)? {
                Enqueued::Created(run) => Fired::Queued(Box::new(run)),
                Enqueued::Existing(_) => Fired::Moved,
            },
            None => Fired::Moved,
        };
        if let Some(entry) = self.schedules.get_mut(&firing.job) {
            entry.next_at = firing.next;
        }
        Ok(fired)
    }
}
