use std::collections::BTreeMap;

use async_trait::async_trait;
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::id::AccountId;
use dbtcloud_core::page::{Direction, Page, Paged};
use dbtcloud_core::ports::{
    Addressee, Channel, Dispatch, DispatchId, DispatchState, Dispatched, Dispatches, Next, Try,
};
use dbtcloud_core::time::Timestamp;

use super::MemoryStorage;
use super::catalog::cut;
use super::state::{Mutation, State, check_text};

impl State {
    /// What is offered of a channel: the place among its addressee's, when it was due, and which.
    fn offers(&self, channel: Channel, now: Timestamp, except: &[Addressee]) -> Vec<(u32, Timestamp, DispatchId)> {
        let waiting = || {
            let all = self.dispatches.iter();
            all.filter(|(_, (sent, _))| sent.state == DispatchState::Waiting)
        };
        let earliest = |id: &DispatchId| {
            waiting().all(|(other, _)| {
                (other.to, other.run) != (id.to, id.run) || (other.sequence, other.part) >= (id.sequence, id.part)
            })
        };
        let mut due: Vec<(Timestamp, DispatchId)> = waiting()
            .filter(|(id, (_, due_at))| id.to.channel() == channel && *due_at <= now && !except.contains(&id.to))
            .filter(|(id, _)| earliest(id))
            .map(|(id, (_, due_at))| (*due_at, *id))
            .collect();
        due.sort_by_key(|(due_at, id)| (*due_at, id.run, id.sequence, id.part, id.to));
        let mut places = BTreeMap::<Addressee, u32>::new();
        let mut offers: Vec<_> = due
            .into_iter()
            .map(|(due_at, id)| {
                let place = places.entry(id.to).or_default();
                *place += 1;
                (*place, due_at, id)
            })
            .collect();
        offers.sort_by_key(|(place, due_at, id)| (*place, *due_at, id.run, id.sequence, id.part, id.to));
        offers
    }
}

#[async_trait]
impl Dispatches for MemoryStorage {
    async fn post(&self, dispatches: &[Dispatch]) -> Result<()> {
        for dispatch in dispatches {
            check_text("dispatch", &(&dispatch.event, &dispatch.body))?;
        }
        let mut state = self.lock();
        for dispatch in dispatches {
            let posted = Dispatched {
                dispatch: dispatch.clone(),
                state: DispatchState::Waiting,
                tries: 0,
                last: None,
            };
            let due_at = dispatch.created_at;
            state.dispatches.entry(dispatch.id).or_insert((posted, due_at));
        }
        Ok(())
    }

    async fn take(
        &self,
        channel: Channel,
        now: Timestamp,
        until: Timestamp,
        limit: u32,
        each: u32,
        except: &[Addressee],
    ) -> Result<Vec<Dispatched>> {
        let mut state = self.lock();
        let (careless, crowded) = (state.breaks(Mutation::SendTwice), state.breaks(Mutation::CrowdOut));
        let offers = state.offers(channel, now, except);
        let offers = offers.into_iter().filter(|(place, ..)| *place <= each || crowded);
        let mut taken = Vec::new();
        for (_, _, id) in offers.take(limit as usize) {
            let Some((sent, due_at)) = state.dispatches.get_mut(&id) else {
                continue;
            };
            sent.tries += 1;
            if !careless {
                *due_at = until;
            }
            taken.push(sent.clone());
        }
        taken.sort_by_key(|taken| taken.dispatch.id);
        Ok(taken)
    }

    async fn settle(&self, id: &DispatchId, tried: &Try, next: Next) -> Result<()> {
        check_text("answer", &(&tried.error, &tried.answer))?;
        let mut state = self.lock();
        if let Some((sent, due_at)) = state.dispatches.get_mut(id)
            && sent.state == DispatchState::Waiting
        {
            sent.last = Some(tried.clone());
            match next {
                Next::Again(at) => *due_at = at,
                Next::End(ended) => sent.state = ended,
            }
        }
        Ok(())
    }

    async fn dispatch(&self, account: AccountId, id: &DispatchId) -> Result<Dispatched> {
        let state = self.lock();
        let found = state.dispatches.get(id).map(|(sent, _)| sent);
        found
            .filter(|sent| sent.dispatch.account == account || state.breaks(Mutation::ShowDispatches))
            .cloned()
            .ok_or_else(|| Error::not_found("dispatch", format!("of run {}", id.run)))
    }

    async fn dispatches(&self, account: AccountId, to: Addressee, page: Page) -> Result<Paged<Dispatched>> {
        let state = self.lock();
        let mut found: Vec<Dispatched> = state
            .dispatches
            .values()
            .map(|(sent, _)| sent)
            .filter(|sent| sent.dispatch.id.to == to)
            .filter(|sent| sent.dispatch.account == account || state.breaks(Mutation::ShowDispatches))
            .cloned()
            .collect();
        found.sort_by_key(|sent| {
            let id = sent.dispatch.id;
            (sent.dispatch.created_at, id.run, id.sequence, id.part)
        });
        Ok(cut(found, Direction::Descending, page))
    }

    async fn last_tries(&self, to: Addressee, ended: bool, limit: u32) -> Result<Vec<Dispatched>> {
        let settled = [DispatchState::Delivered, DispatchState::Failed];
        let mut found: Vec<Dispatched> = self
            .lock()
            .dispatches
            .values()
            .map(|(sent, _)| sent)
            .filter(|sent| sent.dispatch.id.to == to && sent.last.is_some())
            .filter(|sent| !ended || settled.contains(&sent.state))
            .cloned()
            .collect();
        found.sort_by_key(|sent| {
            let id = sent.dispatch.id;
            (sent.last.as_ref().map(|last| last.at), id.run, id.sequence, id.part)
        });
        Ok(found.into_iter().rev().take(limit as usize).collect())
    }

    async fn undelivered(&self, channel: Channel) -> Result<u64> {
        let state = self.lock();
        let of_channel = state.dispatches.iter().filter(|(id, _)| id.to.channel() == channel);
        Ok(of_channel
            .filter(|(_, (sent, _))| sent.state == DispatchState::Waiting)
            .count() as u64)
    }

    async fn old_dispatches(&self, before: Timestamp) -> Result<u64> {
        let state = self.lock();
        let old = state
            .dispatches
            .values()
            .filter(|(sent, _)| sent.state != DispatchState::Waiting && sent.dispatch.created_at < before);
        Ok(old.count() as u64)
    }

    async fn forget_dispatches(&self, before: Timestamp, limit: u32) -> Result<u64> {
        let mut state = self.lock();
        let old = state
            .dispatches
            .iter()
            .filter(|(_, (sent, _))| sent.state != DispatchState::Waiting && sent.dispatch.created_at < before);
        let old: Vec<DispatchId> = old.map(|(id, _)| *id).take(limit as usize).collect();
        for id in &old {
            state.dispatches.remove(id);
        }
        Ok(old.len() as u64)
    }
}
