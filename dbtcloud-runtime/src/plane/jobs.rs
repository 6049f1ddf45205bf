//! Jobs and their clock hands, kept together.

use dbtcloud_core::audit::Actor;
use dbtcloud_core::catalog::{CatalogExt, Record};
use dbtcloud_core::environment::Environment;
use dbtcloud_core::id::AccountId;
use dbtcloud_core::job::Job;
use dbtcloud_core::ports::{Bell, ScheduleEntry};
use dbtcloud_core::project::Project;
use dbtcloud_core::{Error, ErrorKind, Result};

use super::ControlPlane;

impl ControlPlane {
    /// Stores a new job and puts it on the clock. On `Ok` it will fire when it is due.
    ///
    /// # Errors
    /// `Invalid`, naming the field, also for a project or environment that is not in the account.
    pub async fn create_job(&self, by: &Actor, account: AccountId, job: Job) -> Result<Record<Job>> {
        self.check_job(account, &job).await?;
        let record = self.catalog().create_by(by, account, &job, self.clock().now()).await?;
        self.set_hand(&record).await?;
        Ok(record)
    }

    /// Writes a job back, deleted or not, and sets its hand anew. Saving a deactivated job's triggers
    /// makes it active again (dbt Cloud's rule).
    ///
    /// # Errors
    /// As [`ControlPlane::create_job`]; `Conflict` when somebody else wrote it meanwhile.
    pub async fn save_job(&self, by: &Actor, record: &Record<Job>) -> Result<Record<Job>> {
        if !record.deleted {
            self.check_job(record.account, &record.body).await?;
        }
        let record = self.catalog().save_by(by, record, self.clock().now()).await?;
        self.set_hand(&record).await?;
        Ok(record)
    }

    /// Sets a job's clock hand from what the record says. Called by the cleanup chore too, so that a crash
    /// between record and hand heals.
    ///
    /// # Errors
    /// Those of storage.
    pub async fn set_hand(&self, record: &Record<Job>) -> Result<()> {
        let now = self.clock().now();
        let next_at = record
            .active_schedule()
            .filter(|_| !record.deleted)
            .and_then(|schedule| schedule.next_after(now));
        let entry = ScheduleEntry {
            account: record.account,
            job: record.id,
            job_version: record.version,
            next_at,
        };
        self.schedules().put(&entry, now).await?;
        self.ring(Bell::Queue);
        Ok(())
    }

    async fn check_job(&self, account: AccountId, job: &Job) -> Result<()> {
        job.validate()?;
        let here = |field: &'static str| {
            move |error: Error| match error.kind() {
                ErrorKind::NotFound => Error::invalid(field, "expected one that exists in this account"),
                _ => error,
            }
        };
        self.catalog()
            .fetch::<Project>(account, job.project)
            .await
            .map_err(here("project_id"))?;
        let environment = self
            .catalog()
            .fetch::<Environment>(account, job.environment)
            .await
            .map_err(here("environment_id"))?;
        if environment.project != job.project {
            return Err(Error::invalid(
                "environment_id",
                "expected an environment of the job's project",
            ));
        }
        if let Some(schedule) = job.active_schedule()
            && schedule.next_after(self.clock().now()).is_none()
        {
            return Err(Error::invalid(
                "schedule",
                "expected a schedule that fires; this one never does",
            ));
        }
        Ok(())
    }
}
