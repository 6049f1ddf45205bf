//! Mail: how runs ended, told to people through the operator's mail server, one mail for each who is told.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use dbtcloud_core::account::User;
use dbtcloud_core::catalog::CatalogExt;
use dbtcloud_core::id::NotificationId;
use dbtcloud_core::notification::{Notification, Way};
use dbtcloud_core::ports::{Dispatch, DispatchId, Try};
use dbtcloud_core::secret::Secret;
use dbtcloud_core::{Error, ErrorKind, Result};
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, SinglePart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use percent_encoding::percent_decode_str;

use super::letter::Letter;
use super::{ANSWER_LIMIT_BYTES, Carried};
use crate::ControlPlane;

/// How long a mail server may take to take one mail, connecting included.
pub const MAIL_LIMIT: Duration = Duration::from_secs(15);
/// Says to programs that answer mail that nobody reads what they answer.
const AUTO_SUBMITTED: HeaderName = HeaderName::new_from_ascii_str("Auto-Submitted");
/// Answers that refuse whoever sends, not what is sent: the operator can mend that, so they are not for good.
const REFUSES_SENDER: std::ops::RangeInclusive<u16> = 530..=538;

/// Whether the way to a mail server is kept from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    /// TLS from the beginning.
    Tls,
    /// TLS after STARTTLS, or nothing is sent.
    StartTls,
    /// None.
    Plain,
}

/// The server that mail is handed to, without its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailServer {
    host: String,
    port: u16,
    security: Security,
    user: Option<String>,
}

impl MailServer {
    /// Understands `smtps://user@host:465` and `smtp://user@host:587?tls=required`; `tls=none` is for servers that can
    /// do no better.
    ///
    /// ```
    /// use dbtcloud_runtime::dispatch::MailServer;
    /// assert!(MailServer::parse("smtps://dbtcloud%40example.com@mail.example.com").is_ok());
    /// assert!(MailServer::parse("smtp://relay.internal:25?tls=none").is_ok());
    /// assert!(MailServer::parse("smtp://user@relay.internal:25?tls=none").is_err());
    /// ```
    ///
    /// # Errors
    /// What was expected, in words and without what was given.
    pub fn parse(url: &str) -> std::result::Result<Self, String> {
        let expected = || "expected a URL such as smtps://user@host:465 or smtp://host:587?tls=required".to_owned();
        let url = url::Url::parse(url).map_err(|_| expected())?;
        if url.password().is_some() {
            return Err(
                "expected a URL without a password: it goes in the file that smtp_password_file names".to_owned(),
            );
        }
        if !["", "/"].contains(&url.path()) || url.fragment().is_some() {
            return Err(expected());
        }
        let mut security = match url.scheme() {
            "smtps" => Security::Tls,
            "smtp" => Security::StartTls,
            _ => return Err(expected()),
        };
        for (name, value) in url.query_pairs() {
            security = match (&*name, &*value, security) {
                ("tls", "required", security) => security,
                ("tls", "none", Security::StartTls | Security::Plain) => Security::Plain,
                _ => {
                    return Err(
                        "expected tls=required or, with smtp://, tls=none, and nothing else after the ?".to_owned(),
                    );
                }
            };
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(expected)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let user = match percent_decode_str(url.username()).decode_utf8() {
            Ok(user) if user.is_empty() => None,
            Ok(user) => Some(user.into_owned()),
            Err(_) => return Err(expected()),
        };
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if user.is_some() && security == Security::Plain && !here {
            return Err("expected tls=required beside a user: others could read the password on its way".to_owned());
        }
        let port = url.port().unwrap_or(if security == Security::Tls { 465 } else { 587 });
        Ok(Self {
            host,
            port,
            security,
            user,
        })
    }

    /// Whether it wants to know who sends, and so a password.
    pub fn has_user(&self) -> bool {
        self.user.is_some()
    }
}

/// Sends mail.
#[derive(Clone)]
pub struct Mail {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    base: Option<String>,
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mail").field("from", &self.from).finish_non_exhaustive()
    }
}

impl Mail {
    /// Mail through a server, from an address such as `dbtcloud <dbtcloud@example.com>`. `base` is the URL of this
    /// installation, for links.
    ///
    /// # Errors
    /// `Invalid` for an address that is none; `Unavailable` when TLS cannot be set up.
    pub fn new(server: &MailServer, from: &str, password: Option<&Secret>, base: Option<String>) -> Result<Self> {
        let from = mailbox(from).map_err(|expected| Error::invalid("smtp_from", expected))?;
        let tls = || {
            TlsParameters::new_rustls(server.host.clone())
                .map_err(|e| Error::unavailable("TLS cannot be set up").because(e))
        };
        let tls = match server.security {
            Security::Tls => Tls::Wrapper(tls()?),
            Security::StartTls => Tls::Required(tls()?),
            Security::Plain => Tls::None,
        };
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(server.host.clone())
            .port(server.port)
            .tls(tls)
            .hello_name(ClientId::Domain(from.email.domain().to_owned()))
            .timeout(Some(MAIL_LIMIT));
        if let (Some(user), Some(password)) = (&server.user, password) {
            builder = builder.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
        }
        Ok(Self {
            transport: builder.build(),
            from,
            base,
        })
    }

    /// Whether the server answers and takes the login. Sends nothing.
    ///
    /// # Errors
    /// `Unavailable`: what the server said, or that it does not answer.
    pub async fn check(&self) -> Result<()> {
        match tokio::time::timeout(MAIL_LIMIT, self.transport.test_connection()).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(Error::unavailable("the mail server does not answer as one")),
            Ok(Err(error)) => Err(Error::unavailable("the mail server").because(error)),
            Err(_) => Err(Error::unavailable(format!(
                "the mail server: no answer within {MAIL_LIMIT:?}"
            ))),
        }
    }

    /// Looks at an address that mail is to come from.
    ///
    /// # Errors
    /// What was expected, in words.
    pub fn check_from(from: &str) -> std::result::Result<(), String> {
        mailbox(from).map(drop)
    }

    /// The URL of this installation, if it was told.
    pub(crate) fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// A mail of a dispatch, the same whenever it is made.
    fn message(&self, dispatch: &Dispatch, to: Address) -> Result<Message> {
        let letter: Letter =
            serde_json::from_str(&dispatch.body).map_err(|e| Error::corrupt("a letter cannot be read").because(e))?;
        let posted = u64::try_from(dispatch.created_at.as_micros()).unwrap_or(0);
        Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(letter.subject)
            .date(SystemTime::UNIX_EPOCH + Duration::from_micros(posted))
            .message_id(Some(self.message_id(&dispatch.id)))
            .raw_header(HeaderValue::new(AUTO_SUBMITTED, "auto-generated".to_owned()))
            .singlepart(SinglePart::plain(letter.text))
            .map_err(|e| Error::corrupt("a letter cannot be made").because(e))
    }

    fn message_id(&self, id: &DispatchId) -> String {
        let domain = self.from.email.domain();
        format!(
            "<dbtcloud.{}.{}.{}.{}@{domain}>",
            id.to.id(),
            id.run,
            id.sequence,
            id.part
        )
    }

    /// Hands a mail over once: the answer's code and text, or what went wrong.
    async fn hand_over(&self, message: Message) -> (Option<u16>, String, String) {
        match tokio::time::timeout(MAIL_LIMIT, self.transport.send(message)).await {
            Ok(Ok(response)) => {
                let text = response.message().collect::<Vec<_>>().join("\n");
                (Some(response.code().into()), String::new(), kept(&text))
            }
            Ok(Err(error)) => (error.status().map(u16::from), kept(&error.to_string()), String::new()),
            Err(_) => (
                None,
                format!("no answer within {} s", MAIL_LIMIT.as_secs()),
                String::new(),
            ),
        }
    }
}

fn mailbox(text: &str) -> std::result::Result<Mailbox, String> {
    let expected = |_| "expected an address such as dbtcloud@example.com or dbtcloud <dbtcloud@example.com>".to_owned();
    text.parse::<Mailbox>().map_err(expected)
}

/// What is kept of what a server said.
fn kept(text: &str) -> String {
    let legal = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    legal.take(ANSWER_LIMIT_BYTES / 4).collect()
}

/// Sends one dispatch to whom its notification names now.
pub(super) async fn carry(plane: &ControlPlane, id: NotificationId, dispatch: &Dispatch) -> Result<Carried> {
    let unwanted = |why: &str| Ok(Carried::Unwanted(why.to_owned()));
    let notification = match plane.catalog().fetch::<Notification>(dispatch.account, id).await {
        Ok(notification) => notification,
        Err(error) if error.kind() == ErrorKind::NotFound => return unwanted("the notification was deleted"),
        Err(error) => return Err(error),
    };
    let address = match &notification.way {
        Way::Email { address } => address.clone(),
        Way::User => match plane.catalog().fetch::<User>(dispatch.account, notification.user).await {
            Ok(user) => user.email.clone(),
            Err(error) if error.kind() == ErrorKind::NotFound => return unwanted("the user was deleted"),
            Err(error) => return Err(error),
        },
        Way::Slack { .. } => return unwanted("nothing is sent to Slack"),
    };
    let Some(mail) = plane.mail() else {
        return Err(Error::unavailable("this process sends no mail"));
    };
    let tried = |code, error, answer| Try {
        at: plane.clock().now(),
        code,
        error,
        answer,
    };
    let Ok(to) = address.parse::<Address>() else {
        let error = "the address is none that mail can be sent to".to_owned();
        return Ok(Carried::Refused(tried(None, error, String::new())));
    };
    let (code, error, answer) = mail.hand_over(mail.message(dispatch, to)?).await;
    let refused = code.is_some_and(|code| code >= 500 && !REFUSES_SENDER.contains(&code));
    let tried = tried(code, error, answer);
    Ok(match refused {
        true => Carried::Refused(tried),
        false => Carried::Tried(tried),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_understood_or_refused() {
        let server = MailServer::parse("smtps://ada%40example.com@mail.example.com").unwrap();
        assert_eq!((server.port, server.security), (465, Security::Tls));
        assert_eq!(server.user.as_deref(), Some("ada@example.com"));
        let server = MailServer::parse("smtp://[::1]?tls=none").unwrap();
        assert_eq!(
            (server.host.as_str(), server.port, server.security),
            ("::1", 587, Security::Plain)
        );
        assert!(MailServer::parse("smtp://ada@127.0.0.1:25?tls=none").is_ok());
        for wrong in [
            "",
            "mail.example.com",
            "http://mail.example.com",
            "smtp://",
            "smtp://host/inbox",
            "smtp://host?tls=perhaps",
            "smtp://host?password=hunter2",
            "smtps://host?tls=none",
            "smtp://ada:hunter2@host",
            "smtp://ada@host?tls=none",
        ] {
            let told = MailServer::parse(wrong).unwrap_err();
            assert!(
                told.starts_with("expected") && !told.contains("hunter2"),
                "{wrong}: {told}"
            );
        }
    }

    #[test]
    fn addresses_are_checked() {
        assert!(Mail::check_from("dbt platform <dbt@example.com>").is_ok());
        assert!(Mail::check_from("nobody").unwrap_err().contains("dbtcloud@example.com"));
    }
}
