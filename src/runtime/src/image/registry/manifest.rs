//! Manifests, indexes and image configurations: OCI and Docker schema 2, into narrow types.

use crate::image::reference::{Digest, ReferenceError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most bytes of a manifest or index that are read.
pub const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;
/// The most bytes of a configuration that are read.
pub const CONFIG_LIMIT: usize = 8 * 1024 * 1024;
const MAX_LAYERS: usize = 500;
const MAX_LIST: usize = 4096;

/// What `Accept` asks for.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Why a manifest or configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of this shape.
    #[error("the {0} is not valid")]
    Json(&'static str, #[source] serde_json::Error),
    /// A digest in it is not valid.
    #[error("a digest in the manifest is not valid")]
    Digest(#[from] ReferenceError),
    /// It is an index and a manifest at once, or says that it is something else.
    #[error("the manifest's kind is ambiguous: its media type {0:?} does not fit its fields")]
    Confused(String),
    /// Schema 1, an artifact, and the like.
    #[error("manifests of type {0:?} are not supported: rebuild the image as OCI or Docker schema 2")]
    Unsupported(String),
    /// The index has nothing for this machine.
    #[error("the image has no manifest for {0}; it has {1}")]
    NoPlatform(String, String),
    /// Too many layers.
    #[error("the image has {0} layers; at most {MAX_LAYERS} are allowed")]
    Layers(usize),
    /// The configuration does not fit the manifest.
    #[error("the configuration has {diff_ids} diff ids for {layers} layers")]
    DiffIds {
        /// In the configuration.
        diff_ids: usize,
        /// In the manifest.
        layers: usize,
    },
    /// A value of the configuration is refused.
    #[error("the configuration's {field} is refused: {why}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong.
        why: &'static str,
    },
}

/// The platform that images are chosen for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// As GOOS.
    pub os: &'static str,
    /// As GOARCH.
    pub architecture: &'static str,
}

impl Platform {
    /// This machine's.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Platform { os: "linux", architecture }
    }
}

/// One layer of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
}

/// What a manifest document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// An index: the manifest for the platform.
    Index(Digest),
    /// An image.
    Image {
        /// The configuration's digest: the image id.
        config: Digest,
        /// Bottom to top.
        layers: Vec<LayerDescriptor>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<DescriptorPlatform>,
}

#[derive(Deserialize)]
struct DescriptorPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// Reads a manifest or index that came with `content_type`.
///
/// # Errors
/// [`ManifestError`].
pub fn parse_manifest(
    body: &[u8],
    content_type: Option<&str>,
    platform: &Platform,
) -> Result<Manifest, ManifestError> {
    let document: Document = serde_json::from_slice(body).map_err(|e| ManifestError::Json("manifest", e))?;
    let shown = |t: &str| t.chars().take(100).collect::<String>();
    if document.schema_version != 2 {
        return Err(ManifestError::Unsupported(format!("schema {}", document.schema_version)));
    }
    let header = content_type.map(|t| t.split(';').next().unwrap_or(t).trim());
    let header = header.filter(|t| *t != "application/json" && *t != "application/octet-stream");
    for named in [document.media_type.as_deref(), header].into_iter().flatten() {
        let fits = if named.ends_with("image.index.v1+json") || named.ends_with("manifest.list.v2+json") {
            document.manifests.is_some()
        } else if named.ends_with("image.manifest.v1+json") || named.ends_with("manifest.v2+json") {
            document.layers.is_some()
        } else {
            return Err(ManifestError::Unsupported(shown(named)));
        };
        if !fits {
            return Err(ManifestError::Confused(shown(named)));
        }
    }
    match (document.manifests, document.config, document.layers) {
        (Some(manifests), None, None) => choose(&manifests, platform),
        (None, Some(config), Some(layers)) => {
            if layers.len() > MAX_LAYERS {
                return Err(ManifestError::Layers(layers.len()));
            }
            if config.media_type != "application/vnd.oci.image.config.v1+json"
                && config.media_type != "application/vnd.docker.container.image.v1+json"
            {
                return Err(ManifestError::Unsupported(shown(&config.media_type)));
            }
            let layers = layers
                .iter()
                .map(|l| Ok(LayerDescriptor { digest: Digest::parse(&l.digest)?, size: l.size }))
                .collect::<Result<_, ReferenceError>>()?;
            Ok(Manifest::Image { config: Digest::parse(&config.digest)?, layers })
        }
        _ => Err(ManifestError::Confused(shown(document.media_type.as_deref().unwrap_or("")))),
    }
}

fn choose(manifests: &[Descriptor], platform: &Platform) -> Result<Manifest, ManifestError> {
    let fits = |d: &&Descriptor| {
        d.platform.as_ref().is_some_and(|p| p.os == platform.os && p.architecture == platform.architecture)
    };
    // Without a variant first, then the lowest: amd64/v3 does not run everywhere.
    let best = manifests
        .iter()
        .filter(fits)
        .min_by_key(|d| d.platform.as_ref().and_then(|p| p.variant.clone()).filter(|v| v != "v8"));
    let Some(best) = best else {
        let have: Vec<String> = manifests
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .map(|p| format!("{}/{}", p.os, p.architecture).chars().take(40).collect())
            .take(10)
            .collect();
        let want = format!("{}/{}", platform.os, platform.architecture);
        return Err(ManifestError::NoPlatform(want, have.join(", ")));
    };
    Ok(Manifest::Index(Digest::parse(&best.digest)?))
}

/// What the runtime takes from an image's configuration. Labels are not among it: they are never
/// control input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageConfig {
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub cmd: Vec<String>,
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// USER: `user[:group]`, names or numbers; empty for root.
    pub user: String,
    /// WORKDIR; empty for `/`.
    pub working_dir: String,
    /// VOLUME paths.
    pub volumes: Vec<String>,
    /// STOPSIGNAL; empty for SIGTERM.
    pub stop_signal: String,
}

impl ImageConfig {
    /// The numeric user, if USER is one that a kernel can hold. A number out of range is *not*
    /// taken modulo anything (CVE-2024-40635) and counts as a name.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        let user = self.user.split(':').next().unwrap_or("");
        user.parse::<i32>().ok().and_then(|uid| u32::try_from(uid).ok())
    }

    /// The user's name, where it is not a number.
    #[must_use]
    pub fn username(&self) -> &str {
        if self.uid().is_some() { "" } else { self.user.split(':').next().unwrap_or("") }
    }
}

#[derive(Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    config: Option<ConfigSection>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigSection {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// Reads an image configuration: what to run, and the diff ids bottom to top.
///
/// # Errors
/// [`ManifestError`].
pub fn parse_config(body: &[u8], layers: usize) -> Result<(ImageConfig, Vec<Digest>), ManifestError> {
    let document: ConfigDocument =
        serde_json::from_slice(body).map_err(|e| ManifestError::Json("image configuration", e))?;
    let diff_ids: Vec<Digest> = document
        .rootfs
        .diff_ids
        .unwrap_or_default()
        .iter()
        .map(|d| Digest::parse(d))
        .collect::<Result<_, _>>()?;
    if diff_ids.len() != layers {
        return Err(ManifestError::DiffIds { diff_ids: diff_ids.len(), layers });
    }
    let section = document.config.unwrap_or_default();
    let list = |field, values: Option<Vec<String>>| -> Result<Vec<String>, ManifestError> {
        let values = values.unwrap_or_default();
        if values.len() > MAX_LIST {
            return Err(ManifestError::Config { field, why: "more than 4096 values" });
        }
        if values.iter().any(|v| v.contains('\0')) {
            return Err(ManifestError::Config { field, why: "a NUL" });
        }
        Ok(values)
    };
    let line = |field, value: Option<String>| -> Result<String, ManifestError> {
        let value = value.unwrap_or_default();
        if value.len() > 4096 || value.chars().any(char::is_control) {
            return Err(ManifestError::Config {
                field,
                why: "longer than 4096 bytes, or a control character",
            });
        }
        Ok(value)
    };
    let volumes = list("Volumes", section.volumes.map(|v| v.into_keys().collect()))?;
    if volumes.iter().any(|v| v.split('/').any(|c| c == "..")) {
        return Err(ManifestError::Config { field: "Volumes", why: "a .. component" });
    }
    let config = ImageConfig {
        entrypoint: list("Entrypoint", section.entrypoint)?,
        cmd: list("Cmd", section.cmd)?,
        env: list("Env", section.env)?,
        user: line("User", section.user)?,
        working_dir: line("WorkingDir", section.working_dir)?,
        volumes,
        stop_signal: line("StopSignal", section.stop_signal)?,
    };
    Ok((config, diff_ids))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const P: Platform = Platform { os: "linux", architecture: "amd64" };
    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn image(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2{extra},"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{D}","size":1}},"layers":[{{"digest":"{D}","size":3}}]}}"#
        )
    }

    #[test]
    fn images_and_indexes_are_told_apart() {
        let got = parse_manifest(image("").as_bytes(), Some(IMAGE), &P).unwrap();
        assert!(matches!(got, Manifest::Image { layers, .. } if layers[0].size == 3));
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"sha256:00","size":1,"platform":{{"os":"linux","architecture":"arm64"}}}},{{"digest":"{D}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        );
        let want = Manifest::Index(Digest::parse(D).unwrap());
        assert_eq!(parse_manifest(index.as_bytes(), Some(INDEX), &P).unwrap(), want);
        let other = Platform { os: "linux", architecture: "s390x" };
        let error = parse_manifest(index.as_bytes(), None, &other).unwrap_err().to_string();
        assert!(error.contains("linux/s390x") && error.contains("linux/arm64"), "{error}");
    }

    #[rstest]
    #[case::header_says_index(image(""), INDEX)]
    #[case::body_says_index(image(&format!(",\"mediaType\":\"{INDEX}\"")), IMAGE)]
    #[case::both(image(",\"manifests\":[]"), IMAGE)]
    #[case::schema1(image("").replace(":2,", ":1,"), IMAGE)]
    #[case::other_type(image(""), "text/html")]
    #[case::sha512(image("").replace("sha256:", "sha512:"), IMAGE)]
    #[case::negative_size(image("").replace("\"size\":3", "\"size\":-3"), IMAGE)]
    #[case::artifact(image("").replace("image.config", "helm.config"), IMAGE)]
    #[case::garbage("{".to_owned(), IMAGE)]
    fn a_wrong_manifest_is_refused(#[case] body: String, #[case] kind: &str) {
        parse_manifest(body.as_bytes(), Some(kind), &P).unwrap_err();
    }

    #[test]
    fn too_many_layers_are_refused() {
        let one = format!("{{\"digest\":\"{D}\",\"size\":3}}");
        let body = image("").replace(&one, &vec![one.as_str(); 501].join(","));
        assert!(matches!(parse_manifest(body.as_bytes(), None, &P), Err(ManifestError::Layers(501))));
    }

    #[rstest]
    #[case("", None, "")]
    #[case("0", Some(0), "")]
    #[case("1000:1000", Some(1000), "")]
    #[case("nobody", None, "nobody")]
    #[case("4294967296", None, "4294967296")]
    #[case("2147483648", None, "2147483648")]
    #[case("-1", None, "-1")]
    fn users_are_numbers_only_in_range(#[case] user: &str, #[case] uid: Option<u32>, #[case] name: &str) {
        let config = ImageConfig { user: user.to_owned(), ..ImageConfig::default() };
        assert_eq!((config.uid(), config.username()), (uid, name));
    }

    #[test]
    fn a_configuration_is_read_and_checked() {
        let body = format!(
            r#"{{"config":{{"Cmd":["sh"],"Env":null,"User":"1:2","Volumes":{{"/data":{{}}}}}},"rootfs":{{"diff_ids":["{D}"]}}}}"#
        );
        let (config, diff_ids) = parse_config(body.as_bytes(), 1).unwrap();
        assert_eq!(
            (config.cmd, config.volumes, diff_ids.len()),
            (vec!["sh".into()], vec!["/data".into()], 1)
        );
        assert!(matches!(parse_config(body.as_bytes(), 2), Err(ManifestError::DiffIds { .. })));
        for bad in
            [body.replace("1:2", "a\\nb"), body.replace("/data", "/../etc"), body.replace("sh", "s\\u0000")]
        {
            parse_config(bad.as_bytes(), 1).unwrap_err();
        }
    }
}
