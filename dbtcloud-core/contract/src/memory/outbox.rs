use async_trait::async_trait;
use dbtcloud_core::error::Result;
use dbtcloud_core::id::RunId;
use dbtcloud_core::ports::{Consumer, Delivery, Event, EventBody, Outbox};
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::state::{Mutation, State, StoredDelivery, StoredRun};

impl State {
    /// Writes down who is to be told of an event.
    pub(super) fn post(&self, stored: &mut StoredRun, event: &Event) {
        let EventBody::Run { status, .. } = event.body else {
            return;
        };
        if self.breaks(Mutation::ForgetConsumers) {
            return;
        }
        for consumer in Consumer::of(status) {
            let delivery = StoredDelivery {
                due_at: event.at,
                tries: 0,
            };
            stored.deliveries.insert((consumer, event.sequence), delivery);
        }
    }

    /// What is offered to a consumer: when it was due, and which.
    fn offered(&self, consumer: Consumer, now: Timestamp) -> Vec<(Timestamp, RunId, u64)> {
        let mut offered = Vec::new();
        for (run, stored) in &self.runs {
            let of_consumer = stored.deliveries.iter().filter(|((whose, _), _)| *whose == consumer);
            let earliest = if self.breaks(Mutation::IgnoreOrder) {
                usize::MAX
            } else {
                1
            };
            let due = of_consumer
                .take(earliest)
                .filter(|(_, delivery)| delivery.due_at <= now);
            offered.extend(due.map(|((_, sequence), delivery)| (delivery.due_at, *run, *sequence)));
        }
        offered.sort();
        offered
    }

    fn delivery(&mut self, consumer: Consumer, run: RunId, sequence: u64) -> Option<&mut StoredDelivery> {
        self.runs.get_mut(&run)?.deliveries.get_mut(&(consumer, sequence))
    }
}

#[async_trait]
impl Outbox for MemoryStorage {
    async fn take(&self, consumer: Consumer, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Delivery>> {
        let mut state = self.lock();
        let careless = state.breaks(Mutation::OfferTwice);
        let mut taken = Vec::new();
        for (_, run, sequence) in state.offered(consumer, now).into_iter().take(limit as usize) {
            let Some(delivery) = state.delivery(consumer, run, sequence) else {
                continue;
            };
            delivery.tries += 1;
            if !careless {
                delivery.due_at = until;
            }
            let tries = delivery.tries;
            let journal = state.runs.get(&run).map(|stored| &stored.journal);
            let event = journal.and_then(|journal| journal.iter().find(|event| event.sequence == sequence));
            taken.extend(event.map(|event| Delivery {
                event: event.clone(),
                tries,
            }));
        }
        taken.sort_by_key(|delivery| (delivery.event.run, delivery.event.sequence));
        Ok(taken)
    }

    async fn delivered(&self, consumer: Consumer, run: RunId, sequence: u64) -> Result<()> {
        if let Some(stored) = self.lock().runs.get_mut(&run) {
            stored.deliveries.remove(&(consumer, sequence));
        }
        Ok(())
    }

    async fn postpone(&self, consumer: Consumer, run: RunId, sequence: u64, until: Timestamp) -> Result<()> {
        if let Some(delivery) = self.lock().delivery(consumer, run, sequence) {
            delivery.due_at = until;
        }
        Ok(())
    }

    async fn depth(&self, consumer: Consumer) -> Result<u64> {
        let state = self.lock();
        let all = state.runs.values().flat_map(|stored| stored.deliveries.keys());
        Ok(all.filter(|(whose, _)| *whose == consumer).count() as u64)
    }
}
