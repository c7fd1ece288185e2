//! The runtime's configuration: a TOML file and its drop-ins. An unknown key is an error (a typo must not be a
//! default).

use podway_systemd::Driver;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All of `podway runtime`'s configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The CRI socket: `unix:///path`.
    pub listen: String,
    /// What survives a reboot: images, journal, writable layers.
    pub root: PathBuf,
    /// What does not: pinned namespaces, bundles, monitor sockets.
    pub state: PathBuf,
    /// Registries.
    pub registry: Registry,
    /// Images.
    pub images: Images,
    /// Network plugins.
    pub cni: Cni,
    /// The OCI runtime.
    pub runc: Oci,
    /// More of them, by the handler that a RuntimeClass names.
    pub runtimes: BTreeMap<String, Oci>,
    /// The monitor of a pod.
    pub monitor: Monitor,
    /// Who makes cgroups.
    pub cgroup_driver: Driver,
    /// The cgroup parent of sandboxes that name none; empty: `/podway`, with systemd `podway.slice`.
    pub cgroup_parent: String,
    /// The annotations of a pod that are heeded; none by default, as in CRI-O.
    pub allowed_annotations: Vec<Annotation>,
    /// Where exec, attach and port-forward are streamed.
    pub streaming: Streaming,
    /// Metrics and liveness.
    pub metrics: Metrics,
}

/// An annotation by which a pod gets something else than the default, under CRI-O's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Annotation {
    /// The size of /dev/shm.
    #[serde(rename = "io.kubernetes.cri-o.ShmSize")]
    ShmSize,
}

/// Where exec, attach and port-forward are streamed: an HTTP server whose URLs are handed out by the CRI
/// calls of these names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// A loopback address; port 0 takes a free one.
    pub listen: std::net::SocketAddr,
}

impl Default for Streaming {
    fn default() -> Self {
        Streaming { listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)) }
    }
}

/// Metrics and liveness.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where `/metrics` and `/livez` are served; nowhere by default.
    pub listen: Option<std::net::SocketAddr>,
}

/// Registries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// A directory of `<host>/hosts.toml`.
    pub config_path: Option<PathBuf>,
    /// Docker's config.json, for pulls that bring no credentials; none by default.
    pub docker_config: Option<PathBuf>,
    /// Where the `docker-credential-<name>` are that it may name.
    pub credential_helpers: Option<PathBuf>,
}

/// Images.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Names of images that the kubelet's garbage collection must leave: `*` at an end fits any rest.
    pub pinned: Vec<String>,
    /// A directory of programs that must all accept an image before it is used.
    pub verifiers: Option<PathBuf>,
    /// How long each of them may take, in seconds.
    pub verifier_timeout_seconds: u64,
}

impl Default for Images {
    fn default() -> Self {
        Images { pinned: Vec::new(), verifiers: None, verifier_timeout_seconds: 10 }
    }
}

/// Network plugins.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cni {
    /// Where plugins are looked for, in order.
    pub bin_dirs: Vec<PathBuf>,
    /// Where the network configuration is: the first `.conflist` or `.conf` by name.
    pub conf_dir: PathBuf,
    /// How long one plugin may take, in seconds; it is killed then.
    pub timeout_seconds: u64,
}

/// An OCI runtime with runc's command line: runc, crun, youki.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oci {
    /// The binary; a bare name is looked up in PATH.
    pub path: PathBuf,
}

/// The monitor of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Monitor {
    /// The binary; a bare name is looked up in PATH.
    pub path: PathBuf,
    /// The cgroup in which monitors live, with systemd the slice; that of the runtime by default.
    pub cgroup: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: "unix:///run/podway/runtime.sock".to_owned(),
            root: PathBuf::from("/var/lib/podway/runtime"),
            state: PathBuf::from("/run/podway/runtime"),
            registry: Registry::default(),
            images: Images::default(),
            cni: Cni::default(),
            runc: Oci { path: PathBuf::from("runc") },
            runtimes: BTreeMap::new(),
            monitor: Monitor::default(),
            cgroup_driver: Driver::default(),
            cgroup_parent: String::new(),
            allowed_annotations: Vec::new(),
            streaming: Streaming::default(),
            metrics: Metrics::default(),
        }
    }
}

impl Default for Cni {
    fn default() -> Self {
        Cni {
            bin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            conf_dir: PathBuf::from("/etc/cni/net.d"),
            timeout_seconds: 60,
        }
    }
}

impl Default for Monitor {
    fn default() -> Self {
        Monitor { path: PathBuf::from("podway-monitor"), cgroup: None }
    }
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// It is not TOML of this shape.
    #[error("the configuration {0} is not valid")]
    Parse(PathBuf, #[source] toml::de::Error),
}

impl Config {
    /// What [`Config::load`] reads, or the default where no file is named.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub fn of(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map_or_else(|| Ok(Config::default()), Config::load)
    }

    /// Reads a configuration file, and over it the `.toml` files of the directory of its name with `.d` behind
    /// it, in the order of their names: a later key goes before an earlier one, a list replaces a list.
    ///
    /// # Errors
    /// [`ConfigError`] when one cannot be read, is not TOML or has an unknown key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut merged = read(path)?;
        for file in drop_ins(path)? {
            merge(&mut merged, read(&file)?);
        }
        merged.try_into().map_err(|e| ConfigError::Parse(path.to_owned(), e))
    }
}

/// One file. It is checked alone, so that an error names its line.
fn read(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|e| ConfigError::Read(path.to_owned(), e))?;
    let parse = |e| ConfigError::Parse(path.to_owned(), e);
    toml::from_str::<Config>(&text).map_err(parse)?;
    toml::from_str(&text).map_err(parse)
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut dir = path.as_os_str().to_owned();
    dir.push(".d");
    let dir = PathBuf::from(dir);
    let failed = |e| ConfigError::Read(dir.clone(), e);
    let entries = match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let files: Result<Vec<PathBuf>, _> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut files = files.map_err(failed)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    Ok(files)
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_an_error_and_absent_ones_are_defaults() {
        let config: Config = toml::from_str("root = \"/x\"\n[cni]\nconf_dir = \"/c\"\n").unwrap();
        assert_eq!(
            (config.root.as_path(), config.cni.conf_dir.as_path()),
            (Path::new("/x"), Path::new("/c"))
        );
        assert!(!config.cni.bin_dirs.is_empty());
        assert!(toml::from_str::<Config>("[cni]\nbin_dir = \"/x\"\n").is_err());
        let allowed = |name: &str| toml::from_str::<Config>(&format!("allowed_annotations = [\"{name}\"]\n"));
        let config = allowed("io.kubernetes.cri-o.ShmSize").unwrap();
        assert_eq!(config.allowed_annotations, [Annotation::ShmSize]);
        assert!(
            allowed("io.kubernetes.cri-o.Devices").is_err(),
            "one that is not known is a typo or not built"
        );
    }

    #[test]
    fn drop_ins_go_before_the_file_by_name_and_key_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("runtime.toml");
        std::fs::write(&file, "root = \"/a\"\n[cni]\nconf_dir = \"/c\"\nbin_dirs = [\"/1\", \"/2\"]\n")
            .unwrap();
        let drop_ins = dir.path().join("runtime.toml.d");
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(drop_ins.join("20-b.toml"), "root = \"/z\"\n").unwrap();
        std::fs::write(drop_ins.join("10-a.toml"), "root = \"/y\"\n[cni]\nbin_dirs = [\"/3\"]\n").unwrap();
        std::fs::write(drop_ins.join("README"), "not read").unwrap();
        let config = Config::load(&file).unwrap();
        assert_eq!(config.root, Path::new("/z"));
        assert_eq!((config.cni.conf_dir.as_path(), config.cni.bin_dirs.len()), (Path::new("/c"), 1));
        std::fs::write(drop_ins.join("30-c.toml"), "\nrot = \"/z\"\n").unwrap();
        let error = Config::load(&file).unwrap_err();
        let text = crate::image::pull::chain(&error);
        assert!(text.contains("30-c.toml") && text.contains("line 2") && text.contains("rot"), "{text}");
    }

    #[test]
    fn the_commented_file_is_the_default() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/runtime.toml");
        assert_eq!(Config::load(&file).unwrap(), Config::default());
        // What it shows as a comment reads as well.
        let text = std::fs::read_to_string(&file).unwrap();
        let mut shown = text.clone();
        for key in ["config_path", "docker_config", "credential_helpers", "verifiers", "listen", "cgroup"] {
            shown = shown.replace(&format!("# {key} ="), &format!("{key} ="));
        }
        let config: Config = toml::from_str(&shown).unwrap();
        assert!(config.registry.config_path.is_some() && config.metrics.listen.is_some());
        assert!(config.registry.credential_helpers.is_some() && config.images.verifiers.is_some());
        assert!(config.monitor.cgroup.is_some());
        let shown = text.replace("# [runtimes.crun]\n# path", "[runtimes.crun]\npath");
        let config: Config = toml::from_str(&shown).unwrap();
        assert_eq!(config.runtimes["crun"].path, Path::new("/usr/bin/crun"));
        assert!(toml::from_str::<Config>("[runtimes.crun]\nroot = \"/x\"\n").is_err());
    }
}
