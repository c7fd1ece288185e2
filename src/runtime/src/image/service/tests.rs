//! End to end: a real registry, an image pushed over HTTP, pulled through the CRI calls.
//! Runs where `PODWAY_REGISTRY_BIN` names distribution's `registry`.

use super::*;
use crate::image::reference::Digest;
use podway_flow::wire;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn http(host: &str, request: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(host).unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let status = lines.next().unwrap()[9..12].parse().unwrap();
    let location = lines.find_map(|l| l.strip_prefix("Location: ").map(str::to_owned)).unwrap_or_default();
    (status, location)
}

fn push_blob(host: &str, repository: &str, blob: &[u8]) -> Digest {
    let digest = Digest::of(blob);
    let (status, location) = http(host, &format!("POST /v2/{repository}/blobs/uploads/"), "text/plain", b"");
    assert_eq!(status, 202);
    let path = location.split_once(host).map_or(location.as_str(), |(_, p)| p);
    let (status, _) = http(host, &format!("PUT {path}&digest={digest}"), "application/octet-stream", blob);
    assert_eq!(status, 201);
    digest
}

fn layer(name: &str, data: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    builder.append_data(&mut header, name, data.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

fn records<T>(response: &Response<T>) -> Vec<podway_flow::Record> {
    let value = response.metadata().get_bin(wire::METADATA_KEY).unwrap().to_bytes().unwrap();
    wire::decode(&value).unwrap()
}

fn pull(image: &str) -> Request<v1::PullImageRequest> {
    let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
    Request::new(v1::PullImageRequest { image: Some(spec), ..Default::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_from_a_real_registry_listed_and_removed() {
    let Some(binary) = std::env::var_os("PODWAY_REGISTRY_BIN") else { return };
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let config = dir.path().join("registry.yml");
    let data = dir.path().join("data");
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n",
        data.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new(binary)
        .arg("serve")
        .arg(&config)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = child.stderr.take().unwrap();
    let _server = Server(child);
    let mut lines = BufReader::new(log).lines().map_while(Result::ok);
    assert!(lines.any(|l| l.contains("listening on")), "the registry came up");
    std::thread::spawn(move || lines.for_each(drop));

    let tars = [layer("a", "lower"), layer("b", "upper")];
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tars[0]).unwrap();
        encoder.finish().unwrap()
    };
    let blobs = [gzip, zstd::encode_all(tars[1].as_slice(), 1).unwrap()];
    let digests: Vec<Digest> = blobs.iter().map(|b| push_blob(&host, "t/app", b)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/a"], "User": "7"},
        "rootfs": {"type": "layers", "diff_ids": tars.iter().map(|t| Digest::of(t)).collect::<Vec<_>>()},
    })
    .to_string();
    let id = push_blob(&host, "t/app", config.as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config.len()},
        "layers": digests.iter().zip(&blobs).map(|(d, b)| serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": d, "size": b.len()})).collect::<Vec<_>>(),
    })
    .to_string();
    assert_eq!(http(&host, "PUT /v2/t/app/manifests/1", kind, manifest.as_bytes()).0, 201);

    // Through a mirror: the first host is dead, the second is the registry.
    let mirrors = dir.path().join("certs.d/example.test");
    std::fs::create_dir_all(&mirrors).unwrap();
    let text = format!("[host.\"http://127.0.0.1:1\"]\n[host.\"http://{host}\"]\n");
    std::fs::write(mirrors.join("hosts.toml"), text).unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let puller = Puller::new(
        store.clone(),
        &crate::config::Registry { config_path: Some(dir.path().join("certs.d")), ..Default::default() },
        &Default::default(),
    );
    let server = ImageServer::new(store.clone(), puller, Clock::new());

    let image = "example.test/t/app:1";
    let (first, second) = tokio::join!(server.pull_image(pull(image)), server.pull_image(pull(image)));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.get_ref().image_ref, id.to_string());
    let (first, second) = (&records(&first)[0], &records(&second)[0]);
    assert_eq!((first.reason.as_str(), first.evidence["layers"].as_str()), ("Pulled", "2"));
    assert_eq!(first.evidence["endpoint"], format!("http://{host}"));
    let bytes: usize = blobs.iter().map(Vec::len).sum();
    assert_eq!(first.evidence["bytes"], bytes.to_string());
    assert_eq!(second.evidence["joined"], "true");

    let image = store.resolve("example.test/t/app:1").unwrap();
    assert_eq!(std::fs::read_to_string(image.layer_dirs[0].join("a")).unwrap(), "lower");
    assert_eq!(std::fs::read_to_string(image.layer_dirs[1].join("b")).unwrap(), "upper");
    assert_eq!(image.config.cmd, ["/a"]);

    // By its own name and again: present. Blobs are not fetched anew.
    let again = server.pull_image(pull("example.test/t/app:1")).await.unwrap();
    assert_eq!(records(&again)[0].reason, "AlreadyPresent");
    server.pull_image(pull(&format!("{host}/t/app:1"))).await.unwrap();
    assert_eq!(store.resolve(&id.to_string()).unwrap().repo_tags.len(), 2);
    let missing = server.pull_image(pull(&format!("{host}/t/app:2"))).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound, "{missing:?}");
    assert!(missing.metadata().get_bin(wire::METADATA_KEY).is_some());

    let listed = server.list_images(Request::new(v1::ListImagesRequest::default())).await.unwrap();
    assert_eq!(listed.get_ref().images[0].uid, Some(v1::Int64Value { value: 7 }));
    let spec = v1::ImageSpec { image: id.to_string(), ..Default::default() };
    let remove = v1::RemoveImageRequest { image: Some(spec) };
    server.remove_image(Request::new(remove.clone())).await.unwrap();
    server.remove_image(Request::new(remove)).await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("images/layers")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.path().join("images/staging")).unwrap().count(), 0);
}
