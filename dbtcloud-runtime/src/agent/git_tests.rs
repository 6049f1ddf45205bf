#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::*;
use crate::agent::redact::Redactor;
use crate::agent::reporter::Reporter;

const TOKEN: &str = "ghp_verysecrettoken";

fn git(dir: &Path, args: &[&str]) -> String {
    let out = Command::new("git")
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "protocol.file.allow=always",
        ])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A bare repository with `main` and `other`, a tag, and a project in a folder.
struct Host {
    dir: tempfile::TempDir,
    bin: String,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir_all(work.join("sub/shop")).unwrap();
        std::fs::create_dir_all(dir.path().join("cache")).unwrap();
        git(&work, &["init", "--quiet", "-b", "main"]);
        std::fs::write(work.join("dbt_project.yml"), "name: a\n").unwrap();
        std::fs::write(work.join("sub/shop/dbt_project.yml"), "name: b\n").unwrap();
        std::os::unix::fs::symlink("/etc", work.join("out")).unwrap();
        let host = Self {
            dir,
            bin: "/usr/local/bin:/usr/bin:/bin".to_owned(),
        };
        host.commit("first");
        git(&work, &["tag", "v1"]);
        git(&work, &["branch", "other"]);
        git(host.dir.path(), &["clone", "--quiet", "--bare", "work", "repo.git"]);
        host
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn bare(&self) -> PathBuf {
        self.dir.path().join("repo.git")
    }

    fn commit(&self, message: &str) -> String {
        git(&self.work(), &["add", "-A"]);
        git(&self.work(), &["commit", "--quiet", "--allow-empty", "-m", message]);
        git(&self.work(), &["rev-parse", "HEAD"])
    }

    fn push(&self, message: &str) -> String {
        let sha = self.commit(message);
        git(&self.work(), &["push", "--quiet", "../repo.git", "main"]);
        git(&self.bare(), &["update-server-info"]);
        sha
    }

    fn source(&self) -> GitSource {
        GitSource {
            url: format!("file://{}", self.bare().display()),
            branch: None,
            commit: None,
            subdirectory: None,
            login: GitLogin::Anonymous,
        }
    }

    /// What came of it, and the log.
    async fn get(&self, source: &GitSource) -> (Result<Checkout, String>, String) {
        let place = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let reporter = Reporter::new(place.clone(), 1 << 20);
        let redactor = Arc::new(Redactor::new([TOKEN]).unwrap());
        let mut console = Console::new(reporter.clone(), redactor, 1);
        let (cache, scratch, checkout) = (self.dir.path().join("cache"), place.join("login"), place.join("code"));
        let places = Places {
            cache: &cache,
            scratch: &scratch,
            checkout: &checkout,
            path: &self.bin,
        };
        let got = check_out(source, AccountId::new(1), places, &BTreeMap::new(), &mut console).await;
        console.settle().await;
        assert!(!scratch.join("git").exists(), "nothing of the login is left");
        let log = reporter.drain().into_iter().flat_map(|report| report.logs);
        let log: Vec<u8> = log.flat_map(|part| part.bytes.to_vec()).collect();
        (got, String::from_utf8(log).unwrap())
    }

    fn program(&mut self, name: &str, script: &str) {
        let bin = self.dir.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join(name), script).unwrap();
        std::fs::set_permissions(bin.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        if !self.bin.starts_with(bin.to_str().unwrap()) {
            self.bin = format!("{}:{}", bin.display(), self.bin);
        }
    }

    /// All bytes of all files below a folder.
    fn holds(&self, folder: &str, needle: &str) -> bool {
        let out = Command::new("grep")
            .args(["-rqaF", needle, folder])
            .current_dir(self.dir.path())
            .status();
        out.unwrap().success()
    }
}

#[tokio::test]
async fn branches_tags_and_commits() {
    let host = Host::new();
    let first = git(&host.work(), &["rev-parse", "HEAD"]);
    let second = host.push("second");
    let source = host.source();
    let with = |branch: Option<&str>, commit: Option<&str>| GitSource {
        branch: branch.map(str::to_owned),
        commit: commit.map(str::to_owned),
        ..source.clone()
    };
    for (asked, sha, branch) in [
        (with(None, None), &second, Some("main")),
        (with(Some("main"), None), &second, Some("main")),
        (with(Some("other"), None), &first, Some("other")),
        (with(Some("v1"), None), &first, Some("v1")),
        (with(Some(&first), None), &first, None),
        (with(Some("main"), Some(&first)), &first, Some("main")),
        (with(None, Some(&first[..10])), &first, None),
    ] {
        let (got, log) = host.get(&asked).await;
        let got = got.unwrap();
        assert_eq!((&got.sha, got.branch.as_deref()), (sha, branch), "{log}");
        assert_eq!(git(&got.project, &["rev-parse", "HEAD"]), *sha);
        assert!(got.project.join("dbt_project.yml").is_file());
    }
    let third = host.push("third: with a subject");
    let (got, log) = host.get(&with(Some("main"), None)).await;
    assert_eq!(got.unwrap().sha, third);
    assert!(
        log.contains(&format!("Checked out {third} of main: third: with a subject")),
        "{log}"
    );
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let host = Host::new();
    let source = host.source();
    let none = "0123456789012345678901234567890123456789";
    for (asked, expected) in [
        (
            GitSource {
                branch: Some("nope".into()),
                ..source.clone()
            },
            "branch 'nope' does not exist in file://",
        ),
        (
            GitSource {
                commit: Some(none.into()),
                ..source.clone()
            },
            "commit '0123456789012345678901234567890123456789' does not exist in file://",
        ),
        (
            GitSource {
                subdirectory: Some("sub".into()),
                ..source.clone()
            },
            "folder 'sub' of the repository holds no dbt_project.yml",
        ),
        (
            GitSource {
                subdirectory: Some("none".into()),
                ..source.clone()
            },
            "folder 'none' of the repository holds no dbt_project.yml",
        ),
        (
            GitSource {
                subdirectory: Some("out".into()),
                ..source.clone()
            },
            "lies outside",
        ),
        (
            GitSource {
                subdirectory: Some("../..".into()),
                ..source.clone()
            },
            "lies outside",
        ),
        (
            GitSource {
                url: format!("file://{}/none.git", host.dir.path().display()),
                ..source.clone()
            },
            "cannot be reached",
        ),
    ] {
        let (got, _) = host.get(&asked).await;
        let error = got.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let inside = GitSource {
        subdirectory: Some("/sub/shop/".into()),
        ..source
    };
    assert!(host.get(&inside).await.0.unwrap().project.ends_with("sub/shop"));
}

#[tokio::test]
async fn the_local_copy_serves_while_the_provider_is_away() {
    let host = Host::new();
    let source = GitSource {
        branch: Some("main".into()),
        ..host.source()
    };
    let sha = host.get(&source).await.0.unwrap().sha;
    std::fs::rename(host.bare(), host.dir.path().join("gone")).unwrap();
    let (got, log) = host.get(&source).await;
    assert_eq!(got.unwrap().sha, sha);
    assert!(
        log.contains("WARN: ") && log.contains("the local copy of main is used"),
        "{log}"
    );
    let (got, log) = host
        .get(&GitSource {
            commit: Some(sha.clone()),
            ..source.clone()
        })
        .await;
    assert_eq!(got.unwrap().sha, sha);
    assert!(!log.contains("WARN"), "a commit does not change: {log}");
    let (got, _) = host
        .get(&GitSource {
            branch: None,
            ..source.clone()
        })
        .await;
    assert_eq!(
        got.unwrap_err().split(": ").next().unwrap().split(' ').next_back(),
        Some("reached")
    );
    let (got, _) = host
        .get(&GitSource {
            branch: Some("nope".into()),
            ..source
        })
        .await;
    assert!(got.unwrap_err().contains("cannot be reached"));
}

#[tokio::test]
async fn many_agents_share_one_mirror() {
    let host = Host::new();
    let source = host.source();
    let all = futures::future::join_all((0..6).map(|_| host.get(&source))).await;
    assert!(all.iter().all(|(got, _)| got.is_ok()));
    let mirrors = std::fs::read_dir(host.dir.path().join("cache/git")).unwrap();
    let mirrors = mirrors
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "git"));
    assert_eq!(mirrors.count(), 1);
}

#[tokio::test]
async fn hostile_addresses_and_names_are_refused() {
    let host = Host::new();
    let evil = host.dir.path().join("evil");
    let touch = evil.display().to_string();
    for url in [
        "--upload-pack=touch /tmp/x".to_owned(),
        "-oProxyCommand=x".to_owned(),
        format!("ext::sh -c touch% {touch}"),
        format!("ext::touch%20{touch}"),
        "fd::1".to_owned(),
        "ftp://host/x".to_owned(),
        "ssh://-oProxyCommand=touch/x".to_owned(),
        format!("https://user:{TOKEN}@host/x"),
        "https://host/x\n".to_owned(),
        String::new(),
        format!("file://{}/cache", host.dir.path().display()),
    ] {
        let (got, log) = host
            .get(&GitSource {
                url: url.clone(),
                ..host.source()
            })
            .await;
        let error = got.unwrap_err();
        assert!(error.contains("is refused"), "{url}: {error}");
        assert!(!error.contains(TOKEN) && !log.contains(TOKEN));
    }
    for name in ["--upload-pack=x", "a b", "a..b^{}", "", "x\ny", "refs:heads"] {
        let asked = GitSource {
            branch: Some(name.to_owned()),
            ..host.source()
        };
        assert!(host.get(&asked).await.0.unwrap_err().contains("is no name"), "{name:?}");
    }
    assert!(!evil.exists());
}

/// Serves a bare repository as plain files to whoever has the token; what was sent to log in.
async fn serve(root: PathBuf, token: Option<&'static str>) -> (String, Arc<Mutex<Vec<String>>>) {
    use axum::http::{HeaderMap, StatusCode, Uri};
    use axum::response::IntoResponse as _;
    use base64::Engine as _;
    let logins = Arc::new(Mutex::new(Vec::new()));
    let seen = logins.clone();
    let expected = token.map(|token| {
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(format!("oauth2:{token}"))
        )
    });
    let serve = move |uri: Uri, headers: HeaderMap| {
        let (root, expected, seen) = (root.clone(), expected.clone(), seen.clone());
        async move {
            let login = headers
                .get("authorization")
                .map(|value| value.to_str().unwrap().to_owned());
            seen.lock().unwrap().extend(login.clone());
            if expected.is_some() && login != expected {
                return (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=git")]).into_response();
            }
            match std::fs::read(root.join(uri.path().trim_start_matches('/'))) {
                Ok(bytes) => bytes.into_response(),
                Err(_) => StatusCode::NOT_FOUND.into_response(),
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        axum::serve(listener, axum::Router::new().fallback(serve))
            .await
            .unwrap()
    });
    (address, logins)
}

fn token(token: &str) -> GitLogin {
    GitLogin::Token {
        username: "oauth2".to_owned(),
        token: token.to_owned(),
    }
}

#[tokio::test]
async fn a_token_is_used_and_stands_nowhere() {
    let mut host = Host::new();
    host.push("for http");
    let arguments = host.dir.path().join("arguments");
    host.program(
        "git",
        &format!(
            "#!/bin/sh\necho \"$@\" >> {}\nPATH=/usr/local/bin:/usr/bin:/bin exec git \"$@\"\n",
            arguments.display()
        ),
    );
    let (address, logins) = serve(host.dir.path().to_path_buf(), Some(TOKEN)).await;
    let source = GitSource {
        url: format!("{address}/repo.git"),
        branch: Some("main".into()),
        login: token(TOKEN),
        ..host.source()
    };
    let (got, log) = host.get(&source).await;
    got.unwrap();
    assert!(!logins.lock().unwrap().is_empty());
    assert!(!log.contains(TOKEN));
    assert!(std::fs::read_to_string(&arguments).unwrap().contains("fetch"));
    assert!(!host.holds(".", TOKEN), "neither arguments nor any file");

    let wrong = GitSource {
        login: token("ghp_wrong"),
        ..source.clone()
    };
    let error = host.get(&wrong).await.0.unwrap_err();
    assert!(
        error.contains("Logging in to http://127.0.0.1") && error.contains("failed"),
        "{error}"
    );
    let anonymous = GitSource {
        login: GitLogin::Anonymous,
        ..source.clone()
    };
    assert!(host.get(&anonymous).await.0.unwrap_err().contains("Logging in"));
    let missing = GitSource {
        url: format!("{address}/none.git"),
        ..source
    };
    let error = host.get(&missing).await.0.unwrap_err();
    assert!(error.contains("does not exist, or may not be seen"), "{error}");
}

#[tokio::test]
async fn a_token_is_for_one_host_only() {
    let host = Host::new();
    let (thief, stolen) = serve(host.dir.path().to_path_buf(), Some("never")).await;
    let sha = git(&host.work(), &["rev-parse", "HEAD"]);
    std::fs::write(
        host.work().join(".gitmodules"),
        format!("[submodule \"m\"]\n\tpath = m\n\turl = {thief}/repo.git\n"),
    )
    .unwrap();
    git(
        &host.work(),
        &["update-index", "--add", "--cacheinfo", &format!("160000,{sha},m")],
    );
    git(&host.work(), &["add", ".gitmodules"]);
    git(&host.work(), &["commit", "--quiet", "-m", "module"]);
    git(&host.work(), &["push", "--quiet", "../repo.git", "main"]);
    git(&host.bare(), &["update-server-info"]);
    let (address, _) = serve(host.dir.path().to_path_buf(), Some(TOKEN)).await;
    let source = GitSource {
        url: format!("{address}/repo.git"),
        branch: Some("main".into()),
        login: token(TOKEN),
        ..host.source()
    };
    let error = host.get(&source).await.0.unwrap_err();
    assert!(error.contains("submodules cannot be fetched"), "{error}");
    assert_eq!(*stolen.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn submodules_come_along() {
    let host = Host::new();
    let module = host.dir.path().join("module");
    std::fs::create_dir(&module).unwrap();
    git(&module, &["init", "--quiet", "-b", "main"]);
    std::fs::write(module.join("macro.sql"), "x").unwrap();
    git(&module, &["add", "-A"]);
    git(&module, &["commit", "--quiet", "-m", "m"]);
    git(&host.work(), &["submodule", "--quiet", "add", "../module", "m"]);
    git(
        &host.work(),
        &["config", "-f", ".gitmodules", "submodule.m.url", "../module"],
    );
    host.push("with module");
    let (got, log) = host.get(&host.source()).await;
    assert!(got.unwrap().project.join("m/macro.sql").is_file(), "{log}");
}

#[tokio::test]
async fn a_deploy_key_is_used_and_removed() {
    let mut host = Host::new();
    let record = host.dir.path().join("record");
    let script = format!(
        r#"#!/bin/bash
[ "$1" = -G ] && exit 1
prev=; for a in "$@"; do [ "$prev" = -i ] && {{ stat -c %a "$a"; cat "$a"; echo "$a"; }} >> {0}; prev=$a; done
echo "args $*" >> {0}
PATH=/usr/local/bin:/usr/bin:/bin exec sh -c "${{@: -1}}"
"#,
        record.display()
    );
    host.program("ssh", &script);
    let key = "-----BEGIN KEY-----\r\nabcdef\r\n-----END KEY-----";
    let source = GitSource {
        url: format!("ssh://git@example.com{}", host.bare().display()),
        login: GitLogin::DeployKey {
            private_key: key.to_owned(),
        },
        ..host.source()
    };
    let (got, log) = host.get(&source).await;
    got.unwrap_or_else(|error| panic!("{error}: {log}"));
    let record = std::fs::read_to_string(record).unwrap();
    let mut lines = record.lines();
    assert_eq!(lines.next(), Some("600"));
    assert!(record.contains("-----BEGIN KEY-----\nabcdef\n-----END KEY-----\n"));
    assert!(record.contains("StrictHostKeyChecking=accept-new") && record.contains("known_hosts"));
    let file = record.lines().find(|line| line.ends_with("/key")).unwrap();
    assert!(!Path::new(file).exists());
}

#[tokio::test]
async fn dropped_early_it_leaves_no_process() {
    let mut host = Host::new();
    let mark = format!("76543{}", std::process::id());
    host.program("git", &format!("#!/bin/sh\nsleep {mark} & sleep {mark}\n"));
    let source = host.source();
    let _ = tokio::time::timeout(Duration::from_millis(300), host.get(&source)).await;
    let gone = || async {
        let found = Command::new("pgrep")
            .args(["-f", &format!("sleep {mark}")])
            .output()
            .unwrap();
        if found.status.success() {
            Err(found.stdout)
        } else {
            Ok(())
        }
    };
    dbtcloud_contract::wait::until(Duration::from_secs(10), gone).await;
}
