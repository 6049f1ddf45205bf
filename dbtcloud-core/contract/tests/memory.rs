//! Every suite on the model itself.

#![allow(clippy::unwrap_used, reason = "a test fails loudly, its fixture too")]

use std::sync::Arc;

use async_trait::async_trait;
use dbtcloud_contract::memory::{
    MemoryArtifacts, MemoryStorage, Script, ScriptedExecutor, TemporaryVolume, TransparentVault, WallClock,
};
use dbtcloud_contract::suite::Subject;
use dbtcloud_contract::suite::executor::{Fixture, plain_spec};
use dbtcloud_contract::suite::vault::Vaults;
use dbtcloud_core::ports::{ExecutionId, ExecutionSpec, Executor, Observation, Workload};

dbtcloud_contract::storage_suite!(storage, || async { Subject::storage(MemoryStorage::new()) });
dbtcloud_contract::artifacts_suite!(artifacts, || async { Subject::artifacts(MemoryArtifacts::new()) });
dbtcloud_contract::volume_suite!(volume, || async { Subject::volume(TemporaryVolume::new()) });
dbtcloud_contract::clock_suite!(clock, || async { Subject::clock(WallClock) });
dbtcloud_contract::executor_suite!(executor, || async { Subject::executor(Scripted::new()) });
dbtcloud_contract::vault_suite!(vault, || async {
    let vault = TransparentVault::new("first");
    Subject::new(Vaults {
        rotated: Arc::new(vault.rotated("second")),
        vault: Arc::new(vault),
        stranger: Arc::new(TransparentVault::new("other")),
    })
});

struct Scripted {
    executor: ScriptedExecutor,
}

impl Scripted {
    fn new() -> Self {
        Self {
            executor: ScriptedExecutor::new(WallClock),
        }
    }

    fn scripted(&self, id: ExecutionId, script: Script) -> ExecutionSpec {
        // A second call of `start` must not change what the first one started.
        if self.executor.starts(id) == 0 {
            self.executor.script(id, script);
        }
        plain_spec(id)
    }
}

#[async_trait]
impl Fixture for Scripted {
    fn executor(&self) -> Arc<dyn Executor> {
        Arc::new(self.executor.clone())
    }

    async fn restart(&self) -> Arc<dyn Executor> {
        self.executor()
    }

    fn exits(&self, id: ExecutionId, code: i32) -> ExecutionSpec {
        self.scripted(id, Script::exits(code))
    }

    fn runs_until_cancelled(&self, id: ExecutionId) -> ExecutionSpec {
        self.scripted(id, Script::Run)
    }

    fn ignores_interrupt(&self, id: ExecutionId) -> ExecutionSpec {
        self.scripted(id, Script::Ignore)
    }

    fn serves(&self, id: ExecutionId) -> ExecutionSpec {
        ExecutionSpec {
            workload: Workload::Service,
            ..self.scripted(id, Script::Run)
        }
    }

    fn impossible(&self, id: ExecutionId) -> ExecutionSpec {
        self.scripted(id, Script::Refuse)
    }

    async fn starts(&self, id: ExecutionId) -> usize {
        self.executor.starts(id)
    }

    async fn answers(&self, address: &str) -> bool {
        for execution in self.executor.list().await.unwrap() {
            let seen = self.executor.observe(execution.id).await.unwrap();
            if seen
                == (Observation::Running {
                    address: Some(address.to_owned()),
                })
            {
                return true;
            }
        }
        false
    }
}
