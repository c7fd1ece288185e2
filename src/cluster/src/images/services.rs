//! The images of what gives a cluster its services, made of programs of this machine: kube-proxy with the machine's
//! iptables, and CoreDNS. `podway up` needs neither; Kubernetes' specs of services do.

use std::fs;
use std::path::{Path, PathBuf};

use super::e2e::{SuiteError, push_all};
use super::podway::{add_libraries, read, with_libraries};
use super::{Image, ImageError, LayerBuilder, Run, image};
use crate::Progress;
use crate::binaries::of_path;
use crate::elf;
use crate::program::Program;

/// kube-proxy.
pub const KUBE_PROXY: &str = "registry.k8s.io/kube-proxy:v1.36";
/// CoreDNS.
pub const COREDNS: &str = "registry.k8s.io/coredns/coredns:v1";

/// What kube-proxy runs: names of one program.
const IPTABLES: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

/// Makes both and pushes them to the registry at `host:port`.
///
/// # Errors
/// [`SuiteError`], the first one.
pub async fn push(endpoint: &str, progress: Progress<'_>) -> Result<(), SuiteError> {
    let proxy = Program::KubeProxy.locate(progress).await?;
    let dns = Program::CoreDns.locate(progress).await?;
    push_all(endpoint, progress, move || Ok(vec![kube_proxy(&proxy)?, coredns(&dns)?])).await
}

fn kube_proxy(program: &Path) -> Result<Image, ImageError> {
    let (tool, extensions) = iptables()?;
    let mut files =
        with_libraries(&[(program, "/usr/local/bin/kube-proxy"), (&tool, "/usr/sbin/xtables-multi")])?;
    let loader = elf::interpreter(&read(&tool)?);
    for extension in extensions {
        // They are linked to more than their program is: libxt_statistic, which chooses an endpoint, to libm.
        if let Some(loader) = &loader {
            add_libraries(&mut files, loader, &extension)?;
        }
        let bytes = read(&extension)?;
        files.insert(extension, bytes);
    }
    let mut layer = LayerBuilder::new();
    layer.dir("run", 0o755)?;
    layer.dir("tmp", 0o1777)?;
    layer.files(&files, |_| 0o755)?;
    for name in IPTABLES {
        layer.link(&format!("usr/sbin/{name}"), "xtables-multi")?;
    }
    let run = Run { entrypoint: &["/usr/local/bin/kube-proxy"], ..Run::default() };
    image(KUBE_PROXY, &[layer.finish()?], &run)
}

/// The program behind `iptables`, and its extensions, which it loads by their place.
fn iptables() -> Result<(PathBuf, Vec<PathBuf>), ImageError> {
    let missing = |path: &str, source| ImageError::Read { path: path.to_owned(), source };
    let found =
        of_path("iptables").ok_or_else(|| missing("iptables", std::io::ErrorKind::NotFound.into()))?;
    let tool = fs::canonicalize(&found).map_err(|e| missing("iptables", e))?;
    let mut extensions = Vec::new();
    // /usr/lib/xtables, or Debian's /usr/lib/ARCH/xtables.
    let lib = fs::read_dir("/usr/lib").map_err(|e| missing("/usr/lib", e))?;
    let dirs = lib.filter_map(Result::ok).map(|entry| entry.path().join("xtables"));
    for dir in dirs.chain([PathBuf::from("/usr/lib/xtables")]).filter(|dir| dir.is_dir()) {
        let text = dir.display().to_string();
        for entry in fs::read_dir(&dir).map_err(|e| missing(&text, e))? {
            extensions.push(entry.map_err(|e| missing(&text, e))?.path());
        }
    }
    extensions.sort();
    Ok((tool, extensions))
}

fn coredns(program: &Path) -> Result<Image, ImageError> {
    let mut layer = LayerBuilder::new();
    layer.file("coredns", 0o755, &read(program)?)?;
    image(COREDNS, &[layer.finish()?], &Run { entrypoint: &["/coredns"], ..Run::default() })
}
