//! The environment store against real uv and a real package index.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

mod engine_support;

use std::process::Command;
use std::time::{Duration, Instant};

use dbtcloud_runtime::engine::version::{TESTED_CORE, TESTED_CORE_1_12};
use dbtcloud_runtime::engine::{
    Engine, EngineConfig, EngineError, EnvironmentSpec, EnvironmentStore, ExitStatus, WarmOptions,
};
use engine_support::*;

/// A fresh store with the shared cache of packages, so that it costs a second and not a download.
fn fresh(root: &std::path::Path) -> EnvironmentStore {
    let mut env = uv_env();
    env.insert(
        "UV_CACHE_DIR".into(),
        workspace()
            .join(".cache/dbt-envs/.uv-cache")
            .to_string_lossy()
            .into_owned(),
    );
    EnvironmentStore::new(root, uv()).with_uv_env(env)
}

#[tokio::test]
async fn concurrent_calls_build_once_and_the_second_needs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (fresh(dir.path()), fresh(dir.path()));
    let spec = EnvironmentSpec::new("1.11", "duckdb");
    let (a, b) = tokio::join!(a.ensure(&spec), b.ensure(&spec));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b);
    assert_eq!(
        (a.info.dbt_version.as_str(), a.info.adapter.as_str()),
        (TESTED_CORE, "duckdb")
    );
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with(".building")
        })
        .collect();
    assert!(left.is_empty());
    assert!(a.dbt().is_file(), "its scripts moved with it");
    let imported = Command::new(a.python())
        .args(["-I", "-c", "import dbt.adapters.duckdb"])
        .env_clear()
        .status()
        .unwrap();
    assert!(imported.success());

    // Brought along by an image: found where nothing can be written, and nothing is made in the store's own root.
    let own = dir.path().join("own");
    let image = EnvironmentStore::new(&own, "/nowhere/uv").with_ready(Some(dir.path().into()));
    assert_eq!(image.ensure(&spec).await.unwrap(), a);
    assert!(!own.exists());

    // Neither uv nor an index: neither exists here.
    let offline = EnvironmentStore::new(dir.path(), "/nowhere/uv");
    let start = Instant::now();
    assert_eq!(offline.ensure(&spec).await.unwrap(), a);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn what_cannot_be_installed_says_so_in_uvs_words() {
    let dir = tempfile::tempdir().unwrap();
    let error = fresh(dir.path())
        .ensure(&EnvironmentSpec::new("1.11.999", "duckdb"))
        .await
        .unwrap_err();
    let EngineError::NotInstallable {
        dbt_version,
        adapter,
        detail,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(
        (dbt_version.as_str(), adapter.as_str()),
        ("dbt-core==1.11.999", "duckdb")
    );
    assert!(detail.contains("1.11.999") && detail.len() <= 4096, "{detail}");
    assert!(
        std::fs::read_dir(dir.path())
            .unwrap()
            .all(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with('.') })
    );

    let no_python = EnvironmentSpec {
        python: "3.99".into(),
        ..EnvironmentSpec::new("1.11", "duckdb")
    };
    let error = fresh(dir.path()).ensure(&no_python).await.unwrap_err();
    assert!(matches!(error, EngineError::NotInstallable { .. }), "{error:?}");

    let no_uv = EnvironmentStore::new(dir.path(), "/nowhere/uv")
        .ensure(&EnvironmentSpec::new("1.11", "postgres"))
        .await
        .unwrap_err();
    assert!(matches!(no_uv, EngineError::Uv { .. }), "{no_uv:?}");
}

/// The finding behind `version::OVERRIDE_1_12`: it installs, and it runs, both ways.
#[tokio::test]
async fn dbt_1_12_works_without_its_parser() {
    let dir = tempfile::tempdir().unwrap();
    let spec = EnvironmentSpec::new("1.12.0-latest", "duckdb");
    for warm in [
        None,
        Some(WarmOptions {
            idle: Duration::from_secs(20),
            ..WarmOptions::default()
        }),
    ] {
        let expected = if warm.is_some() { "warm" } else { "cli" };
        let mut config = EngineConfig::new(store(), dir.path().join("run"), "a");
        config.warm = warm;
        let prepared = Engine::new(config).prepare(&spec).await.unwrap();
        assert_eq!(prepared.environment().unwrap().info.dbt_version, TESTED_CORE_1_12);
        let project = Project::duckdb();
        for command in [&["seed"][..], &["run"], &["test"], &["docs", "generate"]] {
            let said = run(&prepared, &project.command(command)).await;
            let reply = said.reply.unwrap();
            assert_eq!((reply.backend, &reply.fallback_reason), (expected, &None));
            assert_eq!(
                reply.exit.status,
                ExitStatus::Code(0),
                "{command:?}: {}{}",
                said.stdout,
                said.stderr
            );
        }
    }
}
