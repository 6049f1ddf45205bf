//! What a node reads and writes, out of a step's `manifest.json`.

use std::collections::BTreeMap;

use dbtcloud_core::catalog::Extras;
use serde::Deserialize;
use serde_json::{Value, json};

/// Types of nodes that leave a relation in the warehouse.
const WRITING: [&str; 3] = ["model", "seed", "snapshot"];

#[derive(Default, Deserialize)]
struct Manifest {
    #[serde(default)]
    nodes: BTreeMap<String, Entry>,
    #[serde(default)]
    sources: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    resource_type: String,
    database: Option<String>,
    schema: Option<String>,
    alias: Option<String>,
    identifier: Option<String>,
    relation_name: Option<String>,
    #[serde(default)]
    depends_on: DependsOn,
}

#[derive(Default, Deserialize)]
struct DependsOn {
    #[serde(default)]
    nodes: Vec<String>,
}

/// Which relations the nodes of a project stand for, and which they read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    namespace: String,
    relations: BTreeMap<String, String>,
    writes: Vec<String>,
    reads: BTreeMap<String, Vec<String>>,
}

impl Graph {
    /// Reads a manifest. What is none has no datasets.
    pub fn read(manifest: &[u8], namespace: &str) -> Self {
        let manifest: Manifest = serde_json::from_slice(manifest).unwrap_or_default();
        let mut graph = Self {
            namespace: namespace.to_owned(),
            ..Self::default()
        };
        for (id, entry) in manifest.nodes.into_iter().chain(manifest.sources) {
            // An ephemeral model is in no warehouse: what reads it reads what it reads.
            if entry.relation_name.is_some() {
                let name = [&entry.database, &entry.schema, &entry.identifier.or(entry.alias)];
                let name: Vec<&str> = name.into_iter().flatten().map(String::as_str).collect();
                graph.relations.insert(id.clone(), name.join("."));
                if WRITING.contains(&entry.resource_type.as_str()) {
                    graph.writes.push(id.clone());
                }
            }
            graph.reads.insert(id, entry.depends_on.nodes);
        }
        graph
    }

    fn dataset(&self, id: &str) -> Option<Value> {
        let name = self.relations.get(id)?;
        Some(json!({"namespace": self.namespace, "name": name}))
    }

    /// What a node reads.
    pub(super) fn inputs(&self, id: &str) -> Vec<Value> {
        let mut found = BTreeMap::new();
        let mut waiting: Vec<&str> = self.reads.get(id).into_iter().flatten().map(String::as_str).collect();
        let mut seen = Vec::new();
        while let Some(id) = waiting.pop() {
            if seen.contains(&id) {
                continue;
            }
            seen.push(id);
            match self.dataset(id) {
                Some(dataset) => drop(found.insert(id, dataset)),
                None => waiting.extend(self.reads.get(id).into_iter().flatten().map(String::as_str)),
            }
        }
        found.into_values().collect()
    }

    /// What a node writes.
    pub(super) fn outputs(&self, id: &str) -> Vec<Value> {
        let writes = self.writes.iter().any(|writes| writes == id);
        self.dataset(id).filter(|_| writes).into_iter().collect()
    }
}

/// What the datasets of a warehouse are named below, as OpenLineage's naming has it for each kind of warehouse.
///
/// ```
/// use dbtcloud_runtime::lineage::namespace_of;
/// let config = serde_json::from_str(r#"{"hostname": "db.example", "port": 5433}"#).unwrap();
/// assert_eq!(namespace_of("postgres", &config), "postgres://db.example:5433");
/// ```
pub fn namespace_of(adapter: &str, config: &Extras) -> String {
    let text = |names: &[&str]| {
        let value = names.iter().find_map(|name| config.get(*name))?;
        match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    };
    let host = || text(&["hostname", "host", "server"]).unwrap_or_default();
    let port = |default: &str| text(&["port"]).unwrap_or_else(|| default.to_owned());
    match adapter {
        "bigquery" => "bigquery".to_owned(),
        "snowflake" => format!("snowflake://{}", text(&["account"]).unwrap_or_default()),
        "duckdb" => format!("duckdb://{}", text(&["path"]).unwrap_or_default()),
        "postgres" => format!("postgres://{}:{}", host(), port("5432")),
        "redshift" => format!("redshift://{}:{}", host(), port("5439")),
        other => format!("{other}://{}", host()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ephemeral_model_is_looked_through() {
        let manifest = r#"{
            "nodes": {
                "model.p.a": {"resource_type": "model", "database": "d", "schema": "s", "alias": "a", "relation_name": "x",
                    "depends_on": {"nodes": ["model.p.e", "source.p.raw.t"]}, "raw_code": "select 1"},
                "model.p.e": {"resource_type": "model", "database": "d", "schema": "s", "alias": "e", "relation_name": null,
                    "depends_on": {"nodes": ["seed.p.s", "model.p.e"]}},
                "seed.p.s": {"resource_type": "seed", "schema": "s", "alias": "s", "relation_name": "x"},
                "test.p.t": {"resource_type": "test", "alias": "t", "relation_name": null,
                    "depends_on": {"nodes": ["model.p.a"]}}
            },
            "sources": {"source.p.raw.t": {"resource_type": "source", "database": "raw", "schema": "s",
                "identifier": "T", "relation_name": "x"}}
        }"#;
        let graph = Graph::read(manifest.as_bytes(), "duckdb:///x");
        let names = |datasets: Vec<Value>| -> Vec<String> {
            let names = datasets
                .iter()
                .map(|dataset| dataset["name"].as_str().unwrap().to_owned());
            names.collect()
        };
        assert_eq!(names(graph.inputs("model.p.a")), ["s.s", "raw.s.T"]);
        assert_eq!(names(graph.outputs("model.p.a")), ["d.s.a"]);
        assert_eq!(names(graph.outputs("model.p.e")), [""; 0]);
        assert_eq!(names(graph.inputs("test.p.t")), ["d.s.a"]);
        assert_eq!(names(graph.outputs("test.p.t")), [""; 0]);
        assert_eq!(Graph::read(b"no manifest", "x").inputs("model.p.a"), [Value::Null; 0]);
    }
}
