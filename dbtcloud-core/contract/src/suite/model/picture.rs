//! Everything that can be read of one side.

use std::fmt::{Debug, Write};

use dbtcloud_core::catalog::{Query, SortKey};
use dbtcloud_core::error::{Error, Result};
use dbtcloud_core::id::{JobId, RunId};
use dbtcloud_core::page::{Direction, Page};
use dbtcloud_core::ports::{Consumer, RunFilter, RunSort};

use super::side::{KINDS, Side};
use crate::suite::samples::{ACCOUNT, STRANGER, at};

impl Side {
    /// Everything that can be read.
    pub(super) async fn picture(&self) -> String {
        match self.read_all().await {
            Ok(text) => text,
            Err(error) => format!("cannot be read: {}", error.chain()),
        }
    }

    async fn read_all(&self) -> Result<String> {
        let mut text = String::new();
        let mut write = |what: &dyn Debug| writeln!(text, "{what:#?}").map_err(|e| Error::corrupt("text").because(e));
        for (account, id) in &self.runs {
            write(&self.plain(self.stores.runs.get(*account, *id).await?))?;
            for mut step in self.stores.runs.steps(*account, *id).await? {
                let page = self
                    .stores
                    .logs
                    .read(*account, *id, step.state.index, 0, 1_000_000)
                    .await?;
                step.id = 0.into();
                step.run = 0.into();
                step.updated_at = at(0);
                write(&(step, page))?;
            }
            for event in self.stores.journal.of_run(*account, *id, 0, 10_000).await? {
                write(&(event.at, self.plain_body(event.body)))?;
            }
        }
        for account in [ACCOUNT, STRANGER] {
            write(&self.stores.runs.queued(account).await?)?;
            for (sort, direction) in [
                (RunSort::FinishedAt, Direction::Ascending),
                (RunSort::CreatedAt, Direction::Descending),
            ] {
                let filter = RunFilter {
                    sort,
                    direction,
                    ..RunFilter::default()
                };
                let page = self.stores.runs.list(account, &filter, Page::new(5, 1)).await?;
                let items: Vec<_> = page.items.into_iter().map(|run| self.plain(run)).collect();
                write(&(items, page.total))?;
            }
            for kind in KINDS {
                let query = Query {
                    sort: SortKey::Name,
                    name_contains: Some("ORD".into()),
                    ..Query::new(kind, account)
                };
                for query in [
                    query,
                    Query {
                        deleted: None,
                        ..Query::new(kind, account)
                    },
                ] {
                    let page = self.stores.catalog.list(&query, Page::new(50, 0)).await?;
                    let items: Vec<_> = page.items.into_iter().map(|row| self.plain_row(row)).collect();
                    write(&(items, page.total))?;
                }
            }
        }
        for lookup in 0..4 {
            for kind in KINDS {
                let found = self.stores.catalog.find(kind, &format!("lookup {lookup}")).await?;
                write(&found.map(|row| self.plain_row(row)))?;
            }
        }
        let busy = self.stores.runs.queue(self.now(), 1_000, None).await?.busy;
        let mut busy: Vec<_> = busy
            .into_iter()
            .map(|busy| (busy.run, busy.slot, busy.exclusive))
            .collect();
        busy.sort();
        let place = |run: RunId| self.runs.iter().position(|(_, id)| *id == run);
        write(
            &busy
                .into_iter()
                .map(|(run, slot, exclusive)| (place(run), slot, exclusive))
                .collect::<Vec<_>>(),
        )?;
        for job in 10..13 {
            let entries = self.stores.schedules.of(&[JobId::new(job)]).await?;
            write(
                &entries
                    .into_iter()
                    .filter(|entry| entry.next_at.is_some())
                    .collect::<Vec<_>>(),
            )?;
        }
        write(&self.stores.schedules.next().await?)?;
        for consumer in Consumer::ALL {
            write(&self.stores.outbox.depth(consumer).await?)?;
        }
        for id in &self.sessions {
            write(&self.plain_session(self.stores.sessions.get(ACCOUNT, *id).await?))?;
        }
        let unmoved = self.stores.logs.unmoved(RunId::new(0), 8, 1_000).await?;
        write(
            &unmoved
                .into_iter()
                .map(|(account, run)| (account, place(run)))
                .collect::<Vec<_>>(),
        )?;
        Ok(text)
    }
}
