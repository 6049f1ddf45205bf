//! Every place that has a name, read from the sources: one that is added is killed at from then on.

use std::collections::BTreeSet;
use std::path::Path;

use dbtcloud_tests::project;

/// Rooms whose sources name places.
const SOURCES: [&str; 2] = ["dbtcloud-runtime/src", "dbtcloud-runtime/adapters/sql/src"];
/// Calls that nothing of the server makes yet: nobody opens develop sessions, and no consumer of the outbox refuses.
const NO_DOOR: [&str; 4] = [
    "sql.outbox.postpone.",
    "sql.sessions.change.",
    "sql.sessions.forget.",
    "sql.sessions.open.",
];

/// The text arguments of every call that begins so.
fn arguments<'a>(source: &'a str, call: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    source.split(call).skip(1).map(|rest| {
        let list = rest.split(')').next().unwrap_or_default();
        list.split('"').skip(1).step_by(2).collect()
    })
}

fn read(folder: &Path, points: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read(&path, points);
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap_or_default();
        for call in [".end(", ".write("] {
            for names in arguments(&source, call) {
                // Other things are ended and written, too; only a call of a port is told by its name.
                if let [name] = names.as_slice()
                    && (name.contains('.') || *name == "migrate")
                    && folder.ends_with("sql/src")
                {
                    points.insert(format!("sql.{name}.before_commit"));
                    points.insert(format!("sql.{name}.after_commit"));
                }
            }
        }
        for names in arguments(&source, "failpoint::reached(") {
            if let [room, call, moment] = names.as_slice() {
                points.insert(format!("{room}.{call}.{moment}"));
            }
        }
    }
}

/// All of them.
pub fn all() -> Vec<String> {
    let mut points = BTreeSet::new();
    for source in SOURCES {
        read(&project::workspace().join(source), &mut points);
    }
    assert!(points.len() > 40, "too few to be all: {points:?}");
    points.into_iter().collect()
}

/// Those of calls that nothing makes yet.
pub fn without_a_door(all: &[String]) -> Vec<&String> {
    let closed = |point: &&String| NO_DOOR.iter().any(|call| point.starts_with(call));
    all.iter().filter(closed).collect()
}
