//! The live view: one line that moves on a terminal, a line for every change elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use serde_json::Value;

/// What is kept of one node for the table at the end.
struct Node {
    kind: String,
    name: String,
    status: String,
    seconds: Option<f64>,
}

pub(super) struct View {
    began: Instant,
    terminal: bool,
    step: String,
    done: usize,
    total: u64,
    failed: usize,
    nodes: BTreeMap<String, Node>,
    /// The step that generates documentation: it compiles every node once more, which is no result.
    docs: Option<u64>,
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

impl View {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            terminal: std::io::stdout().is_terminal(),
            step: String::from("waiting for the agent"),
            done: 0,
            total: 0,
            failed: 0,
            nodes: BTreeMap::new(),
            docs: None,
        }
    }

    pub(super) fn take(&mut self, event: &str, data: &Value) {
        match event {
            "step" => {
                let (name, status) = (text(data, "name"), text(data, "status_humanized"));
                if data["kind"] == "docs" {
                    self.docs = data["index"].as_u64();
                }
                match status.as_str() {
                    "Queued" => {}
                    "Running" => (self.step, self.done, self.total) = (name, 0, 0),
                    _ => self.line(&format!("{name}: {status}")),
                }
            }
            "node" => self.node(data),
            _ => {}
        }
        self.progress();
    }

    fn node(&mut self, data: &Value) {
        let status = text(data, "status");
        self.total = data["total"].as_u64().unwrap_or(self.total);
        if data["step"].as_u64() == self.docs && self.docs.is_some() {
            return;
        }
        if status == "started" || status == "compiling" || status == "executing" {
            return;
        }
        self.done += 1;
        if matches!(status.as_str(), "error" | "fail" | "runtime error") {
            self.failed += 1;
        }
        let node = Node {
            kind: text(data, "resource_type"),
            name: text(data, "name"),
            status,
            seconds: data["execution_time"].as_f64(),
        };
        self.nodes.insert(text(data, "unique_id"), node);
    }

    fn progress(&self) {
        if !self.terminal {
            return;
        }
        let of = if self.total > 0 {
            format!(" {}/{} nodes", self.done, self.total)
        } else {
            String::new()
        };
        let failed = if self.failed > 0 {
            format!(", {} failed", self.failed)
        } else {
            String::new()
        };
        print!(
            "\r\x1b[2K  {:>5.1} s  {}{of}{failed}",
            self.began.elapsed().as_secs_f64(),
            self.step
        );
        let _ = std::io::stdout().flush();
    }

    fn line(&self, text: &str) {
        let clear = if self.terminal { "\r\x1b[2K" } else { "" };
        println!("{clear}  {:>5.1} s  {text}", self.began.elapsed().as_secs_f64());
    }

    pub(super) fn finish(&self) {
        if self.terminal {
            print!("\r\x1b[2K");
        }
    }

    /// The table of results: how many nodes of each kind ended how, and the slowest of them.
    pub(super) fn print_nodes(&self) {
        let mut counts: BTreeMap<(&str, &str), (usize, f64)> = BTreeMap::new();
        for node in self.nodes.values() {
            let count = counts.entry((&node.kind, &node.status)).or_default();
            count.0 += 1;
            count.1 += node.seconds.unwrap_or(0.0);
        }
        println!("\n  {:<12} {:<10} {:>6} {:>9}", "nodes", "status", "count", "seconds");
        for ((kind, status), (count, seconds)) in counts {
            println!("  {kind:<12} {status:<10} {count:>6} {seconds:>9.2}");
        }
        let mut slow: Vec<&Node> = self.nodes.values().filter(|node| node.seconds.is_some()).collect();
        slow.sort_by(|a, b| b.seconds.unwrap_or(0.0).total_cmp(&a.seconds.unwrap_or(0.0)));
        if let Some(slowest) = slow.first() {
            println!(
                "  slowest: {} {} ({:.2} s)",
                slowest.kind,
                slowest.name,
                slowest.seconds.unwrap_or(0.0)
            );
        }
    }
}
