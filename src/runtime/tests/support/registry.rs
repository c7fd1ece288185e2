//! A real registry (distribution's `registry`) with one image of two layers; the upper one names a
//! file in `/tmp` and not `/tmp` itself.

use podway_runtime::image::Digest;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub struct Registry {
    child: Child,
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tarball(entries: &[(&str, u32, Option<&[u8]>)], links: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, data) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(data.map_or(0, |d| d.len() as u64));
        header.set_entry_type(if data.is_some() {
            tar::EntryType::Regular
        } else {
            tar::EntryType::Directory
        });
        builder.append_data(&mut header, path, data.unwrap_or_default()).unwrap();
    }
    for (path, to) in links {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        builder.append_link(&mut header, path, to).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Registry {
    pub fn start(binary: &Path, dir: &Path) -> Registry {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n",
            dir.join("registry").display()
        );
        std::fs::write(dir.join("registry.yml"), text).unwrap();
        let mut command = Command::new(binary);
        command.arg("serve").arg(dir.join("registry.yml")).env("OTEL_TRACES_EXPORTER", "none");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = child.stderr.take().unwrap();
        let registry = Registry { child, host };
        let mut lines = BufReader::new(log).lines().map_while(Result::ok);
        assert!(lines.any(|l| l.contains("listening on")), "the registry came up");
        std::thread::spawn(move || lines.for_each(drop));
        registry
    }

    fn http(&self, request: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.host,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let status = lines.next().unwrap()[9..12].parse().unwrap();
        let location = lines.find_map(|l| l.strip_prefix("Location: ").map(str::to_owned));
        (status, location.unwrap_or_default())
    }

    fn push(&self, blob: &[u8]) -> serde_json::Value {
        let digest = Digest::of(blob);
        let (status, location) = self.http("POST /v2/test/busybox/blobs/uploads/", "text/plain", b"");
        assert_eq!(status, 202);
        let path = location.split_once(&self.host).map_or(location.as_str(), |(_, p)| p);
        let put = format!("PUT {path}&digest={digest}");
        assert_eq!(self.http(&put, "application/octet-stream", blob).0, 201);
        serde_json::json!({"digest": digest, "size": blob.len()})
    }

    /// Pushes the image; gives its reference.
    pub fn image(&self) -> String {
        let busybox = std::fs::read("/bin/busybox").unwrap();
        let base = tarball(
            &[
                ("bin", 0o755, None),
                ("bin/busybox", 0o755, Some(&busybox)),
                ("etc", 0o755, None),
                ("tmp", 0o1777, None),
            ],
            &[("bin/sh", "busybox"), ("bin/sleep", "busybox")],
        );
        let top = tarball(&[("tmp/note", 0o644, Some(b"note"))], &[]);
        let diffs = [Digest::of(&base), Digest::of(&top)];
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": {"Cmd": ["sleep", "1000"], "Env": ["FROM=image"]},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        let typed = |mut d: serde_json::Value, kind: &str| {
            d["mediaType"] = kind.into();
            d
        };
        let layer = "application/vnd.oci.image.layer.v1.tar";
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": typed(self.push(config.to_string().as_bytes()), "application/vnd.oci.image.config.v1+json"),
            "layers": [typed(self.push(&base), layer), typed(self.push(&top), layer)],
        });
        let put = "PUT /v2/test/busybox/manifests/1";
        assert_eq!(self.http(put, kind, manifest.to_string().as_bytes()).0, 201);
        format!("{}/test/busybox:1", self.host)
    }
}
