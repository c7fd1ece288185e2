//! Where a certificate and its key lie, and what they are good for.

use crate::files;
use jiff::Timestamp;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::io;
use std::path::{Path, PathBuf};

/// Why a certificate cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It holds no certificate.
    #[error("{0} has no certificate that can be read")]
    Certificate(PathBuf),
    /// The key.
    #[error("the key {0} cannot be made or read")]
    Key(PathBuf, #[source] rcgen::Error),
}

/// A certificate's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// From when it is valid.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

impl Life {
    /// The life of the first certificate of a PEM text.
    #[must_use]
    pub fn of(pem: &[u8]) -> Option<Self> {
        let der = CertificateDer::pem_slice_iter(pem).next()?.ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        let validity = parsed.validity();
        Some(Life { from: at(validity.not_before)?, until: at(validity.not_after)? })
    }

    /// Whether it is good at `now`.
    #[must_use]
    pub fn valid(&self, now: Timestamp) -> bool {
        now < self.until
    }

    /// When the next one is to be asked for: `random`, of 0 to 1, lies between 70 and 90 % of its life, so
    /// that the nodes of a cluster do not all ask at once (`jitteryDuration`).
    #[must_use]
    pub fn deadline(&self, random: f64) -> Timestamp {
        let whole = self.until.duration_since(self.from).as_secs_f64().max(0.0);
        let after = jiff::SignedDuration::try_from_secs_f64(whole * (0.7 + 0.2 * random.clamp(0.0, 1.0)));
        after.ok().and_then(|d| self.from.checked_add(d).ok()).unwrap_or(self.until)
    }
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Signed {
    /// The certificates, the node's own first.
    pub chain: Vec<u8>,
    /// The key.
    pub key: String,
}

/// The files of one pair.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    pair: &'static str,
}

impl Store {
    /// The pair named `pair` in `dir`.
    #[must_use]
    pub fn new(dir: &Path, pair: &'static str) -> Self {
        Store { dir: dir.to_owned(), pair }
    }

    /// The link to the newest certificate and key.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.pair))
    }

    /// The life of the newest certificate; none where there is none yet.
    ///
    /// # Errors
    /// [`StoreError`] where the file is none of ours.
    pub fn current(&self) -> Result<Option<Life>, StoreError> {
        let path = self.path();
        match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::File { verb: "read", path, source }),
            Ok(text) => Life::of(&text).map(Some).ok_or(StoreError::Certificate(path)),
        }
    }

    /// The key of the request that is under way, made where there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn key(&self) -> Result<KeyPair, StoreError> {
        let path = self.pending();
        match std::fs::read_to_string(&path) {
            Ok(text) => return KeyPair::from_pem(&text).map_err(|e| StoreError::Key(path, e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::File { verb: "read", path, source }),
        }
        let key = KeyPair::generate().map_err(|e| StoreError::Key(path.clone(), e))?;
        let written = files::replace_for_good(&path, 0o700, key.serialize_pem().as_bytes());
        written.map_err(|source| StoreError::File { verb: "write", path, source })?;
        Ok(key)
    }

    fn pending(&self) -> PathBuf {
        self.dir.join(format!("{}.key.tmp", self.pair))
    }

    /// Forgets the key of a request that came to nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget(&self) -> Result<(), StoreError> {
        let path = self.pending();
        files::forget(&path).map_err(|source| StoreError::File { verb: "remove", path, source })
    }

    /// Keeps what was signed, and points to it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn update(&self, signed: &Signed) -> Result<Life, StoreError> {
        let at = Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let file = self.dir.join(format!("{}-{at}.pem", self.pair));
        let life = Life::of(&signed.chain).ok_or_else(|| StoreError::Certificate(file.clone()))?;
        let mut text = signed.chain.clone();
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend(signed.key.as_bytes());
        let failed = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { verb, path, source }
        };
        files::replace_for_good(&file, 0o700, &text).map_err(failed("write", &file))?;
        let (link, next) = (self.path(), self.dir.join(format!("{}-updated.pem", self.pair)));
        match std::fs::remove_file(&next) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &next)(e)),
            _ => {}
        }
        std::os::unix::fs::symlink(&file, &next).map_err(failed("link", &next))?;
        std::fs::rename(&next, &link).map_err(failed("link", &link))?;
        self.forget()?;
        Ok(life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_pair_is_kept_in_one_file_and_its_key_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(&dir.path().join("pki"), "kubelet-client");
        assert_eq!(store.current().unwrap(), None);
        let key = store.key().unwrap();
        assert_eq!(store.key().unwrap().serialize_pem(), key.serialize_pem(), "the same request goes on");
        let chain = rcgen::CertificateParams::new(["n".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        let signed = Signed { chain: chain.into_bytes(), key: key.serialize_pem() };
        let life = store.update(&signed).unwrap();
        assert_eq!(store.current().unwrap(), Some(life));
        let mode = std::fs::metadata(store.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(
            store.key().unwrap().serialize_pem(),
            key.serialize_pem(),
            "the next has a key of its own"
        );
        store.update(&signed).unwrap();
        let none = Signed { chain: b"none".to_vec(), key: String::new() };
        assert!(matches!(store.update(&none), Err(StoreError::Certificate(_))));
    }

    #[test]
    fn the_next_one_is_asked_for_between_70_and_90_percent() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let life = Life { from: at(1000), until: at(2000) };
        assert_eq!([0.0, 0.5, 1.0, 7.0].map(|r| life.deadline(r)), [at(1700), at(1800), at(1900), at(1900)]);
        assert!(life.valid(at(1999)) && !life.valid(at(2000)));
        let backwards = Life { from: at(2000), until: at(1000) };
        assert_eq!(backwards.deadline(0.5), at(2000));
    }
}
