//! What is written about names, beside the names there are.

use std::collections::BTreeSet;

use dbtcloud_tests::project::workspace;
use dbtcloud_tests::scrape::Scrape;
use serde_json::Value;

use crate::numbers::PROMISED;

/// Every word of a text that looks like the name of a metric.
fn in_text(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("dbtcloud_"))
        .map(str::to_owned)
        .collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path)).unwrap()
}

/// Dashboard, alerts and documentation name metrics that are told, and the documentation names all of them.
pub fn check(scrape: &Scrape) {
    let series = scrape.series();
    for path in ["examples/grafana/dashboard.json", "examples/grafana/alerts.yaml"] {
        let named = in_text(&read(path));
        assert!(named.len() > 5, "{path} names {named:?}");
        let unknown: Vec<_> = named.difference(&series).collect();
        assert!(unknown.is_empty(), "{path} names {unknown:?}, which are not told");
    }
    let documented = in_text(&read("docs/observe.md"));
    // A counter is told with its suffix, a histogram by its family.
    let mut told: BTreeSet<String> = scrape.0.keys().cloned().collect();
    for (name, family) in &scrape.0 {
        if family.kind == "counter" {
            told.remove(name);
            told.insert(format!("{name}_total"));
        }
    }
    let unknown: Vec<_> = documented.difference(&told).collect();
    assert!(
        unknown.is_empty(),
        "docs/observe.md names {unknown:?}, which are not told"
    );
    for (name, kind) in PROMISED {
        let name = if kind == "counter" {
            format!("{name}_total")
        } else {
            name.to_owned()
        };
        assert!(documented.contains(&name), "docs/observe.md does not name {name}");
    }

    let dashboard: Value = serde_json::from_str(&read("examples/grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_i64().unwrap()), "{panel:#}");
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel:#}");
        for (field, most) in [("x", 16), ("w", 24), ("h", 24), ("y", 1_000)] {
            let value = panel["gridPos"][field].as_i64().unwrap();
            assert!((0..=most).contains(&value), "{panel:#}");
        }
        for target in panel["targets"].as_array().unwrap() {
            assert!(!in_text(target["expr"].as_str().unwrap()).is_empty(), "{target:#}");
        }
    }
    assert!(dashboard["schemaVersion"].as_i64().unwrap() >= 36 && dashboard["title"] == "dbtcloud");
}
