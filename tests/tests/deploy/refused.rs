//! Values that are wrong: each is told with its key, before anything is changed.

use crate::render::{helm, said};

/// What is set, and what is said about it.
const REFUSED: [(&str, &[&str]); 14] = [
    ("gatway.replicaCount=2", &["additional properties 'gatway' not allowed"]),
    ("gateway.replicas=2", &["'/gateway'", "'replicas' not allowed"]),
    (
        "gateway.replicaCount=many",
        &["'/gateway/replicaCount'", "want integer"],
    ),
    (
        "settings.retain_run_days=3",
        &["'/settings'", "'retain_run_days' not allowed"],
    ),
    // The chart says it itself.
    (
        "settings.database_url=postgres://x",
        &["'/settings'", "'database_url' not allowed"],
    ),
    ("image.digest=latest", &["'/image/digest'"]),
    ("image.pullPolicy=Sometimes", &["'/image/pullPolicy'"]),
    ("externalDatabase.sslmode=on", &["'/externalDatabase/sslmode'"]),
    ("externalDatabase.password=x", &["'password' not allowed"]),
    ("objectStorage.url=https://bucket", &["'/objectStorage/url'"]),
    ("publicUrl=dbt.example.com", &["'/publicUrl'"]),
    ("httpRoute.enabled=true", &["'/httpRoute/parentRefs'"]),
    ("postgresql.enabled=false", &["externalDatabase.host is missing"]),
    ("seaweedfs.enabled=false", &["objectStorage.bucket is missing"]),
];

#[test]
fn wrong_values_are_told_by_their_key() {
    for (set, expected) in REFUSED {
        let output = helm(&["template", "dbtcloud"], "default", &["--set", set]);
        assert!(!output.status.success(), "{set} was taken");
        let said = said(&output);
        for part in expected {
            assert!(said.contains(part), "{set}: {said}");
        }
    }
}

#[test]
fn a_path_prefix_that_nobody_takes_off_is_refused() {
    let output = helm(
        &["template", "dbtcloud"],
        "default",
        &["--set", "ingress.enabled=true,pathPrefix=/dbt"],
    );
    assert!(!output.status.success());
    assert!(
        said(&output).contains("ingress.annotations are missing"),
        "{}",
        said(&output)
    );
}
