//! TLS of the kubelet API: its certificate, and which clients' certificates are known.
//!
//! Files are read anew when they have changed, seen at the next connection: a certificate that was
//! renewed is served without a restart, and there is nothing to wake up for.

use crate::certificates::request::Purpose;
use crate::certificates::store::Store;
use crate::config::Config;
use crate::sync::lock;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Why TLS can't be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file.
    #[error("cannot read {what} {path}")]
    Pem {
        /// Which flag's file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// It has nothing in it.
    #[error("--client-ca-file {0} has no certificate")]
    NoCa(PathBuf),
    /// One of the pair is missing.
    #[error("give both --tls-cert-file and --tls-private-key-file, or neither")]
    HalfPair,
    /// The CA can't be used.
    #[error("cannot use --client-ca-file")]
    Ca(#[source] rustls::server::VerifierBuilderError),
    /// A certificate or key can't be used.
    #[error("cannot use the serving certificate")]
    Certificate(#[from] rustls::Error),
    /// No certificate could be made.
    #[error("cannot make a self-signed serving certificate")]
    SelfSigned(#[from] rcgen::Error),
}

enum Pair {
    Files(PathBuf, PathBuf),
    /// Signed by the cluster: there is none before that, and no connection comes about.
    Signed(PathBuf),
    Made(CertificateDer<'static>, Vec<u8>),
}

/// A file's mark: another content has another one.
type Mark = Option<(SystemTime, u64)>;

/// The TLS configuration, kept in step with its files.
pub struct Tls {
    ca: Option<PathBuf>,
    pair: Pair,
    provider: Arc<CryptoProvider>,
    current: Mutex<(Vec<Mark>, Arc<ServerConfig>)>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("ca", &self.ca).finish_non_exhaustive()
    }
}

impl Tls {
    /// The certificate of `config`'s files, else one of our own for the node's name and addresses.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(config: &Config, addresses: &[IpAddr]) -> Result<Self, TlsError> {
        let signed = || Store::new(&config.pki(), Purpose::Serving.pair()).path();
        let pair = match (&config.tls_cert_file, &config.tls_private_key_file) {
            _ if config.server_tls_bootstrap => Pair::Signed(signed()),
            (Some(cert), Some(key)) => Pair::Files(cert.clone(), key.clone()),
            (None, None) => {
                let mut names = vec![config.node_name.clone(), "localhost".to_owned()];
                names.extend(addresses.iter().map(ToString::to_string));
                let made = rcgen::generate_simple_self_signed(names)?;
                Pair::Made(made.cert.der().clone(), made.signing_key.serialize_der())
            }
            _ => return Err(TlsError::HalfPair),
        };
        let provider = Arc::new(ring::default_provider());
        let ca = config.client_ca_file.clone();
        let marks = marks(&pair, ca.as_deref());
        let first = build(&pair, ca.as_deref(), &provider)?;
        Ok(Tls { ca, pair, provider, current: Mutex::new((marks, first)) })
    }

    /// The configuration for the next connection. Files that can't be used leave the old one in use.
    pub fn current(&self) -> Arc<ServerConfig> {
        let marks = marks(&self.pair, self.ca.as_deref());
        let mut current = lock(&self.current);
        if current.0 != marks {
            match build(&self.pair, self.ca.as_deref(), &self.provider) {
                Ok(new) => *current = (marks, new),
                Err(error) => {
                    tracing::warn!(%error, "the new serving certificate is not usable: the old one stays");
                    current.0 = marks;
                }
            }
        }
        Arc::clone(&current.1)
    }
}

fn marks(pair: &Pair, ca: Option<&Path>) -> Vec<Mark> {
    let files = match pair {
        Pair::Files(cert, key) => [Some(cert.as_path()), Some(key.as_path()), ca],
        Pair::Signed(file) => [Some(file.as_path()), None, ca],
        Pair::Made(..) => [None, None, ca],
    };
    let mark = |path: &Path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    files.into_iter().map(|file| file.and_then(mark)).collect()
}

/// There is no certificate yet: no connection comes about.
#[derive(Debug)]
struct NotYet;

impl ResolvesServerCert for NotYet {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(cert: &Path, key: &Path) -> Result<Own, TlsError> {
    let cert_error = |source| TlsError::Pem { what: "--tls-cert-file", path: cert.to_owned(), source };
    let key_error = |source| TlsError::Pem { what: "--tls-private-key-file", path: key.to_owned(), source };
    let chain = CertificateDer::pem_file_iter(cert).map_err(cert_error)?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(cert_error)?;
    Ok((chain, PrivateKeyDer::from_pem_file(key).map_err(key_error)?))
}

fn build(
    pair: &Pair,
    ca: Option<&Path>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let own = match pair {
        Pair::Files(cert, key) => Some(read(cert, key)?),
        Pair::Signed(file) if !file.exists() => None,
        Pair::Signed(file) => Some(read(file, file)?),
        Pair::Made(cert, key) => Some((vec![cert.clone()], PrivatePkcs8KeyDer::from(key.clone()).into())),
    };
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(provider)).with_safe_default_protocol_versions()?;
    let builder = match ca {
        Some(path) => {
            let err = |source| TlsError::Pem { what: "--client-ca-file", path: path.to_owned(), source };
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(path).map_err(err)? {
                roots.add(certificate.map_err(err)?)?;
            }
            if roots.is_empty() {
                return Err(TlsError::NoCa(path.to_owned()));
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider));
            // Without a certificate there may still be a token.
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().map_err(TlsError::Ca)?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = match own {
        Some((chain, key)) => builder.with_single_cert(chain, key)?,
        None => builder.with_cert_resolver(Arc::new(NotYet)),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_anew_when_they_change_and_bad_ones_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("a.crt"), dir.path().join("a.key"));
        let write = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            std::fs::write(&cert, made.cert.pem()).unwrap();
            std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        };
        write("a");
        let config = Config {
            tls_cert_file: Some(cert.clone()),
            tls_private_key_file: Some(key.clone()),
            ..Config::default()
        };
        let tls = Tls::new(&config, &[]).unwrap();
        let first = tls.current();
        assert!(Arc::ptr_eq(&first, &tls.current()));
        write("much-longer-name");
        let second = tls.current();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(&key, "rubbish").unwrap();
        assert!(Arc::ptr_eq(&second, &tls.current()));
    }

    #[test]
    fn what_the_cluster_signs_is_served_once_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            Config { cert_dir: Some(dir.path().to_owned()), server_tls_bootstrap: true, ..Config::default() };
        let tls = Tls::new(&config, &[]).unwrap();
        let none = tls.current();
        let made = rcgen::generate_simple_self_signed(["n".to_owned()]).unwrap();
        let pem = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem());
        std::fs::write(dir.path().join("kubelet-server-current.pem"), pem).unwrap();
        assert!(!Arc::ptr_eq(&none, &tls.current()));
    }

    #[test]
    fn a_certificate_is_made_where_none_is_given() {
        let config = Config { node_name: "n".to_owned(), ..Config::default() };
        Tls::new(&config, &[[10, 0, 0, 1].into()]).unwrap();
        let half = Config { tls_cert_file: Some("/x".into()), ..config };
        assert!(matches!(Tls::new(&half, &[]), Err(TlsError::HalfPair)));
    }
}
