//! From a dbt command line, as a person wrote it, to arguments. No shell is involved.

/// Subcommands of dbt; the first argument that is one of them is the command.
const SUBCOMMANDS: [&str; 19] = [
    "build",
    "clean",
    "clone",
    "compile",
    "debug",
    "deps",
    "docs",
    "init",
    "list",
    "ls",
    "parse",
    "retry",
    "run",
    "run-operation",
    "seed",
    "show",
    "snapshot",
    "source",
    "test",
];
/// Subcommands that compare with or fall back to the state of another run.
const DEFERRABLE: [&str; 11] = [
    "build", "compile", "docs", "list", "ls", "run", "seed", "show", "snapshot", "source", "test",
];
/// Subcommands that execute nodes; the others only look at them.
pub(crate) const EXECUTING: [&str; 9] = [
    "build",
    "clone",
    "retry",
    "run",
    "run-operation",
    "seed",
    "snapshot",
    "source",
    "test",
];
/// The profile's name, as dbt Cloud has it: models that look at `target.profile_name` see the same.
pub(super) const PROFILE: &str = "user";

/// A parsed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    argv: Vec<String>,
}

impl Command {
    /// Reads `dbt …`, quoted as for a shell.
    ///
    /// The error is a sentence for the person who wrote it.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let words = shlex::split(line)
            .ok_or_else(|| format!("The command cannot be read: a quotation mark in `{line}` is not closed."))?;
        let mut words = words.into_iter();
        match words.next().as_deref() {
            Some("dbt") => {}
            Some(other) => {
                return Err(format!("Only dbt commands can be run, and `{other}` is none."));
            }
            None => return Err("The command is empty.".to_owned()),
        }
        let argv: Vec<String> = words.collect();
        if let Some(word) = argv.iter().find(|word| word.contains('\0')) {
            return Err(format!("The argument {word:?} cannot be passed to a process."));
        }
        Ok(Self { argv })
    }

    /// The subcommand, if there is one.
    pub(super) fn subcommand(&self) -> Option<&str> {
        self.argv
            .iter()
            .map(String::as_str)
            .find(|word| SUBCOMMANDS.contains(word))
    }

    /// Whether it executes nodes.
    pub(super) fn executes(&self) -> bool {
        self.subcommand().is_some_and(|name| EXECUTING.contains(&name))
    }

    /// Whether an option was given, in either of its spellings.
    fn has(&self, long: &str, short: Option<&str>) -> bool {
        self.argv.iter().any(|word| {
            word == long
                || word.strip_prefix(long).is_some_and(|rest| rest.starts_with('='))
                || short.is_some_and(|short| word.strip_prefix(short).is_some_and(|_| !word.starts_with("--")))
        })
    }

    /// The value of `--vars`, for the parse state's key.
    pub(super) fn vars(&self) -> &str {
        self.argv
            .iter()
            .enumerate()
            .find_map(|(at, word)| match word.strip_prefix("--vars") {
                Some("") => self.argv.get(at + 1).map(String::as_str),
                Some(rest) => rest.strip_prefix('='),
                None => None,
            })
            .unwrap_or_default()
    }

    /// Whether the state of another run is of use to it, and how.
    pub(super) fn takes_state(&self) -> Option<StateArgument> {
        match self.subcommand()? {
            "retry" => Some(StateArgument::Retry),
            "clone" => Some(StateArgument::Compare),
            name if DEFERRABLE.contains(&name) => Some(StateArgument::Defer),
            _ => None,
        }
    }

    /// The arguments, with target and profile unless they were given. `state` is a folder, to be used as said.
    pub(super) fn arguments(&self, target: &str, state: Option<(StateArgument, &str)>) -> Vec<String> {
        let mut argv = self.argv.clone();
        if self.subcommand().is_none() {
            return argv;
        }
        let mut add = |words: &[&str]| argv.extend(words.iter().map(|word| (*word).to_owned()));
        if !self.has("--target", Some("-t")) {
            add(&["--target", target]);
        }
        if !self.has("--profile", None) {
            add(&["--profile", PROFILE]);
        }
        if let Some((how, folder)) = state
            && !self.has("--state", None)
        {
            let decided = ["--defer", "--no-defer"].iter().any(|flag| self.has(flag, None));
            if how == StateArgument::Defer && !decided {
                add(&["--defer"]);
            }
            add(&["--state", folder]);
        }
        argv
    }
}

/// What the state of another run is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateArgument {
    /// `--defer --state`.
    Defer,
    /// `--state`, to compare or clone from.
    Compare,
    /// `--state`, to go on from.
    Retry,
}

/// A command line as it is shown.
pub(super) fn show(argv: &[String]) -> String {
    let words = argv.iter().map(|word| shlex::try_quote(word).unwrap_or(word.into()));
    std::iter::once("dbt".into()).chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn arguments(line: &str) -> Vec<String> {
        Command::parse(line).unwrap().arguments("prod", None)
    }

    #[test]
    fn quotes_are_read_as_a_shell_reads_them() {
        for (line, expected) in [
            (
                r#"dbt run --vars '{"a": "b c"}'"#,
                vec!["run", "--vars", r#"{"a": "b c"}"#],
            ),
            (r#"dbt run --vars "{\"a\": 1}""#, vec!["run", "--vars", r#"{"a": 1}"#]),
            (r"dbt run -s my\ model", vec!["run", "-s", "my model"]),
            (
                "dbt  build\n  --select a+  # all of it",
                vec!["build", "--select", "a+"],
            ),
            (
                "dbt run --select $HOME `id` $(id) ; id | cat > x && y",
                vec![
                    "run", "--select", "$HOME", "`id`", "$(id)", ";", "id", "|", "cat", ">", "x", "&&", "y",
                ],
            ),
            ("dbt run -s ''", vec!["run", "-s", ""]),
        ] {
            let expected: Vec<&str> = expected
                .into_iter()
                .chain(["--target", "prod", "--profile", "user"])
                .collect();
            assert_eq!(arguments(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_no_dbt_command_is_refused() {
        for line in ["", "   ", "# dbt run", "rm -rf /", "dbt run 'x", "DBT run", "dbt; run"] {
            assert!(Command::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn what_was_given_is_not_given_again() {
        for line in [
            "dbt run --target x",
            "dbt run -t x",
            "dbt run --target=x",
            "dbt run -tx",
        ] {
            assert!(!arguments(line).contains(&"prod".to_owned()), "{line}");
        }
        assert_eq!(
            arguments("dbt run --profile=p"),
            ["run", "--profile=p", "--target", "prod"]
        );
        assert!(arguments("dbt run --threads 4 --fail-fast").contains(&"prod".to_owned()));
        assert_eq!(arguments("dbt --version"), ["--version"]);
        assert_eq!(
            arguments("dbt --log-format json --debug build")[..3],
            ["--log-format", "json", "--debug"]
        );
    }

    #[test]
    fn state_goes_where_it_is_of_use() {
        let with = |line: &str| {
            let command = Command::parse(line).unwrap();
            let state = command.takes_state().map(|how| (how, "/s"));
            command.arguments("t", state)[1..].join(" ")
        };
        assert!(with("dbt build -s state:modified+").ends_with("--defer --state /s"));
        assert!(with("dbt build --no-defer").ends_with("--profile user --state /s"));
        assert!(with("dbt retry").ends_with("--profile user --state /s"));
        assert!(with("dbt clone").ends_with("--profile user --state /s"));
        assert!(with("dbt docs generate").ends_with("--defer --state /s"));
        assert!(!with("dbt run --state mine").contains("/s"));
        assert!(!with("dbt run-operation grant").contains("/s"));
        assert!(!with("dbt deps").contains("/s"));
    }

    #[test]
    fn vars_are_found() {
        for (line, vars) in [
            ("dbt run --vars '{a: 1}'", "{a: 1}"),
            ("dbt run --vars={a: 1", "{a:"),
            ("dbt run", ""),
        ] {
            assert_eq!(Command::parse(line).unwrap().vars(), vars, "{line}");
        }
    }

    #[test]
    fn a_command_is_shown_as_it_could_be_typed() {
        assert_eq!(
            show(&["run".into(), "--vars".into(), "{a: b}".into()]),
            "dbt run --vars '{a: b}'"
        );
    }
}
