//! The images of Kubernetes' own end-to-end suite (its `test/utils/image/manifest.go`), made of programs
//! of this machine, of agnhost, and of two small ones of Kubernetes: nothing is downloaded.
//!
//! What the specs expect of them, which no name tells: agnhost has bash as its shell, curl, dig, nc and
//! nsenter, and a user `user-defined-in-image` in the group 50000; busybox' shell complains as busybox
//! does and still shows the whole environment; kitten, taken as a volume, says `Alpine Linux`;
//! nonewprivs has the setuid bit; nonroot has a user that is not root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::podway::{directories, libraries, read, within};
use super::{Image, ImageError, Layer, LayerBuilder, Run, busybox_layer, image};
use crate::binaries::of_path;
use crate::busybox::{self, BusyboxError};
use crate::pause::{self, PauseError};
use crate::program::{BinaryError, Program};
use crate::push::{PushError, Registry};
use crate::{Progress, elf};

/// Why the suite has no images.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// Tools of the machine that go into agnhost are missing.
    #[error("{tools} not found; apt-get install --no-install-recommends {packages}")]
    Tools {
        /// The tools.
        tools: String,
        /// Debian's packages of them.
        packages: String,
    },
    /// A program.
    #[error(transparent)]
    Program(#[from] BinaryError),
    /// A program of a few lines.
    #[error(transparent)]
    Small(#[from] PauseError),
    /// busybox.
    #[error(transparent)]
    Busybox(#[from] BusyboxError),
    /// An image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The registry.
    #[error(transparent)]
    Push(#[from] PushError),
}

/// What agnhost has of Debian, by program and package.
const TOOLS: [(&str, &str); 9] = [
    ("bash", "bash"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("nc.openbsd", "netcat-openbsd"),
    ("iperf", "iperf"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("env", "coreutils"),
    ("printenv", "coreutils"),
];

fn name(image: &str) -> String {
    format!("registry.k8s.io/e2e-test-images/{image}")
}

/// Makes the suite's images and pushes them to the registry at `host:port`.
///
/// # Errors
/// [`SuiteError`], the first one.
pub async fn push(endpoint: &str, progress: Progress<'_>) -> Result<(), SuiteError> {
    let tools = tools()?;
    let busybox = busybox::locate(progress).await?;
    let parts = Parts {
        tools,
        busybox,
        shell: pause::shell().await?,
        pause: pause::locate().await?,
        agnhost: Program::Agnhost.locate(progress).await?,
        nonewprivs: Program::Nonewprivs.locate(progress).await?,
        regression: Program::Regression74839.locate(progress).await?,
    };
    push_all(endpoint, progress, move || parts.images()).await
}

/// Makes images on a thread of their own, and pushes those that the registry does not have.
pub(super) async fn push_all(
    endpoint: &str,
    progress: Progress<'_>,
    make: impl FnOnce() -> Result<Vec<Image>, ImageError> + Send + 'static,
) -> Result<(), SuiteError> {
    let registry = Registry::new(endpoint);
    let images = tokio::task::spawn_blocking(make);
    let images = images.await.map_err(|e| ImageError::Layer(std::io::Error::other(e)))??;
    for image in images {
        if registry.push(&image).await? {
            progress(&format!("pushed {}:{}", image.repository, image.tag));
        }
    }
    Ok(())
}

/// Where each of [`TOOLS`] is.
fn tools() -> Result<BTreeMap<&'static str, PathBuf>, SuiteError> {
    let (mut found, mut tools, mut packages) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (tool, package) in TOOLS {
        match of_path(tool) {
            Some(path) => drop(found.insert(tool, path)),
            None => {
                tools.push(tool);
                packages.push(package);
            }
        }
    }
    if tools.is_empty() {
        return Ok(found);
    }
    Err(SuiteError::Tools { tools: tools.join(", "), packages: packages.join(" ") })
}

/// What the images are made of.
struct Parts {
    tools: BTreeMap<&'static str, PathBuf>,
    busybox: PathBuf,
    shell: PathBuf,
    pause: PathBuf,
    agnhost: PathBuf,
    nonewprivs: PathBuf,
    regression: PathBuf,
}

impl Parts {
    fn images(&self) -> Result<Vec<Image>, ImageError> {
        let shell = busybox_layer(&self.busybox)?;
        let (tools, agnhost) = (self.tools_layer()?, self.agnhost_layer()?);
        let base = [shell.clone(), tools.clone(), agnhost];
        let entry = || Run { entrypoint: &["/agnhost"], cmd: &["pause"], ..Run::default() };
        let mut made = Vec::new();
        for tag in ["agnhost:2.63.0", "agnhost:2.55"] {
            made.push(image(&name(tag), &base, &entry())?);
        }
        for (tag, animal) in [("kitten:1.8", "kitten.jpg"), ("nautilus:1.8", "nautilus.jpg")] {
            let mut layer = LayerBuilder::new();
            layer.file("data.json", 0o644, format!("{{\n  \"image\": \"{animal}\"\n}}\n").as_bytes())?;
            layer.file(animal, 0o644, b"\xff\xd8\xff\xd9")?;
            layer.file("etc/os-release", 0o644, b"NAME=\"Alpine Linux\"\nID=alpine\n")?;
            let layers = [&base[..], &[layer.finish()?]].concat();
            let run = Run { entrypoint: &["/agnhost"], cmd: &["test-webserver"], ..Run::default() };
            made.push(image(&name(tag), &layers, &run)?);
        }
        let mut layer = LayerBuilder::new();
        layer.file("bin/sh", 0o755, &read(&self.shell)?)?;
        let plain = [shell.clone(), layer.finish()?];
        made.push(image(&name("busybox:1.37.0-1"), &plain, &Run { cmd: &["sh"], ..Run::default() })?);
        let as_1234 = Run { cmd: &["sh"], user: "1234", ..Run::default() };
        made.push(image(&name("nonroot:1.5"), &plain, &as_1234)?);
        made.push(image(&name("glibc-dns-testing:2.0.0"), &[shell.clone(), tools], &entry_of_shell())?);
        for tag in ["nginx:1.15-4", "nginx:1.27-0"] {
            made.push(self.web(&name(tag), &shell)?);
        }
        made.push(self.one(
            &name("nonewprivs:1.4"),
            &shell,
            &self.nonewprivs,
            "usr/local/bin/nnp",
            0o6755,
        )?);
        let regression = "regression-issue-74839";
        made.push(self.one(
            &name("regression-issue-74839:1.4"),
            &shell,
            &self.regression,
            regression,
            0o755,
        )?);
        let mut layer = LayerBuilder::new();
        layer.file("pause", 0o755, &read(&self.pause)?)?;
        let run = Run { entrypoint: &["/pause"], ..Run::default() };
        made.push(image("registry.k8s.io/pause:3.10.2", &[layer.finish()?], &run)?);
        Ok(made)
    }

    /// Debian's tools with their libraries, over busybox' links.
    fn tools_layer(&self) -> Result<Layer, ImageError> {
        let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        for (tool, path) in &self.tools {
            let bytes = read(path)?;
            if let Some(loader) = elf::interpreter(&bytes) {
                for library in libraries(&loader, path)? {
                    if !files.contains_key(&library) {
                        files.insert(library.clone(), read(&library)?);
                    }
                }
            }
            let place = if *tool == "nc.openbsd" { "nc" } else { tool };
            files.insert(Path::new("/bin").join(place), bytes);
        }
        let mut layer = LayerBuilder::new();
        for dir in directories(files.keys()).into_iter().filter(|d| d != "bin") {
            layer.dir(&dir, 0o755)?;
        }
        for (path, bytes) in &files {
            layer.file(&within(path), 0o755, bytes)?;
        }
        layer.link("bin/sh", "bash")?;
        layer.link("usr/bin/env", "../../bin/env")?;
        Ok(layer.finish()?)
    }

    /// agnhost, with the users of its image.
    fn agnhost_layer(&self) -> Result<Layer, ImageError> {
        let mut layer = LayerBuilder::new();
        layer.file("agnhost", 0o755, &read(&self.agnhost)?)?;
        layer.link("agnhost-2", "agnhost")?;
        layer.dir("uploads", 0o755)?;
        // What it serves TLS with where a spec asks for that; nobody verifies it.
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let own = own.map_err(|e| ImageError::Layer(std::io::Error::other(e)))?;
        layer.file("localhost.crt", 0o644, own.cert.pem().as_bytes())?;
        layer.file("localhost.key", 0o644, own.signing_key.serialize_pem().as_bytes())?;
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n\
                      user-defined-in-image:x:1000:1000::/home:/bin/sh\n";
        layer.file("etc/passwd", 0o644, passwd.as_bytes())?;
        let group = "root:x:0:\nnobody:x:65534:\nuser-defined-in-image:x:1000:\n\
                     group-defined-in-image:x:50000:user-defined-in-image\n";
        layer.file("etc/group", 0o644, group.as_bytes())?;
        Ok(layer.finish()?)
    }

    /// A program over busybox.
    fn one(
        &self,
        name: &str,
        shell: &Layer,
        program: &Path,
        place: &str,
        mode: u32,
    ) -> Result<Image, ImageError> {
        let mut layer = LayerBuilder::new();
        for dir in directories([PathBuf::from(format!("/{place}"))].iter()) {
            layer.dir(&dir, 0o755)?;
        }
        layer.file(place, mode, &read(program)?)?;
        let run = match place {
            "usr/local/bin/nnp" => Run { cmd: &["/usr/local/bin/nnp"], ..Run::default() },
            _ => Run { entrypoint: &["/regression-issue-74839"], ..Run::default() },
        };
        image(name, &[shell.clone(), layer.finish()?], &run)
    }

    /// A web server on port 80.
    fn web(&self, name: &str, shell: &Layer) -> Result<Image, ImageError> {
        let mut layer = LayerBuilder::new();
        layer.dir("usr/share", 0o755)?;
        layer.dir("usr/share/nginx", 0o755)?;
        layer.dir("usr/share/nginx/html", 0o755)?;
        layer.file("usr/share/nginx/html/index.html", 0o644, b"<h1>Welcome to nginx!</h1>\n")?;
        let run = Run { cmd: &["httpd", "-f", "-p", "80", "-h", "/usr/share/nginx/html"], ..Run::default() };
        image(name, &[shell.clone(), layer.finish()?], &run)
    }
}

fn entry_of_shell() -> Run {
    Run { cmd: &["sh"], ..Run::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_told_with_its_package() {
        let said = SuiteError::Tools { tools: "dig".into(), packages: "bind9-dnsutils".into() }.to_string();
        assert_eq!(said, "dig not found; apt-get install --no-install-recommends bind9-dnsutils");
    }

    #[test]
    fn a_name_is_the_suites() {
        assert_eq!(name("busybox:1.37.0-1"), "registry.k8s.io/e2e-test-images/busybox:1.37.0-1");
    }
}
