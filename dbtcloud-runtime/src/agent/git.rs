//! Getting the code: git's own program, a mirror shared on the host, and an exact commit checked out.
//!
//! A login never stands in an argument, a URL, a log or a file of git's: a token goes by the environment to an askpass
//! script that answers for one host only, a deploy key by a file that is removed. Git runs with no configuration but
//! ours, no hooks, and transports from a short list.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dbtcloud_core::id::AccountId;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::console::Console;
use super::process::{self, Ran};
use crate::protocol::{GitLogin, GitSource};

/// How long all of git's work may take.
pub const GIT_LIMIT: Duration = Duration::from_secs(30 * 60);
/// How long another agent's fetch of the same repository is waited for.
pub const LOCK_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Transports git may use, for submodules too.
const TRANSPORTS: &str = "https:http:ssh:git:file";
/// Answers what git asks for, for one host, from the environment.
const ASKPASS: &str = r#"#!/bin/sh
case "$1" in
*"'$DBTCLOUD_GIT_SITE'"* | *"@${DBTCLOUD_GIT_SITE#*://}'"*) ;;
*) exit 1 ;;
esac
case "$1" in
Username*) printf '%s\n' "$DBTCLOUD_GIT_USERNAME" ;;
*) printf '%s\n' "$DBTCLOUD_GIT_TOKEN" ;;
esac
"#;

/// What was checked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checkout {
    /// Folder with `dbt_project.yml`.
    pub(super) project: PathBuf,
    /// Commit.
    pub(super) sha: String,
    /// Branch or tag, if there was one.
    pub(super) branch: Option<String>,
}

/// Where things are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    /// Shared by the agents of the host.
    pub(super) cache: &'a Path,
    /// Of this execution, for what must not stay.
    pub(super) scratch: &'a Path,
    /// Where the code goes; must not exist.
    pub(super) checkout: &'a Path,
    /// Search path.
    pub(super) path: &'a str,
}

/// Clones and checks out. The error is a sentence for a person.
pub(super) async fn check_out(
    source: &GitSource,
    account: AccountId,
    places: Places<'_>,
    passed_on: &BTreeMap<String, String>,
    console: &mut Console,
) -> Result<Checkout, String> {
    check_url(&source.url)?;
    check_place(&source.url, places.cache)?;
    for name in [source.branch.as_deref(), source.commit.as_deref()]
        .into_iter()
        .flatten()
    {
        if name.is_empty()
            || name.starts_with('-')
            || name.contains(|c: char| c.is_control() || " ~^:?*[\\".contains(c))
        {
            return Err(format!("'{name}' is no name of a branch, tag or commit."));
        }
    }
    let git = Git::set_up(source, places, passed_on)?;
    let done = tokio::time::timeout(GIT_LIMIT, git.work(source, account, places, console)).await;
    git.forget();
    done.unwrap_or_else(|_| Err(format!("git took longer than {} s.", GIT_LIMIT.as_secs())))
}

/// Refuses what git would take for an option or for a program to run.
fn check_url(url: &str) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("The repository's address is refused: {why}."));
    if url.is_empty() || url.starts_with('-') || url.contains(|c: char| c.is_control() || c == ' ') {
        return refuse("expected https://…, ssh://… or git@host:path");
    }
    if url.split('/').next().is_some_and(|head| head.contains("::")) {
        return refuse("remote helpers are not allowed");
    }
    if let Some((scheme, rest)) = url.split_once("://") {
        if !TRANSPORTS.split(':').any(|known| known == scheme) {
            return refuse("its transport is not allowed");
        }
        if rest.starts_with('-') {
            return refuse("its host begins with a hyphen");
        }
        let password = Url::parse(url).ok().is_some_and(|url| url.password().is_some());
        if password {
            return refuse("it holds a password, which belongs to the repository's credentials");
        }
    }
    Ok(())
}

/// Refuses repositories in our own cache: they are copies of somebody's.
fn check_place(url: &str, cache: &Path) -> Result<(), String> {
    let path = url.strip_prefix("file://").unwrap_or(url);
    let inside = Path::new(path).canonicalize().ok().zip(cache.canonicalize().ok());
    match inside {
        Some((path, cache)) if path.starts_with(&cache) => {
            Err("The repository's address is refused: it lies in the agents' cache.".to_owned())
        }
        _ => Ok(()),
    }
}

struct Git {
    env: BTreeMap<String, String>,
    key: Option<PathBuf>,
    home: PathBuf,
}

fn private_file(path: &Path, content: &str, mode: u32) -> Result<(), String> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(path)?;
        file.write_all(content.as_bytes())
    };
    write().map_err(|error| format!("{} cannot be written: {error}.", path.display()))
}

impl Git {
    fn set_up(source: &GitSource, places: Places<'_>, passed_on: &BTreeMap<String, String>) -> Result<Self, String> {
        let home = places.scratch.join("git");
        std::fs::create_dir_all(&home).map_err(|e| format!("{} cannot be created: {e}.", home.display()))?;
        std::fs::create_dir_all(places.cache.join("git"))
            .map_err(|e| format!("{} cannot be created: {e}.", places.cache.display()))?;
        let mut env: BTreeMap<String, String> = passed_on.clone();
        let mut set = |name: &str, value: &str| env.insert(name.to_owned(), value.to_owned());
        set("PATH", places.path);
        set("HOME", &home.to_string_lossy());
        set("LC_ALL", "C.UTF-8");
        set("LANGUAGE", "C");
        set("GIT_TERMINAL_PROMPT", "0");
        set("GIT_CONFIG_NOSYSTEM", "1");
        set("GIT_CONFIG_GLOBAL", "/dev/null");
        set("GIT_ALLOW_PROTOCOL", TRANSPORTS);
        set("GIT_ADVICE", "0");
        let settings = [
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            ("protocol.ext.allow", "never"),
            ("credential.helper", ""),
            ("safe.directory", "*"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("advice.detachedHead", "false"),
            ("init.defaultBranch", "main"),
            ("http.lowSpeedLimit", "1"),
            ("http.lowSpeedTime", "60"),
            // Relative addresses of submodules are relative to this.
            ("remote.origin.url", source.url.as_str()),
        ];
        set("GIT_CONFIG_COUNT", &settings.len().to_string());
        for (index, (name, value)) in settings.iter().enumerate() {
            set(&format!("GIT_CONFIG_KEY_{index}"), name);
            set(&format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        let mut key = None;
        let hosts = places.cache.join("git/known_hosts");
        let mut ssh = format!(
            "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=20 -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={}",
            quote(&hosts.to_string_lossy())
        );
        match &source.login {
            GitLogin::Anonymous => {}
            GitLogin::Token { username, token } => {
                let askpass = home.join("askpass");
                private_file(&askpass, ASKPASS, 0o700)?;
                set("GIT_ASKPASS", &askpass.to_string_lossy());
                set("DBTCLOUD_GIT_SITE", &site(&source.url));
                set(
                    "DBTCLOUD_GIT_USERNAME",
                    if username.is_empty() { "git" } else { username },
                );
                set("DBTCLOUD_GIT_TOKEN", token);
            }
            GitLogin::DeployKey { private_key } => {
                let file = home.join("key");
                private_file(&file, &format!("{}\n", private_key.replace("\r\n", "\n").trim()), 0o600)?;
                ssh.push_str(&format!(
                    " -o IdentitiesOnly=yes -o IdentityAgent=none -i {}",
                    quote(&file.to_string_lossy())
                ));
                key = Some(file);
            }
        }
        set("GIT_SSH_COMMAND", &ssh);
        set("GIT_SSH_VARIANT", "ssh");
        Ok(Self { env, key, home })
    }

    fn forget(&self) {
        if let Some(key) = &self.key {
            let _ = std::fs::remove_file(key);
        }
        let _ = std::fs::remove_dir_all(&self.home);
    }

    fn command(&self, dir: &Path, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new("git");
        command.args(args).current_dir(dir).env_clear().envs(&self.env);
        command
    }

    async fn execute(&self, command: std::process::Command, console: Option<&mut Console>) -> Result<Ran, String> {
        process::run(command, console)
            .await
            .map_err(|error| format!("git cannot be run: {error}."))
    }

    async fn run(&self, dir: &Path, args: &[&str], console: Option<&mut Console>) -> Result<Ran, String> {
        self.execute(self.command(dir, args), console).await
    }

    /// The trimmed output of a command that must succeed.
    async fn ask(&self, dir: &Path, args: &[&str]) -> Result<Option<String>, String> {
        let ran = self.run(dir, args, None).await?;
        Ok(ran.success.then(|| ran.stdout.trim().to_owned()))
    }

    async fn must(&self, dir: &Path, args: &[&str], what: &str) -> Result<(), String> {
        let ran = self.run(dir, args, None).await?;
        if ran.success {
            return Ok(());
        }
        Err(format!("{what}: {}", last_line(&ran.stderr)))
    }

    async fn work(
        &self,
        source: &GitSource,
        account: AccountId,
        places: Places<'_>,
        console: &mut Console,
    ) -> Result<Checkout, String> {
        let name = format!(
            "{account}-{}",
            hex::encode(&Sha256::digest(source.url.as_bytes())[..10])
        );
        let mirror = places.cache.join("git").join(format!("{name}.git"));
        let lock = process::lock(&places.cache.join("git").join(format!("{name}.lock")), LOCK_LIMIT)
            .await
            .map_err(|error| format!("The local copy of the repository cannot be locked: {error}."))?;
        if !mirror.join("HEAD").is_file() {
            let _ = std::fs::remove_dir_all(&mirror);
            let fresh = places.cache.join("git").join(format!("{name}.new"));
            let _ = std::fs::remove_dir_all(&fresh);
            let path = fresh.to_string_lossy().into_owned();
            self.must(
                places.cache,
                &[
                    "init",
                    "--quiet",
                    "--bare",
                    "--template=",
                    "--initial-branch=dbtcloud/unknown",
                    &path,
                ],
                "No local copy can be made",
            )
            .await?;
            std::fs::rename(&fresh, &mirror).map_err(|e| format!("No local copy can be made: {e}."))?;
        }
        let (sha, branch) = self.resolve(source, &mirror, console).await?;

        // Objects stay in the mirror, which never drops any while a run may use them.
        let failed = |e: std::io::Error| format!("{} cannot be set up: {e}.", places.checkout.display());
        std::fs::create_dir_all(places.checkout).map_err(failed)?;
        self.must(
            places.checkout,
            &["init", "--quiet", "--template="],
            "The checkout cannot be set up",
        )
        .await?;
        let info = places.checkout.join(".git/objects/info");
        let objects = mirror.canonicalize().map_err(failed)?.join("objects");
        std::fs::create_dir_all(&info).map_err(failed)?;
        std::fs::write(info.join("alternates"), format!("{}\n", objects.display())).map_err(failed)?;
        self.must(
            places.checkout,
            &["checkout", "--quiet", "--force", "--detach", &sha],
            "The commit cannot be checked out",
        )
        .await?;
        drop(lock);
        if places.checkout.join(".gitmodules").is_file() {
            console.line("Fetching submodules").await;
            let args = [
                "submodule",
                "update",
                "--init",
                "--recursive",
                "--depth",
                "1",
                "--quiet",
            ];
            let mut command = self.command(places.checkout, &args);
            // What a repository names is not what its owner was asked for: no files of this host.
            if !source.url.starts_with("file://") && !source.url.starts_with('/') {
                command.env("GIT_ALLOW_PROTOCOL", TRANSPORTS.trim_end_matches(":file"));
            }
            let ran = self.execute(command, Some(console)).await?;
            if !ran.success {
                return Err(format!("The submodules cannot be fetched: {}", last_line(&ran.stderr)));
            }
        }
        let subject = self
            .ask(places.checkout, &["log", "-1", "--format=%s"])
            .await?
            .unwrap_or_default();
        let at = branch.as_ref().map_or(String::new(), |branch| format!(" of {branch}"));
        console.line(&format!("Checked out {sha}{at}: {subject}")).await;
        let project = project_dir(places.checkout, source.subdirectory.as_deref())?;
        Ok(Checkout { project, sha, branch })
    }

    /// Brings the mirror up to date as far as it is needed, and finds the commit.
    async fn resolve(
        &self,
        source: &GitSource,
        mirror: &Path,
        console: &mut Console,
    ) -> Result<(String, Option<String>), String> {
        let url = source.url.as_str();
        if let Some(commit) = &source.commit
            && let Some(sha) = self.commit(mirror, commit).await?
        {
            console.line(&format!("{url}: commit {sha} is in the local copy")).await;
            return Ok((sha, source.branch.clone()));
        }
        console.line(&format!("Fetching {url}")).await;
        let everything = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let mut args = vec![
            "fetch",
            "--quiet",
            "--prune",
            "--no-auto-gc",
            "--no-recurse-submodules",
            "--update-head-ok",
            "--",
            url,
        ];
        args.extend(everything);
        let fetched = self.run(mirror, &args, Some(console)).await?;
        if !fetched.success {
            let known = match (&source.commit, &source.branch) {
                (None, Some(branch)) => self.named(mirror, branch).await?,
                (None, None) => self.default_of_mirror(mirror).await?,
                (Some(_), _) => None,
            };
            return match (trouble(&fetched.stderr), known) {
                (Trouble::Away, Some((sha, branch))) => {
                    console
                        .line(&format!(
                            "WARN: {url} cannot be reached; the local copy of {branch} is used: {}",
                            last_line(&fetched.stderr)
                        ))
                        .await;
                    Ok((sha, Some(branch)))
                }
                (Trouble::Away, None) => Err(format!("{url} cannot be reached: {}", last_line(&fetched.stderr))),
                (Trouble::Login, _) => Err(format!("Logging in to {url} failed: {}", last_line(&fetched.stderr))),
                (Trouble::Missing, _) => Err(format!(
                    "{url} does not exist, or may not be seen with these credentials: {}",
                    last_line(&fetched.stderr)
                )),
            };
        }
        if let Some(commit) = &source.commit {
            if let Some(sha) = self.commit(mirror, commit).await? {
                return Ok((sha, source.branch.clone()));
            }
            // Of no branch: a pull request from a fork, for example.
            if commit.len() >= 40 {
                let args = ["fetch", "--quiet", "--no-auto-gc", "--", url, commit];
                self.run(mirror, &args, None).await?;
                if let Some(sha) = self.commit(mirror, commit).await? {
                    return Ok((sha, source.branch.clone()));
                }
            }
            return Err(format!("commit '{commit}' does not exist in {url}"));
        }
        if let Some(branch) = &source.branch {
            if let Some((sha, branch)) = self.named(mirror, branch).await? {
                return Ok((sha, Some(branch)));
            }
            if let Some(sha) = self.commit(mirror, branch).await? {
                return Ok((sha, None));
            }
            return Err(format!("branch '{branch}' does not exist in {url}"));
        }
        let head = self
            .ask(mirror, &["ls-remote", "--symref", "--", url, "HEAD"])
            .await?
            .unwrap_or_default();
        let branch = head
            .lines()
            .find_map(|line| line.strip_prefix("ref: refs/heads/")?.split('\t').next());
        let Some(branch) = branch else {
            return Err(format!("{url} has no default branch; is it empty?"));
        };
        self.must(
            mirror,
            &["symbolic-ref", "HEAD", &format!("refs/heads/{branch}")],
            "The default branch cannot be kept",
        )
        .await?;
        match self.named(mirror, branch).await? {
            Some((sha, branch)) => Ok((sha, Some(branch))),
            None => Err(format!("{url} has no commit on its default branch '{branch}'")),
        }
    }

    async fn commit(&self, mirror: &Path, commit: &str) -> Result<Option<String>, String> {
        if commit.len() < 7 || commit.len() > 64 || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        self.ask(
            mirror,
            &["rev-parse", "--quiet", "--verify", &format!("{commit}^{{commit}}")],
        )
        .await
    }

    async fn named(&self, mirror: &Path, name: &str) -> Result<Option<(String, String)>, String> {
        for place in ["refs/heads", "refs/tags"] {
            let full = format!("{place}/{name}^{{commit}}");
            if let Some(sha) = self.ask(mirror, &["rev-parse", "--quiet", "--verify", &full]).await? {
                return Ok(Some((sha, name.to_owned())));
            }
        }
        Ok(None)
    }

    async fn default_of_mirror(&self, mirror: &Path) -> Result<Option<(String, String)>, String> {
        match self
            .ask(mirror, &["symbolic-ref", "--quiet", "--short", "HEAD"])
            .await?
        {
            Some(branch) => self.named(mirror, &branch).await,
            None => Ok(None),
        }
    }
}

/// The folder of the project, if it is one and inside the checkout.
fn project_dir(checkout: &Path, subdirectory: Option<&str>) -> Result<PathBuf, String> {
    let inside = subdirectory.unwrap_or_default().trim_matches('/');
    let place = if inside.is_empty() {
        "the repository".to_owned()
    } else {
        format!("folder '{inside}' of the repository")
    };
    let missing = || format!("{place} holds no dbt_project.yml");
    let root = checkout
        .canonicalize()
        .map_err(|e| format!("{} is gone: {e}.", checkout.display()))?;
    let project = root.join(inside).canonicalize().map_err(|_| missing())?;
    if !project.starts_with(&root) {
        return Err(format!("{place} lies outside of it"));
    }
    if !project.join("dbt_project.yml").is_file() {
        return Err(missing());
    }
    Ok(project)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Login,
    Missing,
    Away,
}

/// What kept git from fetching, by its own words.
fn trouble(stderr: &str) -> Trouble {
    let any = |marks: &[&str]| marks.iter().any(|mark| stderr.contains(mark));
    if any(&[
        "Authentication failed",
        "could not read Username",
        "could not read Password",
        "Permission denied (",
        "Access denied",
        "returned error: 401",
        "returned error: 403",
        "Host key verification failed",
        "invalid format",
    ]) {
        Trouble::Login
    } else if any(&[
        "Repository not found",
        "returned error: 404",
        "ERROR: The project you were looking for",
    ]) || (stderr.contains("repository '") && stderr.contains("' not found"))
    {
        Trouble::Missing
    } else {
        Trouble::Away
    }
}

/// Scheme and host, with the port if there is one, as git names them when it asks.
fn site(url: &str) -> String {
    Url::parse(url).map_or(String::new(), |url| {
        let host = url.host_str().unwrap_or_default();
        let port = url.port().map_or(String::new(), |port| format!(":{port}"));
        format!("{}://{host}{port}", url.scheme())
    })
}

fn last_line(text: &str) -> String {
    let line = text.lines().rev().map(str::trim).find(|line| {
        !line.is_empty() && *line != "and the repository exists." && !line.starts_with("Please make sure")
    });
    line.unwrap_or("git says nothing")
        .trim_start_matches("fatal: ")
        .to_owned()
}

fn quote(text: &str) -> String {
    shlex::try_quote(text).map_or_else(|_| text.to_owned(), std::borrow::Cow::into_owned)
}

#[cfg(test)]
#[path = "git_tests.rs"]
mod tests;
