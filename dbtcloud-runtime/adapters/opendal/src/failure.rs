//! What a store's failures mean to the caller.

use std::io;

use dbtcloud_core::{Error, ErrorKind};

use crate::transport::Broken;

/// What errors say of a store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    name: String,
    access: &'static str,
}

impl Store {
    pub(crate) fn new(name: impl Into<String>, access: &'static str) -> Self {
        let name = name.into();
        Self { name, access }
    }
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// A reason, and whether a person must do something before it can be better.
struct Reason {
    kind: ErrorKind,
    text: String,
}

/// A failure of the store, about `what`. Reasons that a person can do something about stand in the text;
/// the kind is always `Unavailable`, for what is mended is good at the next try.
pub(crate) fn unavailable(store: &Store, what: impl std::fmt::Display, error: opendal::Error) -> Error {
    let Reason { text, .. } = reason(store, &error);
    Error::new(ErrorKind::Unavailable, format!("{what}: {text}")).because(error)
}

/// The same for a store that is being looked at: what trying again cannot mend is `Invalid` or `Denied`.
pub(crate) fn cannot_use(store: &Store, error: opendal::Error) -> Error {
    let Reason { kind, text } = reason(store, &error);
    Error::new(kind, format!("artifacts in {store}: {text}")).because(error)
}

/// Codes by which S3, Azure and Google name a reason; they stand in the text of opendal's error.
const NO_BUCKET: [&str; 4] = [
    "NoSuchBucket",
    "ContainerNotFound",
    "The specified bucket does not exist",
    "InvalidBucketName",
];
const SKEW: [&str; 3] = ["RequestTimeTooSkewed", "RequestExpired", "Request date header too old"];
const BAD_KEY: [&str; 8] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "Invalid Credentials",
    "AuthorizationFailure",
];
const OTHER_REGION: [&str; 3] = [
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraint",
];

fn reason(store: &Store, error: &opendal::Error) -> Reason {
    let access = store.access;
    let reason = |kind, text: String| Reason { kind, text };
    let unavailable = |text: &str| reason(ErrorKind::Unavailable, text.to_owned());
    match io_kind(error) {
        Some(io::ErrorKind::StorageFull) => return unavailable("no space left on the device"),
        Some(io::ErrorKind::QuotaExceeded) => return unavailable("the quota is used up"),
        Some(io::ErrorKind::ReadOnlyFilesystem) => return unavailable("the file system is read-only"),
        _ => {}
    }
    let text = error.to_string();
    let has = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
    if has(&NO_BUCKET) {
        let text = format!("{store} does not exist; create it or correct the artifacts URL");
        return reason(ErrorKind::Invalid, text);
    }
    if has(&SKEW) {
        let text = "the store's clock and this machine's differ too much; set both by NTP";
        return unavailable(text);
    }
    if has(&BAD_KEY) {
        let text = format!("the store does not accept the credentials; check {access}");
        return reason(ErrorKind::Denied, text);
    }
    if has(&OTHER_REGION) {
        let text = "the bucket is in another region; correct region= in the artifacts URL";
        return reason(ErrorKind::Invalid, text.to_owned());
    }
    if text.contains("signing credential")
        || text.contains("no valid credential")
        || text.contains("credential to sign")
    {
        return reason(ErrorKind::Denied, format!("no credentials were found; set {access}"));
    }
    if has_source::<Broken>(error) {
        return unavailable(&format!(
            "{store} cannot be reached; check the endpoint and the network"
        ));
    }
    match error.kind() {
        opendal::ErrorKind::PermissionDenied => reason(
            ErrorKind::Denied,
            format!(
                "the store refused it; grant reading, writing, listing and deleting in {store} (access is by {access})"
            ),
        ),
        _ if text.contains("timeout") => unavailable(&format!("{store} did not answer in time")),
        opendal::ErrorKind::RateLimited => unavailable("the store asks for fewer requests"),
        kind => unavailable(&format!("the store answered {}", kind.into_static())),
    }
}

/// Whether the thing is not there. On a file system also when a file stands where its directory would be.
pub(crate) fn is_absent(error: &opendal::Error) -> bool {
    matches!(
        error.kind(),
        opendal::ErrorKind::NotFound | opendal::ErrorKind::NotADirectory
    ) && !NO_BUCKET.iter().any(|code| error.to_string().contains(code))
        || io_kind(error) == Some(io::ErrorKind::NotADirectory)
}

/// Whether a file stands where a directory is needed or the other way round; only file systems have that.
pub(crate) fn is_in_the_way(error: &opendal::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory};
    matches!(
        io_kind(error),
        Some(AlreadyExists | DirectoryNotEmpty | IsADirectory | NotADirectory)
    ) || matches!(
        error.kind(),
        opendal::ErrorKind::NotADirectory | opendal::ErrorKind::IsADirectory
    )
}

fn io_kind(error: &opendal::Error) -> Option<io::ErrorKind> {
    sources(error).find_map(|error| error.downcast_ref::<io::Error>().map(io::Error::kind))
}

fn has_source<T: std::error::Error + 'static>(error: &opendal::Error) -> bool {
    sources(error).any(|error| error.is::<T>())
}

fn sources(error: &opendal::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |error| error.source())
}
