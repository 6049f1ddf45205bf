//! What is neither chart nor plain manifest: the unit for one machine, the appliance's files, and the infrastructure of
//! AWS. Only the first is run by what it is for; of the others this proves that they are whole and speak of what is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use dbtcloud_tests::installation::binary;
use dbtcloud_tests::project::workspace;
use serde_json::{Value, json};

use crate::render::{documents, render_with, title};

fn folder(name: &str) -> PathBuf {
    workspace().join("examples/deploy").join(name)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn systemd_takes_the_unit_and_the_binary_its_settings() {
    let place = tempfile::tempdir().unwrap();
    let unit = text(&folder("systemd/dbtcloud.service"));
    let program = "/usr/local/bin/dbtcloud ";
    assert!(unit.contains(program) && unit.contains("KillMode=process"));
    let unit = unit.replace(program, &format!("{} ", binary().display()));
    let path = place.path().join("dbtcloud.service");
    std::fs::write(&path, unit).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&path).output();
    let verified = verified.expect("systemd-analyze is installed by tests/setup");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success(), "{said}");
    // What it says of other units is this machine's business.
    assert!(!said.contains("dbtcloud.service"), "{said}");

    let settings = text(&folder("systemd/dbtcloud.toml"));
    // Also with what is commented out.
    let more = settings
        .replace("# database", "database")
        .replace("# key_file", "key_file")
        .replace("# artifacts", "artifacts");
    assert_ne!(settings, more);
    for (name, text) in [("as-it-is.toml", &settings), ("with-all.toml", &more)] {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        let checked = Command::new(binary())
            .args(["config", "check", "--config"])
            .arg(&path)
            .env_clear()
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
    }
}

/// The questions of the appliance, with the answer that each has before somebody gives another.
fn questions() -> Vec<(String, String)> {
    let config = documents(&text(&folder("kots/config.yaml"))).remove(0);
    assert_eq!(
        (&config["apiVersion"], &config["kind"]),
        (&json!("kots.io/v1beta1"), &json!("Config"))
    );
    let groups = config["spec"]["groups"].as_array().unwrap().clone();
    let items = groups
        .iter()
        .flat_map(|group| group["items"].as_array().unwrap().clone());
    items
        .map(|item| {
            let answer = item["value"].as_str().or(item["default"].as_str()).unwrap_or("answer");
            (item["name"].as_str().unwrap().to_owned(), answer.to_owned())
        })
        .collect()
}

/// A value of the appliance's with its questions answered, as its console does it.
fn answered(value: &Value, questions: &[(String, String)]) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), answered(value, questions)))
            .collect(),
        Value::Array(list) => list.iter().map(|value| answered(value, questions)).collect(),
        Value::String(text) => {
            let Some((before, rest)) = text.split_once("repl{{ ConfigOption \"") else {
                assert!(!text.contains("repl{{"), "{text}");
                return value.clone();
            };
            let (name, rest) = rest.split_once('"').unwrap();
            let (_, answer) = questions
                .iter()
                .find(|(known, _)| known == name)
                .unwrap_or_else(|| panic!("nobody asks {name}"));
            match rest.trim() {
                "| ParseInt }}" if before.is_empty() => json!(answer.parse::<i64>().unwrap()),
                "}}" => json!(format!("{before}{answer}")),
                other => panic!("{text}: {other}"),
            }
        }
        other => other.clone(),
    }
}

#[test]
fn the_appliance_asks_for_what_the_chart_takes() {
    let questions = questions();
    let chart = documents(&text(&folder("kots/chart.yaml"))).remove(0);
    let own = documents(&text(&folder("helm/Chart.yaml"))).remove(0);
    assert_eq!(
        chart["spec"]["chart"],
        json!({"name": own["name"], "chartVersion": own["version"]})
    );
    let optional = chart["spec"]["optionalValues"].as_array().unwrap();
    for part in optional {
        let when = part["when"].as_str().unwrap();
        assert!(
            questions.iter().any(|(name, _)| when.contains(&format!("\"{name}\""))),
            "{when}"
        );
    }
    let place = tempfile::tempdir().unwrap();
    let mut more: Vec<String> = Vec::new();
    let all = std::iter::once(&chart["spec"]["values"]).chain(optional.iter().map(|part| &part["values"]));
    for (number, values) in all.enumerate() {
        let path = place.path().join(format!("{number}.json"));
        let mut values = answered(values, &questions);
        // An answer that is a URL of its own.
        if let Some(store) = values.get_mut("objectStorage") {
            store["endpoint"] = json!("");
        }
        std::fs::write(&path, values.to_string()).unwrap();
        more.extend(["--values".to_owned(), path.display().to_string()]);
    }
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    // The trial first, then with everything external.
    for more in [&more[..2], &more[..]] {
        let titles: Vec<String> = render_with("default", more).iter().map(title).collect();
        let trial = titles.iter().any(|title| title == "StatefulSet dbtcloud-postgresql");
        assert_eq!(trial, more.len() == 2, "{titles:?}");
        let informed = documents(&text(&folder("kots/application.yaml")));
        for informer in informed[0]["spec"]["statusInformers"].as_array().unwrap() {
            let wanted = informer.as_str().unwrap().replace("deployment/", "Deployment ");
            assert!(titles.contains(&wanted), "{wanted}");
        }
    }
}

/// Words of a text that begin like this and go on as names do.
fn names(text: &str, prefix: &str, parts: usize) -> BTreeSet<String> {
    let named = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let words = text.split(|c: char| !named(c)).filter(|word| word.starts_with(prefix));
    words
        .filter(|word| word.split('.').count() >= parts)
        .map(|word| word.split('.').take(parts).collect::<Vec<_>>().join("."))
        .collect()
}

/// Syntax by an HCL parser, and every reference to a variable, local, resource or data source that there is. Neither
/// OpenTofu nor the providers were asked.
#[test]
fn the_infrastructure_speaks_of_what_is_declared() {
    let mut all = String::new();
    for entry in std::fs::read_dir(folder("opentofu/aws")).unwrap() {
        let path = entry.unwrap().path();
        let parse = "import hcl2, sys; assert hcl2.load(open(sys.argv[1]))";
        let python = workspace().join(".cache/tools/bin/python");
        let parsed = Command::new(python).args(["-c", parse]).arg(&path).output().unwrap();
        assert!(
            parsed.status.success(),
            "{}: {}",
            path.display(),
            String::from_utf8_lossy(&parsed.stderr)
        );
        let code: String = text(&path)
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .map(|line| format!("{line}\n"))
            .collect();
        all.push_str(&code);
    }
    let mut declared = BTreeSet::new();
    for line in all.lines() {
        let words: Vec<&str> = line.split('"').collect();
        match words[..] {
            ["resource ", kind, " ", name, ..] => declared.insert(format!("{kind}.{name}")),
            ["data ", kind, " ", name, ..] => declared.insert(format!("data.{kind}.{name}")),
            ["variable ", name, ..] => declared.insert(format!("var.{name}")),
            _ => false,
        };
    }
    for local in ["zones", "issuer", "accounts"] {
        assert!(all.contains(&format!("  {local} ")), "{local}");
        declared.insert(format!("local.{local}"));
    }
    let of_data = names(&all, "data.", 3);
    let mut used: BTreeSet<String> = of_data.clone();
    used.extend(names(&all, "var.", 2));
    used.extend(names(&all, "local.", 2));
    used.extend(names(&all, "random_", 2));
    used.extend(
        names(&all, "aws_", 2)
            .into_iter()
            .filter(|name| !declared.contains(&format!("data.{name}"))),
    );
    assert!(used.len() > 30, "{used:?}");
    let unknown: Vec<_> = used.difference(&declared).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let unused: Vec<_> = declared
        .iter()
        .filter(|name| name.starts_with("var.") && !used.contains(*name))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
}
