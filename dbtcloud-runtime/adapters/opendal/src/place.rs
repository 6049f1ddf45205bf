//! What an artifacts URL names, and the operator that speaks to it.

use std::time::Duration;

use dbtcloud_core::secret::Secret;
use dbtcloud_core::{Error, Result};
use opendal::layers::{RetryEvent, RetryLayer, TimeoutLayer};
use opendal::{HttpTransporter, OperationContext, Operator, services};

use crate::failure::{Store, cannot_use};
use crate::transport::Transport;

/// How long a question to an object store may take, one try.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long one part may be on its way, up or down.
const PART_LIMIT: Duration = Duration::from_secs(30);
/// How often a call is tried again before it is `Unavailable`; whoever called tries again later.
const RETRIES: usize = 3;
/// The first pause between two tries and the longest, each with jitter.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

const SCHEMES: &str = "s3://bucket/prefix, azblob://container/prefix, gcs://bucket/prefix, file:///path and memory://";

/// The field that errors name.
const FIELD: &str = "artifacts_url";

/// How an object store is reached, beside its URL. Nothing by default: an adapter reads no environment
/// unless it is told to.
///
/// ```
/// use dbtcloud_core::secret::Secret;
/// use dbtcloud_opendal::Options;
/// let options = Options::new().with_key("AKIAEXAMPLE", Secret::new("hunter2"));
/// assert!(!format!("{options:?}").contains("hunter2"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Options {
    credentials: Credentials,
}

#[derive(Clone, Debug, Default)]
enum Credentials {
    #[default]
    None,
    Standard,
    Key {
        name: String,
        secret: Secret,
    },
}

impl Options {
    /// No credentials: enough for a directory and for memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Credentials as the cloud's own programs find them: variables of this process's environment (such as
    /// `AWS_ACCESS_KEY_ID`, `AZURE_STORAGE_ACCOUNT_KEY`, `GOOGLE_APPLICATION_CREDENTIALS`), configuration
    /// files, web identity, the machine's role. They are looked up when they are needed and renewed.
    #[must_use]
    pub fn with_standard_credentials(mut self) -> Self {
        self.credentials = Credentials::Standard;
        self
    }

    /// A fixed access key and its secret (S3), or an account and its key (Azure).
    #[must_use]
    pub fn with_key(mut self, name: impl Into<String>, secret: Secret) -> Self {
        let name = name.into();
        self.credentials = Credentials::Key { name, secret };
        self
    }
}

/// A URL that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Directory(String),
    Memory,
    S3 {
        bucket: String,
        prefix: String,
        region: Option<String>,
        endpoint: Option<String>,
        path_style: bool,
        checksum: Option<String>,
    },
    Azure {
        container: String,
        prefix: String,
        endpoint: String,
        account: Option<String>,
    },
    Gcs {
        bucket: String,
        prefix: String,
        endpoint: Option<String>,
    },
}

/// The parameters of a URL, taken one by one; what is left over is a mistake.
struct Parameters {
    given: Vec<(String, String)>,
    known: &'static [&'static str],
}

impl Parameters {
    fn of(url: &url::Url, known: &'static [&'static str], secrets: &str) -> Result<Self> {
        let given: Vec<_> = url.query_pairs().into_owned().collect();
        for (index, (name, _)) in given.iter().enumerate() {
            if ["key", "secret", "token", "sig", "password", "credential"]
                .iter()
                .any(|part| name.to_ascii_lowercase().contains(part))
            {
                return Err(secret_in_url(secrets));
            }
            if !known.contains(&name.as_str()) {
                let expected = format!("parameter '{name}' is not known; known are {}", known.join(", "));
                return Err(Error::invalid(FIELD, expected));
            }
            if given[..index].iter().any(|(other, _)| other == name) {
                return Err(Error::invalid(FIELD, format!("parameter '{name}' is given twice")));
            }
        }
        Ok(Self { given, known })
    }

    fn take(&mut self, name: &str) -> Option<String> {
        debug_assert!(self.known.contains(&name));
        let at = self.given.iter().position(|(given, _)| given == name)?;
        Some(self.given.swap_remove(at).1).filter(|value| !value.is_empty())
    }

    fn take_endpoint(&mut self) -> Result<Option<String>> {
        let Some(text) = self.take("endpoint") else {
            return Ok(None);
        };
        match url::Url::parse(&text) {
            Ok(url)
                if ["http", "https"].contains(&url.scheme()) && url.username().is_empty() && url.query().is_none() =>
            {
                Ok(Some(text.trim_end_matches('/').to_owned()))
            }
            _ => Err(Error::invalid(
                FIELD,
                "endpoint: expected http://host:port or https://host",
            )),
        }
    }

    fn take_flag(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name).as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(Error::invalid(FIELD, format!("{name}: expected true or false"))),
        }
    }
}

fn secret_in_url(variables: &str) -> Error {
    let expected =
        format!("credentials do not belong in the URL, where logs and process lists show them; set {variables}");
    Error::invalid(FIELD, expected)
}

impl Place {
    /// Understands a URL. The text may hold credentials, so no message repeats more of it than names.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let url = url::Url::parse(text)
            .map_err(|error| Error::invalid(FIELD, format!("expected a URL: {SCHEMES}")).because(error))?;
        let (known, secrets): (&[&str], _) = match url.scheme() {
            "file" | "memory" => (&[], "nothing: this store needs none"),
            "s3" => (
                &["region", "endpoint", "path_style", "checksum"],
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ),
            "azblob" => (
                &["account", "endpoint"],
                "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
            ),
            "gcs" => (&["endpoint"], "GOOGLE_APPLICATION_CREDENTIALS"),
            other => {
                let expected = format!("cannot speak '{other}'; expected {SCHEMES}");
                return Err(Error::invalid(FIELD, expected));
            }
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(secret_in_url(secrets));
        }
        let mut parameters = Parameters::of(&url, known, secrets)?;
        let bucket = || match url.host_str() {
            Some(host) if !host.is_empty() && url.port().is_none() => Ok(host.to_owned()),
            _ => Err(Error::invalid(FIELD, format!("expected a bucket: {SCHEMES}"))),
        };
        let prefix = format!("/{}", url.path().trim_matches('/'));
        match url.scheme() {
            "file" => {
                let path = url
                    .to_file_path()
                    .ok()
                    .and_then(|path| path.to_str().map(str::to_owned));
                path.map(Self::Directory)
                    .ok_or_else(|| Error::invalid(FIELD, "expected file:///path, with an absolute path in UTF-8"))
            }
            "s3" => {
                let endpoint = parameters.take_endpoint()?;
                let checksum = match parameters.take("checksum").as_deref() {
                    None | Some("crc32c") => Some("crc32c".to_owned()),
                    Some("md5") => Some("md5".to_owned()),
                    Some("none") => None,
                    Some(_) => return Err(Error::invalid(FIELD, "checksum: expected crc32c, md5 or none")),
                };
                Ok(Self::S3 {
                    bucket: bucket()?,
                    prefix,
                    // Servers that are not Amazon's rarely have regions, but a signature names one.
                    region: parameters
                        .take("region")
                        .or_else(|| endpoint.as_ref().map(|_| "us-east-1".to_owned())),
                    path_style: parameters.take_flag("path_style")?.unwrap_or(endpoint.is_some()),
                    endpoint,
                    checksum,
                })
            }
            "azblob" => {
                let account = parameters.take("account");
                let endpoint = match (parameters.take_endpoint()?, &account) {
                    (Some(endpoint), _) => endpoint,
                    (None, Some(account)) => format!("https://{account}.blob.core.windows.net"),
                    (None, None) => {
                        let expected = "expected account=NAME or endpoint=https://NAME.blob.core.windows.net";
                        return Err(Error::invalid(FIELD, expected));
                    }
                };
                Ok(Self::Azure {
                    container: bucket()?,
                    prefix,
                    endpoint,
                    account,
                })
            }
            "gcs" => Ok(Self::Gcs {
                bucket: bucket()?,
                prefix,
                endpoint: parameters.take_endpoint()?,
            }),
            _ => Ok(Self::Memory),
        }
    }

    /// The whole bucket, and the prefix in it, which ends with `/` or is empty; `None` for what is none.
    pub(crate) fn whole(mut self) -> Option<(Self, String)> {
        let prefix = match &mut self {
            Self::S3 { prefix, .. } | Self::Azure { prefix, .. } | Self::Gcs { prefix, .. } => {
                std::mem::replace(prefix, "/".to_owned())
            }
            Self::Directory(_) | Self::Memory => return None,
        };
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        Some((self, prefix))
    }

    /// The place of this name inside of it.
    pub(crate) fn below(mut self, name: &str) -> Self {
        match &mut self {
            Self::Directory(at)
            | Self::S3 { prefix: at, .. }
            | Self::Azure { prefix: at, .. }
            | Self::Gcs { prefix: at, .. } => {
                *at = format!("{}/{name}", at.trim_end_matches('/'));
            }
            Self::Memory => {}
        }
        self
    }

    /// What errors call it.
    pub(crate) fn store(&self) -> Store {
        match self {
            Self::Directory(path) => Store::new(format!("directory {path}"), "its owner and mode"),
            Self::Memory => Store::new("memory", ""),
            Self::S3 { bucket, endpoint, .. } => Store::new(
                match endpoint {
                    Some(endpoint) => format!("bucket {bucket} at {endpoint}"),
                    None => format!("bucket {bucket}"),
                },
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role",
            ),
            Self::Azure {
                container, endpoint, ..
            } => Store::new(
                format!("container {container} at {endpoint}"),
                "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the machine's identity",
            ),
            Self::Gcs { bucket, .. } => Store::new(
                format!("bucket {bucket}"),
                "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
            ),
        }
    }

    /// The operator for it. Nothing is asked of the store yet, but a directory is made.
    pub(crate) fn operator(&self, options: &Options) -> Result<Operator> {
        let remote = match self {
            Self::Directory(path) => {
                return Operator::new(services::Fs::default().root(path))
                    .map_err(|error| cannot_use(&self.store(), error));
            }
            Self::Memory => {
                return Operator::new(services::Memory::default()).map_err(|error| cannot_use(&self.store(), error));
            }
            Self::S3 { .. } => self.s3(options)?,
            Self::Azure { .. } => self.azure(options)?,
            Self::Gcs { .. } => self.gcs(options)?,
        };
        let context = OperationContext::new().with_http_transport(HttpTransporter::new(Transport::new()?));
        // The time-out is inside: each try has its own.
        Ok(remote
            .with_context(context)
            .layer(
                TimeoutLayer::new()
                    .with_timeout(ANSWER_LIMIT)
                    .with_io_timeout(PART_LIMIT),
            )
            .layer(
                RetryLayer::new()
                    .with_max_times(RETRIES)
                    .with_min_delay(PAUSES.0)
                    .with_max_delay(PAUSES.1)
                    .with_jitter()
                    // What was good at the second try is no news.
                    .with_notify(|_: RetryEvent<'_>| {}),
            ))
    }

    fn no_credentials(&self) -> Error {
        let expected = format!("{}: expected credentials; none were given", self.store());
        Error::invalid(FIELD, expected)
    }

    fn s3(&self, options: &Options) -> Result<Operator> {
        let Self::S3 {
            bucket,
            prefix,
            region,
            endpoint,
            path_style,
            checksum,
        } = self
        else {
            return Err(self.no_credentials());
        };
        let mut service = services::S3::default().bucket(bucket).root(prefix);
        if let Some(region) = region {
            service = service.region(region);
        }
        if let Some(endpoint) = endpoint {
            service = service.endpoint(endpoint);
        }
        if let Some(checksum) = checksum {
            service = service.checksum_algorithm(checksum);
        }
        if !path_style {
            service = service.enable_virtual_host_style();
        }
        service = match &options.credentials {
            Credentials::None => return Err(self.no_credentials()),
            Credentials::Standard => service,
            Credentials::Key { .. } if region.is_none() => {
                return Err(Error::invalid(FIELD, "expected region=NAME"));
            }
            Credentials::Key { name, secret } => service
                .access_key_id(name)
                .secret_access_key(secret.expose())
                .disable_config_load()
                .disable_ec2_metadata(),
        };
        Operator::new(service).map_err(|error| match region {
            None => Error::invalid(FIELD, "expected region=NAME, or AWS_REGION in the environment").because(error),
            Some(_) => cannot_use(&self.store(), error),
        })
    }

    fn azure(&self, options: &Options) -> Result<Operator> {
        let Self::Azure {
            container,
            prefix,
            endpoint,
            account,
        } = self
        else {
            return Err(self.no_credentials());
        };
        let mut service = services::Azblob::default()
            .container(container)
            .root(prefix)
            .endpoint(endpoint);
        if let Some(account) = account {
            service = service.account_name(account);
        }
        service = match &options.credentials {
            Credentials::None => return Err(self.no_credentials()),
            Credentials::Standard => service,
            Credentials::Key { name, secret } => service.account_name(name).account_key(secret.expose()),
        };
        Operator::new(service).map_err(|error| cannot_use(&self.store(), error))
    }

    fn gcs(&self, options: &Options) -> Result<Operator> {
        let Self::Gcs {
            bucket,
            prefix,
            endpoint,
        } = self
        else {
            return Err(self.no_credentials());
        };
        let mut service = services::Gcs::default().bucket(bucket).root(prefix);
        if let Some(endpoint) = endpoint {
            service = service.endpoint(endpoint);
        }
        if !matches!(options.credentials, Credentials::Standard) {
            return Err(self.no_credentials());
        }
        Operator::new(service).map_err(|error| cannot_use(&self.store(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood() {
        let s3 = |region: Option<&str>, endpoint: Option<&str>, path_style, checksum: Option<&str>| Place::S3 {
            bucket: "b".to_owned(),
            prefix: "/p/q".to_owned(),
            region: region.map(str::to_owned),
            endpoint: endpoint.map(str::to_owned),
            path_style,
            checksum: checksum.map(str::to_owned),
        };
        let crc = Some("crc32c");
        for (url, expected) in [
            ("s3://b/p/q", s3(None, None, false, crc)),
            ("s3://b/p/q/?region=eu-west-1", s3(Some("eu-west-1"), None, false, crc)),
            (
                "s3://b/p/q?endpoint=http://127.0.0.1:9000/",
                s3(Some("us-east-1"), Some("http://127.0.0.1:9000"), true, crc),
            ),
            (
                "s3://b/p/q?region=x&endpoint=https://h&path_style=false&checksum=none",
                s3(Some("x"), Some("https://h"), false, None),
            ),
        ] {
            assert_eq!(Place::parse(url).unwrap(), expected, "{url}");
        }
        assert_eq!(
            Place::parse("azblob://c?account=shop").unwrap(),
            Place::Azure {
                container: "c".to_owned(),
                prefix: "/".to_owned(),
                endpoint: "https://shop.blob.core.windows.net".to_owned(),
                account: Some("shop".to_owned()),
            }
        );
        assert_eq!(
            Place::parse("gcs://b/p").unwrap(),
            Place::Gcs {
                bucket: "b".to_owned(),
                prefix: "/p".to_owned(),
                endpoint: None,
            }
        );
        assert_eq!(Place::parse("memory://").unwrap(), Place::Memory);
    }

    #[test]
    fn a_place_has_places_inside_and_may_be_part_of_a_bucket() {
        let place = |url: &str| Place::parse(url).unwrap();
        for (url, inside) in [
            ("s3://b?region=x", "s3://b/objects?region=x"),
            ("azblob://c/p/?account=a", "azblob://c/p/objects?account=a"),
            ("file:///x/y", "file:///x/y/objects"),
        ] {
            assert_eq!(place(url).below("objects"), place(inside), "{url}");
        }
        let (one, prefix) = place("s3://b/p/q?region=x").whole().unwrap();
        assert_eq!(prefix, "p/q/");
        let (other, none) = place("s3://b?region=x").whole().unwrap();
        assert_eq!((one, none), (other, String::new()));
        assert_ne!(
            place("s3://b/p?region=x").whole(),
            place("s3://c/p?region=x").whole(),
            "another bucket"
        );
        assert_eq!(place("file:///x/y").whole(), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (url, part) in [
            ("s3://b?regoin=x", "'regoin' is not known; known are region"),
            ("s3://b?region=x&region=y", "twice"),
            ("s3://b?endpoint=ftp://x", "endpoint: expected http"),
            ("s3://b?path_style=yes", "path_style: expected true or false"),
            ("s3://b?checksum=sha1", "checksum: expected"),
            ("s3:///prefix", "expected a bucket"),
            ("azblob://c", "expected account=NAME"),
            ("gs://b", "cannot speak 'gs'"),
            ("file://host/x", "expected file:///path"),
            ("file:///x?region=y", "'region' is not known"),
        ] {
            let error = Place::parse(url).unwrap_err();
            assert_eq!(error.field(), Some(FIELD));
            assert!(error.to_string().contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_the_variable_is_named() {
        for (url, variable) in [
            ("s3://key:hunter2@b", "AWS_SECRET_ACCESS_KEY"),
            ("s3://b?secret_access_key=hunter2", "AWS_SECRET_ACCESS_KEY"),
            ("s3://b?X-Amz-Security-Token=hunter2", "AWS_ACCESS_KEY_ID"),
            ("azblob://c?account=a&sas_token=hunter2", "AZURE_STORAGE_SAS_TOKEN"),
            ("gcs://b?credential=hunter2", "GOOGLE_APPLICATION_CREDENTIALS"),
        ] {
            let error = Place::parse(url).unwrap_err();
            assert!(error.to_string().contains(variable), "{url}: {error}");
            assert!(!error.chain().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn nothing_is_read_from_the_environment_unasked() {
        for url in ["s3://b?region=x", "azblob://c?account=a", "gcs://b"] {
            let error = Place::parse(url).unwrap().operator(&Options::new()).unwrap_err();
            assert!(error.to_string().contains("expected credentials"), "{error}");
        }
    }
}
