//! Which credentials of a pod's `imagePullSecrets` are for a registry, as upstream's keyring has it
//! (k8s.io/kubernetes/pkg/credentialprovider): by host, port and path, `*` within a label of the
//! host, the most specific first. Pure; what is in them is never logged.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use podway_cri::v1::AuthConfig;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The registry of an image that names none.
const DEFAULT_REGISTRY: &str = "index.docker.io";

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    #[serde(alias = "identitytoken")]
    identity_token: String,
}

/// What a registry is matched by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: String,
    port: String,
    path: String,
}

/// The credentials of `secrets` for `image`, the most specific first. A secret that is none is
/// passed over, as upstream does: another may do.
#[must_use]
pub fn for_image(secrets: &[Secret], image: &str) -> Vec<AuthConfig> {
    let (registry, path) = repository(image);
    let asked = place(&format!("{registry}/{path}"));
    let mut found: Vec<(String, AuthConfig)> = Vec::new();
    for (key, entry) in secrets.iter().flat_map(entries) {
        if matches(&place(&key), &asked)
            && let Some(auth) = credentials(entry, &registry)
        {
            found.push((key, auth));
        }
    }
    found.sort_by(|a, b| b.0.cmp(&a.0));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn entries(secret: &Secret) -> Vec<(String, Entry)> {
    let data = secret.data.as_ref();
    let of = |key: &str| data.and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    let auths = match (secret.type_.as_deref(), of(".dockerconfigjson"), of(".dockercfg")) {
        (Some("kubernetes.io/dockerconfigjson"), Some(json), _) => {
            serde_json::from_slice::<Config>(json).map(|c| c.auths)
        }
        (Some("kubernetes.io/dockercfg"), _, Some(json)) => serde_json::from_slice(json),
        _ => return Vec::new(),
    };
    // What does not parse is not shown: it may hold a password.
    auths.unwrap_or_default().into_iter().collect()
}

fn credentials(entry: Entry, registry: &str) -> Option<AuthConfig> {
    let (mut username, mut password) = (entry.username, entry.password);
    if !entry.auth.is_empty() {
        let text = String::from_utf8(STANDARD.decode(entry.auth.trim()).ok()?).ok()?;
        let (user, secret) = text.split_once(':')?;
        (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
    }
    let server_address = registry.to_owned();
    let identity_token = entry.identity_token;
    Some(AuthConfig { username, password, identity_token, server_address, ..AuthConfig::default() })
}

/// Registry and path of an image, without tag and digest.
fn repository(image: &str) -> (String, String) {
    let name = image.split('@').next().unwrap_or_default();
    let name = match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    };
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            let host = if host == "docker.io" { DEFAULT_REGISTRY } else { host };
            (host.to_owned(), path.to_owned())
        }
        _ => (DEFAULT_REGISTRY.to_owned(), name.to_owned()),
    }
}

fn place(key: &str) -> Place {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let (host, port) = host.split_once(':').unwrap_or((host, ""));
    let host = if host == "docker.io" { DEFAULT_REGISTRY } else { host };
    // `https://index.docker.io/v1/` is how docker writes its own registry: no path is meant.
    let path = path.trim_end_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    Place { host: host.to_owned(), port: port.to_owned(), path: path.to_owned() }
}

fn matches(glob: &Place, asked: &Place) -> bool {
    let (labels, own): (Vec<&str>, Vec<&str>) =
        (glob.host.split('.').collect(), asked.host.split('.').collect());
    let below = asked.path == glob.path
        || glob.path.is_empty()
        || asked.path.strip_prefix(&glob.path).is_some_and(|rest| rest.starts_with('/'));
    glob.port == asked.port
        && below
        && labels.len() == own.len()
        && labels.iter().zip(own).all(|(glob, label)| wild(glob, label))
}

/// Whether `label` is what `glob` says, `*` standing for any part of it.
fn wild(glob: &str, label: &str) -> bool {
    match glob.split_once('*') {
        None => glob == label,
        Some((head, tail)) => label
            .strip_prefix(head)
            .is_some_and(|rest| (0..=rest.len()).filter_map(|n| rest.get(n..)).any(|rest| wild(tail, rest))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(auths: serde_json::Value) -> Secret {
        let text = STANDARD.encode(json!({ "auths": auths }).to_string());
        serde_json::from_value(
            json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": text}}),
        )
        .unwrap()
    }

    #[test]
    fn credentials_are_found_by_host_port_and_path() {
        let auth = STANDARD.encode("u:p:q");
        for (key, image, holds) in [
            ("r.example", "r.example/a:v", true),
            ("https://r.example/v2/", "r.example/a/b@sha256:00", true),
            ("r.example:5000", "r.example:5000/a", true),
            ("r.example:5000", "r.example/a", false),
            ("r.example", "r.example:5000/a", false),
            ("r.example/team", "r.example/team/a", true),
            ("r.example/team", "r.example/teams/a", false),
            ("*.example", "r.example/a", true),
            ("*.example", "r.b.example/a", false),
            ("r*.exam*", "reg.example/a", true),
            ("https://index.docker.io/v1/", "busybox", true),
            ("docker.io", "library/busybox:1", true),
            ("r.example", "busybox", false),
        ] {
            let found = for_image(&[secret(json!({key: {"auth": auth}}))], image);
            assert_eq!(found.len(), usize::from(holds), "{key} for {image}");
            if holds {
                assert_eq!((&*found[0].username, &*found[0].password), ("u", "p:q"));
            }
        }
    }

    #[test]
    fn the_most_specific_comes_first_and_what_is_broken_is_passed_over() {
        let name = |n: &str| json!({"username": n, "password": "x"});
        let both = secret(json!({"r.example": name("all"), "r.example/team": name("team")}));
        let broken = secret(json!({"r.example": {"auth": "%"}}));
        let found = for_image(&[broken, Secret::default(), both], "r.example/team/a");
        let users: Vec<&str> = found.iter().map(|a| a.username.as_str()).collect();
        assert_eq!(users, ["team", "all"]);
    }
}
