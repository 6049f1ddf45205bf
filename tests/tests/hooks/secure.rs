//! Webhooks by https: who is believed.

use std::net::SocketAddr;
use std::sync::Arc;

use dbtcloud_tests::tls::{self, Authority};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{installation, subscribe};

/// An endpoint that answers every request by TLS.
async fn listen(authority: &Authority) -> SocketAddr {
    let issued = authority.issue("localhost");
    let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).await.ok()?;
                assert!(buffer[..read].starts_with(b"POST / "));
                let answer = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.ok()?;
                stream.shutdown().await.ok()
            });
        }
    });
    address
}

#[tokio::test]
async fn https_is_believed_when_an_authority_of_the_machine_vouches() {
    let folder = tempfile::tempdir().unwrap();
    let (known, unknown) = (Authority::new("known"), Authority::new("unknown"));
    let file = tls::file(folder.path(), "ca.pem", known.certificate());
    let (mut installation, _) = installation(vec![("SSL_CERT_FILE", file.display().to_string())]).await;
    for (authority, code, error) in [(&known, "202", ""), (&unknown, "0", "certificate")] {
        let url = format!("https://localhost:{}/", listen(authority).await.port());
        let told = subscribe(&installation, &url, &["job.run.completed"]).await;
        let id = told["id"].as_str().unwrap();
        let path = format!("v3/accounts/{{a}}/webhooks/subscription/{id}/test");
        let tried = installation.api().get(&path).await;
        assert_eq!(tried["verification_status_code"], json!(code), "{tried}");
        let said = tried["verification_error"].as_str().unwrap_or_default();
        assert!(said.contains(error) && said.is_empty() == error.is_empty(), "{said}");
    }
    installation.stop().await;
}
