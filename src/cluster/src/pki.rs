//! The cluster's certificate authority and what it signs.
//!
//! One CA signs everything: the API server's and the kubelets' serving certificates, and the
//! client certificates that are the identities of the components (CN is the user, O the groups).
//! Each certificate is made once and kept; one that no longer fits its names is made anew.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::layout::Layout;
use crate::state::{StateError, private_dir, write_private};

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] StateError),
    /// The certificate itself could not be made.
    #[error("cannot make the certificate {name}")]
    Certificate {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: rcgen::Error,
    },
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The file's name, without extension.
    pub name: String,
    /// CN: the user.
    pub user: String,
    /// O: the groups.
    pub groups: Vec<String>,
    /// DNS names it serves; with `addresses` empty too it is only a client.
    pub dns: Vec<String>,
    /// Addresses it serves.
    pub addresses: Vec<IpAddr>,
}

impl Identity {
    /// A client's identity.
    pub fn client(name: &str, user: &str, groups: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            user: user.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            dns: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// A server's identity; it is a client's too (etcd and kubelets are both).
    pub fn server(name: &str, user: &str, dns: &[&str], addresses: &[IpAddr]) -> Self {
        Self {
            dns: dns.iter().map(|d| (*d).to_owned()).collect(),
            addresses: addresses.to_vec(),
            ..Self::client(name, user, &[])
        }
    }

    /// A node's serving identity, as the signer `kubernetes.io/kubelet-serving` wants it.
    pub fn node_serving(name: &str, node: &str, address: IpAddr) -> Self {
        Self {
            groups: vec!["system:nodes".to_owned()],
            ..Self::server(name, &format!("system:node:{node}"), &[node], &[address])
        }
    }

    /// A node's client identity, as the Node authorizer wants it.
    pub fn node(node: &str) -> Self {
        Self::client(node, &format!("system:node:{node}"), &["system:nodes"])
    }
}

/// The certificate authority, with its files.
pub struct Authority<'a> {
    layout: &'a Layout,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("pki", &self.layout.pki()).finish_non_exhaustive()
    }
}

pub(crate) fn failed(name: &str) -> impl FnOnce(rcgen::Error) -> PkiError {
    let name = name.to_owned();
    move |source| PkiError::Certificate { name, source }
}

impl<'a> Authority<'a> {
    /// Opens the CA of the state directory, or makes it, and with it the service account keys.
    pub fn open(layout: &'a Layout) -> Result<Self, PkiError> {
        private_dir(&layout.pki())?;
        let (cert, key) = (layout.cert("ca"), layout.key("ca"));
        let stored = (std::fs::read_to_string(&cert), std::fs::read_to_string(&key));
        let issuer = if let (Ok(cert), Ok(key)) = stored {
            let key = KeyPair::from_pem(&key).map_err(failed("ca"))?;
            Issuer::from_ca_cert_pem(&cert, key).map_err(failed("ca"))?
        } else {
            let pair = KeyPair::generate().map_err(failed("ca"))?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "podway-local-ca");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![
                KeyUsagePurpose::KeyCertSign,
                KeyUsagePurpose::CrlSign,
                KeyUsagePurpose::DigitalSignature,
            ];
            let signed = params.self_signed(&pair).map_err(failed("ca"))?;
            // The key first: a certificate without its key would be taken for a whole pair.
            write_private(&key, pair.serialize_pem().as_bytes())?;
            write_private(&cert, signed.pem().as_bytes())?;
            Issuer::new(params, pair)
        };
        let authority = Self { layout, issuer };
        authority.service_account_keys()?;
        Ok(authority)
    }

    /// `sa.key` and `sa.pub`: what service account tokens are signed and checked with.
    fn service_account_keys(&self) -> Result<(), PkiError> {
        let public = self.layout.pki().join("sa.pub");
        if public.exists() {
            return Ok(());
        }
        let pair = KeyPair::generate().map_err(failed("sa"))?;
        write_private(&self.layout.key("sa"), pair.serialize_pem().as_bytes())?;
        write_private(&public, pair.public_key_pem().as_bytes())?;
        Ok(())
    }

    /// Makes the certificate unless it is there for the same names already.
    pub fn issue(&self, identity: &Identity) -> Result<(), PkiError> {
        let name = &identity.name;
        let (cert, key) = (self.layout.cert(name), self.layout.key(name));
        let names = self.layout.pki().join(format!("{name}.names"));
        let wanted = format!("{identity:?}");
        if cert.exists() && key.exists() && same(&names, &wanted) {
            return Ok(());
        }
        let pair = KeyPair::generate().map_err(failed(name))?;
        let mut params = subject(identity)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !params.subject_alt_names.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&pair, &self.issuer).map_err(failed(name))?;
        write_private(&key, pair.serialize_pem().as_bytes())?;
        write_private(&cert, signed.pem().as_bytes())?;
        write_private(&names, wanted.as_bytes())?;
        Ok(())
    }
}

/// The names of an identity.
fn subject(identity: &Identity) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(identity.dns.clone()).map_err(failed(&identity.name))?;
    params.subject_alt_names.extend(identity.addresses.iter().map(|a| SanType::IpAddress(*a)));
    params.distinguished_name = rcgen::DistinguishedName::new();
    // rcgen keeps one entry per type; Kubernetes components need one group at the most.
    for group in &identity.groups {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, &identity.user);
    Ok(params)
}

/// A certificate signing request, in PEM, for a CA that is not ours.
pub(crate) fn request(identity: &Identity, key: &KeyPair) -> Result<String, PkiError> {
    let request = subject(identity)?.serialize_request(key).map_err(failed(&identity.name))?;
    request.pem().map_err(failed(&identity.name))
}

/// DER documents as one PEM text.
pub(crate) fn pem(label: &str, documents: &[Vec<u8>]) -> String {
    use base64::Engine as _;
    let mut text = String::new();
    for der in documents {
        text.push_str(&format!("-----BEGIN {label}-----\n"));
        let encoded = base64::engine::general_purpose::STANDARD.encode(der);
        // 64 to a line; base64 is ASCII, so every cut is between characters.
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = after;
        }
        text.push_str(&format!("-----END {label}-----\n"));
    }
    text
}

fn same(path: &Path, wanted: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text == wanted)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn certificates_are_kept_until_their_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let node = Identity::node("podway-0");
        Authority::open(&layout).unwrap().issue(&node).unwrap();
        let first = std::fs::read(layout.cert("podway-0")).unwrap();
        // Opened again: the same CA, the same certificate.
        let authority = Authority::open(&layout).unwrap();
        authority.issue(&node).unwrap();
        assert_eq!(std::fs::read(layout.cert("podway-0")).unwrap(), first);
        let other = Identity { user: "someone".into(), ..node };
        authority.issue(&other).unwrap();
        assert_ne!(std::fs::read(layout.cert("podway-0")).unwrap(), first);
        let mode = std::fs::metadata(layout.key("podway-0")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
