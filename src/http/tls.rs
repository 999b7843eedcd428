//! TLS: the certificate that clients are shown, and its replacement while the broker runs.
//!
//! Invariant: a certificate that cannot be used never takes the place of one that can. TLS 1.2 and 1.3, with the same
//! crypto provider that verifies tokens; ALPN offers `h2` first, so that one connection carries many streams.

use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

/// The protocol that a client and this server agreed on, where it is HTTP/2 (RFC 7301).
pub(super) const HTTP2: &[u8] = b"h2";

/// What a TLS connection is accepted with.
pub struct Tls {
    pub(super) acceptor: TlsAcceptor,
    shown: Arc<Shown>,
}

/// The certificate of new connections.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

/// A certificate with its chain, and the key that belongs to it.
#[derive(Debug)]
pub struct Certificate(CertifiedKey);

impl Certificate {
    /// Reads both from PEM files.
    ///
    /// # Errors
    /// In words, when a file cannot be read or used, or the key is another one's.
    pub fn read(cert_file: &Path, key_file: &Path) -> Result<Self, String> {
        let cannot =
            |path: &Path, error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert_file)
            .and_then(Iterator::collect)
            .map_err(|error| cannot(cert_file, &error))?;
        if chain.is_empty() {
            return Err(format!("{} holds no certificate in PEM", cert_file.display()));
        }
        let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| cannot(key_file, &error))?;
        CertifiedKey::from_der(chain, key, &provider()).map(Self).map_err(|error| {
            format!("{} and {} do not go together: {error}", cert_file.display(), key_file.display())
        })
    }
}

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

impl Tls {
    /// Shows this certificate.
    pub fn new(Certificate(certificate): Certificate) -> Arc<Self> {
        let shown = Arc::new(Shown(RwLock::new(Arc::new(certificate))));
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        Arc::new(Self { acceptor: TlsAcceptor::from(Arc::new(config)), shown })
    }

    /// Shows this one from now on; connections that are open stay as they are.
    pub fn replace(&self, Certificate(certificate): Certificate) {
        *self.shown.0.write() = Arc::new(certificate);
    }
}
