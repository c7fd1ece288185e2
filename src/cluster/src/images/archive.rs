//! An image as one file: an OCI image layout in a tar, which `kind load image-archive`, `ctr images import`,
//! `podman load` and `skopeo copy oci-archive:` take.

use std::io::{self, Write};

use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::Image;

/// Writes `image` to `out`, under the name by which containerd and podman are to know it. The same image
/// under the same name gives the same bytes.
///
/// # Errors
/// What `out` answers.
pub fn write(image: &Image, name: &str, out: impl Write) -> io::Result<()> {
    let mut tar = Builder::new(out);
    file(&mut tar, "oci-layout", &serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?)?;
    // The manifest itself and not our index of one: importers that know no nested index take it too.
    let mut entry = image.manifest.descriptor();
    entry["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": image.tag,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    file(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
    for blob in image.blobs.iter().chain([&image.manifest]) {
        let digest = blob.digest.trim_start_matches("sha256:");
        file(&mut tar, &format!("blobs/sha256/{digest}"), &blob.bytes)?;
    }
    tar.into_inner()?.flush()
}

fn file(tar: &mut Builder<impl Write>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    tar.append_data(&mut header, path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{LayerBuilder, Run, image};
    use serde_json::Value;
    use std::collections::BTreeMap;
    use std::io::Read as _;

    #[test]
    fn every_descriptor_leads_to_its_blob() {
        let mut layer = LayerBuilder::new();
        layer.file("a", 0o644, b"text").unwrap();
        let name = "registry.example/team/thing:v1";
        let image = image(name, &[layer.finish().unwrap()], &Run::default()).unwrap();
        let mut bytes = Vec::new();
        write(&image, name, &mut bytes).unwrap();
        let mut again = Vec::new();
        write(&image, name, &mut again).unwrap();
        assert_eq!(bytes, again);

        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        let json = |path: &str| serde_json::from_slice::<Value>(&files[path]).unwrap();
        let blob = |d: &Value| format!("blobs/{}", d["digest"].as_str().unwrap().replace(':', "/"));
        assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
        let entry = json("index.json")["manifests"][0].clone();
        assert_eq!(entry["annotations"]["io.containerd.image.name"], name);
        let manifest = json(&blob(&entry));
        assert_eq!(files[&blob(&manifest["config"])], image.blobs[1].bytes);
        assert_eq!(files[&blob(&manifest["layers"][0])], image.blobs[0].bytes);
        assert_eq!(files.len(), 5);
    }
}
