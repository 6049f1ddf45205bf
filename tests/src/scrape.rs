//! A strict reader of what `/metrics` says, in the OpenMetrics text format.

use std::collections::{BTreeMap, BTreeSet};

/// Labels of a sample.
pub type Labels = BTreeMap<String, String>;

/// One metric with all its samples.
#[derive(Clone, Debug, Default)]
pub struct Family {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it is for.
    pub help: String,
    /// What is measured in.
    pub unit: Option<String>,
    /// Suffix behind the name, labels, value.
    pub samples: Vec<(String, Labels, f64)>,
}

/// Everything that was told at one time.
#[derive(Clone, Debug, Default)]
pub struct Scrape(pub BTreeMap<String, Family>);

impl Scrape {
    /// Asks a server.
    ///
    /// # Panics
    /// When it does not answer, or not what the format demands.
    pub async fn of(base: &str) -> Self {
        let answer = reqwest::get(format!("{base}/metrics")).await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
        Self::read(&answer.text().await.unwrap()).unwrap()
    }

    /// Reads a text; everything that Prometheus would refuse or misread is an error.
    ///
    /// # Errors
    /// The line, and what is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("expected # EOF at the end")?;
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        for line in body.lines() {
            let wrong = |what: &str| format!("{what}: {line}");
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (Some(what), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) else {
                    return Err(wrong("expected three words"));
                };
                if name != current && families.contains_key(name) {
                    return Err(wrong("a family in two places"));
                }
                name.clone_into(&mut current);
                let family = families.entry(current.clone()).or_default();
                if !family.samples.is_empty() {
                    return Err(wrong("metadata behind samples"));
                }
                let set = match what {
                    "HELP" => family.help.is_empty().then(|| rest.clone_into(&mut family.help)),
                    "TYPE" => family.kind.is_empty().then(|| rest.clone_into(&mut family.kind)),
                    "UNIT" if name.ends_with(&format!("_{rest}")) => {
                        family.unit.is_none().then(|| family.unit = Some(rest.to_owned()))
                    }
                    _ => None,
                };
                set.ok_or_else(|| wrong("unexpected metadata"))?;
                continue;
            }
            let (series, value) = line.rsplit_once(' ').ok_or_else(|| wrong("expected a value"))?;
            let value: f64 = value.parse().map_err(|_| wrong("expected a number"))?;
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (
                    name,
                    read_labels(labels.strip_suffix('}').ok_or_else(|| wrong("no }"))?)?,
                ),
                None => (series, Labels::new()),
            };
            let suffix = name
                .strip_prefix(current.as_str())
                .ok_or_else(|| wrong("not of the family above it"))?;
            let family = families.get_mut(&current).ok_or_else(|| wrong("no metadata"))?;
            let fits = match family.kind.as_str() {
                "counter" => suffix == "_total",
                "gauge" => suffix.is_empty(),
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                _ => false,
            };
            if !fits {
                return Err(wrong("a name that does not fit its type"));
            }
            if value < 0.0 && family.kind != "gauge" || !value.is_finite() {
                return Err(wrong("a value that cannot be"));
            }
            family.samples.push((suffix.to_owned(), labels, value));
        }
        for (name, family) in &families {
            family.check().map_err(|what| format!("{name}: {what}"))?;
        }
        Ok(Self(families))
    }

    /// The sum of a counter or gauge over the samples that have these labels.
    ///
    /// # Panics
    /// When there is no such metric.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let family = self.0.get(name).unwrap_or_else(|| panic!("no metric {name}"));
        let fits = |of: &Labels| {
            labels
                .iter()
                .all(|(key, value)| of.get(*key).is_some_and(|is| is == value))
        };
        let plain = |suffix: &str| matches!(suffix, "" | "_total" | "_count");
        family
            .samples
            .iter()
            .filter(|(suffix, of, _)| plain(suffix) && fits(of))
            .map(|(_, _, value)| value)
            .sum()
    }

    /// Every name that can be asked for: families with the suffixes of their types.
    pub fn series(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (name, family) in &self.0 {
            let suffixes: &[&str] = match family.kind.as_str() {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
        }
        names
    }
}

impl Family {
    fn check(&self) -> Result<(), String> {
        if self.kind.is_empty() || self.help.is_empty() {
            return Err("expected HELP and TYPE".to_owned());
        }
        let mut seen = BTreeSet::new();
        let mut histograms: BTreeMap<Labels, (f64, Option<f64>)> = BTreeMap::new();
        for (suffix, labels, value) in &self.samples {
            if !seen.insert((suffix, labels)) {
                return Err(format!("{labels:?} twice"));
            }
            if self.kind != "histogram" {
                continue;
            }
            let key: Labels = labels.clone().into_iter().filter(|(name, _)| name != "le").collect();
            let (last, infinite) = histograms.entry(key).or_insert((0.0, None));
            match (suffix.as_str(), labels.get("le").map(String::as_str)) {
                ("_bucket", Some(_)) if *value < *last => return Err("buckets must not fall".to_owned()),
                ("_bucket", Some("+Inf")) => *infinite = Some(*value),
                ("_bucket", Some(bound)) if bound.parse::<f64>().is_ok() => {}
                ("_bucket", _) => return Err(format!("a bucket without a bound: {labels:?}")),
                _ => continue,
            }
            *last = *value;
        }
        for (suffix, labels, value) in &self.samples {
            if suffix == "_count" && histograms.get(labels).and_then(|(_, infinite)| *infinite) != Some(*value) {
                return Err(format!("count and +Inf differ: {labels:?}"));
            }
        }
        Ok(())
    }
}

fn read_labels(text: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest
            .split_once("=\"")
            .ok_or_else(|| format!("expected a label: {text}"))?;
        let end = after
            .char_indices()
            .scan(false, |escaped, (at, c)| {
                let ends = c == '"' && !*escaped;
                *escaped = c == '\\' && !*escaped;
                Some((at, ends))
            })
            .find_map(|(at, ends)| ends.then_some(at))
            .ok_or_else(|| format!("expected the end of a label: {text}"))?;
        if labels.insert(name.to_owned(), after[..end].to_owned()).is_some() {
            return Err(format!("a label twice: {text}"));
        }
        rest = after[end + 1..].trim_start_matches(',');
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prometheus_would_refuse_is_refused() {
        let good = "# HELP a_seconds Text.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\na_seconds_sum{x=\"\\\"}\"} 1\na_seconds_count{x=\"\\\"}\"} 1\na_seconds_bucket{le=\"1.0\",x=\"\\\"}\"} 0\na_seconds_bucket{le=\"+Inf\",x=\"\\\"}\"} 1\n# EOF\n";
        Scrape::read(good).unwrap();
        for (from, to) in [
            ("# EOF\n", ""),
            ("# HELP a_seconds Text.\n", ""),
            ("UNIT a_seconds seconds", "UNIT a_seconds bytes"),
            ("le=\"1.0\",x=\"\\\"}\"} 0", "le=\"1.0\",x=\"\\\"}\"} 2"),
            ("a_seconds_count{x=\"\\\"}\"} 1", "a_seconds_count{x=\"\\\"}\"} 2"),
            ("a_seconds_sum", "b_seconds_sum"),
            ("histogram", "counter"),
            ("a_seconds_sum{x=\"\\\"}\"} 1", "a_seconds_sum{x=\"\\\"}\"} NaN"),
            ("# EOF", "a_seconds_sum{x=\"\\\"}\"} 1\n# EOF"),
        ] {
            assert!(good.contains(from));
            assert!(Scrape::read(&good.replace(from, to)).is_err(), "{from} -> {to}");
        }
    }
}
