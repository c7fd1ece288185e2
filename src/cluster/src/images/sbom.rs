//! What podway is built from, for who must know: a software bill of materials out of Cargo.lock.

use serde::Deserialize;
use serde_json::json;

const LOCK: &str = include_str!("../../../../Cargo.lock");

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// Where it is from; none for our own crates.
    source: Option<String>,
    checksum: Option<String>,
}

/// The bill in CycloneDX 1.6 (JSON): every crate of the lock file with the digest of its archive, those
/// of tests and builds too. The same for the same lock file, so that the image's digest is.
///
/// # Errors
/// When the lock file is not one, a defect of the build.
pub fn sbom() -> Result<Vec<u8>, std::io::Error> {
    let lock: Lock = toml::from_str(LOCK).map_err(std::io::Error::other)?;
    let components = lock.package.iter().filter(|p| p.source.is_some()).map(|package| {
        let Package { name, version, checksum, .. } = package;
        let hashes = checksum.iter().map(|sum| json!({"alg": "SHA-256", "content": sum}));
        json!({
            "type": "library",
            "name": name,
            "version": version,
            "purl": format!("pkg:cargo/{name}@{version}"),
            "hashes": hashes.collect::<Vec<_>>(),
        })
    });
    let version = env!("CARGO_PKG_VERSION");
    let purl = format!("pkg:cargo/podway@{version}");
    let podway = json!({"type": "application", "name": "podway", "version": version, "purl": purl});
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": podway},
        "components": components.collect::<Vec<_>>(),
    });
    Ok(serde_json::to_vec(&bill)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn crates_are_named_with_their_digests_and_our_own_are_not() {
        let bill: Value = serde_json::from_slice(&sbom().unwrap()).unwrap();
        let components = bill["components"].as_array().unwrap();
        let tokio = components.iter().find(|c| c["name"] == "tokio").unwrap();
        assert_eq!(tokio["purl"], format!("pkg:cargo/tokio@{}", tokio["version"].as_str().unwrap()));
        assert_eq!(tokio["hashes"][0]["content"].as_str().unwrap().len(), 64);
        assert!(!components.iter().any(|c| c["name"] == "podway-flow"));
        assert_eq!(sbom().unwrap(), sbom().unwrap());
    }
}
