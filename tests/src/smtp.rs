//! The other end of a mail: a server that speaks as much of RFC 5321 as senders need, with TLS and passwords.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::tls::Authority;

/// A mail that came, also one that was not accepted in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letter {
    /// Whom it came from, of the envelope.
    pub from: String,
    /// For whom it is, of the envelope.
    pub to: Vec<String>,
    /// User and password that were given on its connection.
    pub credentials: Option<(String, String)>,
    /// Whether its connection had TLS.
    pub secure: bool,
    /// Headers and text, with plain line ends.
    pub text: String,
}

impl Letter {
    /// A header, unfolded.
    pub fn header(&self, name: &str) -> Option<String> {
        let head = self.text.split("\n\n").next()?.replace("\n ", " ");
        let found = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim().to_owned());
        head.lines().find_map(found)
    }
}

/// What came, and what is answered.
#[derive(Default)]
pub struct Desk {
    /// Mails in the order of their coming.
    pub letters: Vec<Letter>,
    /// What is answered to the next mails when they are whole, in place of 250.
    pub answers: VecDeque<&'static str>,
    /// What is answered to an addressee, in place of 250.
    pub refused: BTreeMap<&'static str, &'static str>,
}

/// When TLS begins.
#[derive(Clone)]
enum Security {
    Never,
    AtOnce(TlsAcceptor),
    WhenAsked(TlsAcceptor),
}

/// A mail server on a port of its own, which can be closed and opened again.
pub struct Server {
    desk: Arc<Mutex<Desk>>,
    address: SocketAddr,
    security: Security,
    open: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens without TLS.
    pub async fn plain() -> Self {
        Self::listen(Security::Never).await
    }

    /// Listens as `localhost` by the word of an authority, with TLS from the beginning.
    pub async fn tls(authority: &Authority) -> Self {
        Self::listen(Security::AtOnce(acceptor(authority))).await
    }

    /// The same, with TLS once it is asked for.
    pub async fn starttls(authority: &Authority) -> Self {
        Self::listen(Security::WhenAsked(acceptor(authority))).await
    }

    async fn listen(security: Security) -> Self {
        let mut server = Self {
            desk: Arc::default(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            security,
            open: None,
        };
        server.open().await;
        server
    }

    /// Listens again where it did before.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn open(&mut self) {
        let listener = tokio::net::TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let (desk, security) = (self.desk.clone(), self.security.clone());
        self.open = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (desk, security) = (desk.clone(), security.clone());
                tokio::spawn(async move {
                    match security {
                        Security::Never => drop(converse(stream, &desk, true, false, false).await),
                        Security::AtOnce(acceptor) => {
                            let stream = acceptor.accept(stream).await.ok()?;
                            converse(stream, &desk, true, true, false).await;
                        }
                        Security::WhenAsked(acceptor) => {
                            let stream = converse(stream, &desk, true, false, true).await?;
                            let stream = acceptor.accept(stream).await.ok()?;
                            converse(stream, &desk, false, true, false).await;
                        }
                    }
                    Some(())
                });
            }
        }));
    }

    /// Listens no more: who connects is refused.
    pub async fn close(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort();
            let _ = open.await;
        }
    }

    /// Its port on this machine.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What came.
    ///
    /// # Panics
    /// When a look at it panicked before.
    pub fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.abort();
        }
    }
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let issued = authority.issue("localhost");
    let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Speaks with one sender until it goes. The connection when it is to have TLS from here on.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    desk: &Mutex<Desk>,
    greets: bool,
    secure: bool,
    starttls: bool,
) -> Option<S> {
    let mut stream = BufReader::new(stream);
    let mut letter = Letter {
        secure,
        ..Letter::default()
    };
    let mut answer = if greets { "220 localhost" } else { "" }.to_owned();
    loop {
        if !answer.is_empty() {
            stream.write_all(format!("{answer}\r\n").as_bytes()).await.ok()?;
            stream.flush().await.ok()?;
        }
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let (verb, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        let path = |text: &str| Some(text.split_once('<')?.1.split_once('>')?.0.to_owned());
        answer = match verb.to_ascii_uppercase().as_str() {
            "EHLO" if starttls => "250-localhost\r\n250 STARTTLS".to_owned(),
            "EHLO" => "250-localhost\r\n250 AUTH PLAIN".to_owned(),
            "STARTTLS" if starttls => {
                stream.write_all(b"220 go on\r\n").await.ok()?;
                stream.flush().await.ok()?;
                return Some(stream.into_inner());
            }
            "AUTH" => {
                let given = STANDARD.decode(rest.strip_prefix("PLAIN ")?).ok()?;
                let given = String::from_utf8(given).ok()?;
                let mut parts = given.split('\0').skip(1).map(str::to_owned);
                letter.credentials = Some((parts.next()?, parts.next()?));
                "235 welcome".to_owned()
            }
            "MAIL" if starttls => "530 5.7.0 Must issue a STARTTLS command first".to_owned(),
            "MAIL" => {
                letter.from = path(rest)?;
                letter.to.clear();
                "250 ok".to_owned()
            }
            "RCPT" => {
                let to = path(rest)?;
                let refused = desk.lock().unwrap().refused.get(to.as_str()).copied();
                letter.to.push(to);
                refused.unwrap_or("250 ok").to_owned()
            }
            "DATA" => {
                stream.write_all(b"354 go on\r\n").await.ok()?;
                stream.flush().await.ok()?;
                letter.text = data(&mut stream).await?;
                let mut desk = desk.lock().unwrap();
                desk.letters.push(letter.clone());
                desk.answers.pop_front().unwrap_or("250 taken").to_owned()
            }
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await.ok()?;
                return None;
            }
            "RSET" | "NOOP" => "250 ok".to_owned(),
            _ => "502 unknown".to_owned(),
        };
    }
}

async fn data<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<String> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        match line.trim_end_matches(['\r', '\n']) {
            "." => return Some(text),
            line => text += &format!("{}\n", line.strip_prefix('.').unwrap_or(line)),
        }
    }
}

/// A file with a password.
///
/// # Panics
/// When it cannot be written.
pub fn password_file(folder: &std::path::Path, password: &str) -> PathBuf {
    let path = folder.join("smtp-password");
    std::fs::write(&path, format!("{password}\n")).unwrap();
    path
}
