//! Builds programs from the Go modules that are committed in `go/`, once per version.
//!
//! A program is built into a temporary directory beside its place and renamed there, so what is
//! in the cache is whole. A lock file keeps two builds of the same module apart; who waits finds
//! the program in the cache afterwards.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;

use crate::Progress;
use crate::cache;
use crate::program::{BinaryError, Program};

/// One of the modules in `go/`.
struct Module {
    /// Its name, for the directory of its sources in the cache.
    name: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    tools_go: &'static str,
    /// The required module that the version is taken from.
    main: &'static str,
}

macro_rules! module {
    ($name:literal, $main:literal) => {
        Module {
            name: $name,
            go_mod: include_str!(concat!("../go/", $name, "/go.mod")),
            go_sum: include_str!(concat!("../go/", $name, "/go.sum")),
            tools_go: include_str!(concat!("../go/", $name, "/tools.go")),
            main: $main,
        }
    };
}

static CONTROLPLANE: Module = module!("controlplane", "k8s.io/kubernetes");
static ETCD: Module = module!("etcd", "go.etcd.io/etcd/server/v3");
static RUNC: Module = module!("runc", "github.com/opencontainers/runc");
static CNI: Module = module!("cni", "github.com/containernetworking/plugins");
static CONTAINERD: Module = module!("containerd", "github.com/containerd/containerd/v2");
static E2E: Module = module!("e2e", "k8s.io/kubernetes");
static CRITEST: Module = module!("critest", "sigs.k8s.io/cri-tools");
static COREDNS: Module = module!("coredns", "github.com/coredns/coredns");
static HELM: Module = module!("helm", "helm.sh/helm/v4");
static REGISTRY: Module = module!("registry", "github.com/distribution/distribution/v3");

impl Module {
    /// The version of the main module, as `go.mod` pins it.
    fn version(&self) -> &'static str {
        self.go_mod
            .lines()
            .filter_map(|l| l.trim().trim_start_matches("require ").strip_prefix(self.main))
            .filter_map(|rest| rest.strip_prefix(' '))
            .find(|rest| rest.starts_with('v'))
            .and_then(|rest| rest.split_ascii_whitespace().next())
            .unwrap_or("unpinned")
    }
}

/// What `go build` is called with.
struct Recipe {
    module: &'static Module,
    packages: Vec<String>,
    tags: Option<&'static str>,
    ldflags: String,
    cgo: bool,
    /// Whether the program is the package's tests.
    tests: bool,
    /// How long it takes on 2 cores with nothing cached; shown to who waits.
    seconds: u32,
}

fn recipe(program: Program) -> Recipe {
    let of = |module: &'static Module, package: &str, seconds| {
        let version = module.version();
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
        let base = "k8s.io/component-base/version";
        Recipe {
            module,
            packages: vec![format!("k8s.io/kubernetes/{package}")],
            tags: None,
            // Without these the version that the server tells does not parse.
            ldflags: format!(
                "-s -w -X {base}.gitVersion={version} -X {base}.gitMajor={major} \
                 -X {base}.gitMinor={minor} -X k8s.io/client-go/pkg/version.gitVersion={version}"
            ),
            cgo: false,
            tests: false,
            seconds,
        }
    };
    let kubernetes = |package: &str, seconds| of(&CONTROLPLANE, package, seconds);
    let plain = |module: &'static Module, package: &str, seconds| Recipe {
        module,
        packages: vec![package.to_owned()],
        tags: None,
        ldflags: "-s -w".to_owned(),
        cgo: false,
        tests: false,
        seconds,
    };
    match program {
        Program::KubeApiserver => kubernetes("cmd/kube-apiserver", 150),
        Program::KubeControllerManager => kubernetes("cmd/kube-controller-manager", 20),
        Program::Kubectl => kubernetes("cmd/kubectl", 15),
        Program::Agnhost => kubernetes("test/images/agnhost", 5),
        Program::KubeScheduler => kubernetes("cmd/kube-scheduler", 15),
        Program::E2eTest => Recipe { tests: true, ..of(&E2E, "test/e2e", 150) },
        Program::Nonewprivs => of(&E2E, "test/images/nonewprivs", 5),
        Program::Regression74839 => of(&E2E, "test/images/regression-issue-74839", 5),
        Program::Ginkgo => plain(&E2E, "github.com/onsi/ginkgo/v2/ginkgo", 10),
        Program::Kubelet => kubernetes("cmd/kubelet", 25),
        Program::KubeProxy => kubernetes("cmd/kube-proxy", 20),
        Program::CoreDns => plain(&COREDNS, "github.com/coredns/coredns", 120),
        Program::Critest => {
            Recipe { tests: true, ..plain(&CRITEST, "sigs.k8s.io/cri-tools/cmd/critest", 60) }
        }
        Program::Containerd => Recipe {
            packages: ["containerd", "containerd-shim-runc-v2"]
                .iter()
                .map(|p| format!("github.com/containerd/containerd/v2/cmd/{p}"))
                .collect(),
            ldflags: format!(
                "-s -w -X github.com/containerd/containerd/v2/version.Version={}",
                CONTAINERD.version().trim_start_matches('v')
            ),
            ..plain(&CONTAINERD, "", 60)
        },
        Program::Helm => Recipe {
            ldflags: format!("-s -w -X helm.sh/helm/v4/internal/version.version={}", HELM.version()),
            ..plain(&HELM, "helm.sh/helm/v4/cmd/helm", 90)
        },
        Program::Etcd => plain(&ETCD, "go.etcd.io/etcd/server/v3", 20),
        Program::Registry => plain(&REGISTRY, "github.com/distribution/distribution/v3/cmd/registry", 60),
        Program::Runc => Recipe {
            // runc joins namespaces in C, so it needs cgo in any case; seccomp needs the headers.
            cgo: true,
            tags: Some(if seccomp_headers() { "seccomp,netgo,osusergo" } else { "netgo,osusergo" }),
            ldflags: format!("-s -w -X main.version={}", RUNC.version().trim_start_matches('v')),
            ..plain(&RUNC, "github.com/opencontainers/runc", 10)
        },
        Program::CniPlugins => Recipe {
            packages: ["main/bridge", "ipam/host-local", "meta/portmap", "main/loopback"]
                .iter()
                .map(|p| format!("github.com/containernetworking/plugins/plugins/{p}"))
                .collect(),
            ..plain(&CNI, "", 15)
        },
    }
}

fn seccomp_headers() -> bool {
    Path::new("/usr/include/seccomp.h").exists()
}

/// How long the program's build takes on 2 cores with nothing cached.
pub(crate) fn seconds(program: Program) -> u32 {
    recipe(program).seconds
}

/// Seconds as people say them: `2 min 30 s`.
pub(crate) fn duration(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s} s"),
        (m, 0) => format!("{m} min"),
        (m, s) => format!("{m} min {s} s"),
    }
}

/// The directory of the module's programs in the cache.
fn dir(program: Program) -> Result<PathBuf, BinaryError> {
    let module = recipe(program).module;
    let cache = cache::dir().ok_or(BinaryError::NoCache { program: program.file() })?;
    Ok(cache.join("bin").join(format!("{}-{}", module.name, module.version())))
}

/// The program in the cache, if it is there.
pub(crate) fn cached(program: Program) -> Result<Option<PathBuf>, BinaryError> {
    let place = dir(program)?.join(program.file());
    Ok(Some(place).filter(|p| program.complete(p)))
}

/// Builds the program into the cache, unless another did meanwhile.
pub(crate) async fn built(program: Program, progress: Progress<'_>) -> Result<PathBuf, BinaryError> {
    let name = program.file();
    let recipe = recipe(program);
    let module = recipe.module;
    let dir = dir(program)?;
    let place = dir.join(name);
    let io = |what: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |source: io::Error| BinaryError::Io { program: name, what, path, source }
    };
    fs::create_dir_all(&dir).map_err(io("create", &dir))?;
    let waiting = || progress(&format!("waiting for another podway that builds {name}"));
    let _lock = cache::lock(&dir.join("lock"), waiting).await.map_err(io("lock", &dir))?;
    if program.complete(&place) {
        return Ok(place);
    }
    let cache = cache::dir().ok_or(BinaryError::NoCache { program: name })?;
    let sources = cache.join("src").join(format!("{}-{}", module.name, module.version()));
    fs::create_dir_all(&sources).map_err(io("create", &sources))?;
    for (file, text) in [("go.mod", module.go_mod), ("go.sum", module.go_sum), ("tools.go", module.tools_go)]
    {
        let path = sources.join(file);
        fs::write(&path, text).map_err(io("write", &path))?;
    }
    let out = tempfile::tempdir_in(&dir).map_err(io("create a directory in", &dir))?;
    let (version, about) = (module.version(), duration(recipe.seconds.into()));
    progress(&format!("building {name} {version} (about {about})"));
    let begun = Instant::now();
    tokio::select! {
        done = build(program, &recipe, &sources, out.path()) => done?,
        () = heartbeat(name, begun, progress) => {}
    }
    let source = match program {
        Program::CniPlugins | Program::Containerd => out.path().to_owned(),
        Program::Etcd => out.path().join("server"),
        _ => out.path().join(name),
    };
    // `go build -o DIR/` names a file by its package: for a path that ends in /v3, by what is before.
    let source = if source.exists() { source } else { out.path().join(name) };
    fs::rename(&source, &place).map_err(io("move into the cache", &source))?;
    progress(&format!("built {name} in {}", duration(begun.elapsed().as_secs())));
    Ok(place)
}

/// Tells who waits, twice a minute, that the build goes on. Never ends.
async fn heartbeat(name: &str, begun: Instant, progress: Progress<'_>) {
    loop {
        tokio::time::sleep(Duration::from_secs(30)).await;
        progress(&format!("  still building {name} ({})", duration(begun.elapsed().as_secs())));
    }
}

async fn build(program: Program, recipe: &Recipe, sources: &Path, out: &Path) -> Result<(), BinaryError> {
    let name = program.file();
    let mut command = Command::new("go");
    command
        .current_dir(sources)
        .env("GOFLAGS", "-buildvcs=false -mod=mod")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", if recipe.cgo { "1" } else { "0" })
        .args(if recipe.tests { ["test", "-c"].as_slice() } else { &["build"] })
        .args(["-trimpath", "-ldflags", &recipe.ldflags])
        .arg("-o")
        .arg(if recipe.tests { out.join(name) } else { out.join("") });
    if let Some(tags) = recipe.tags {
        command.args(["-tags", tags]);
    }
    command.args(&recipe.packages).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BinaryError::NoTool { programs: name.to_owned(), tool: "go" },
        _ => BinaryError::Io { program: name, what: "run", path: "go".to_owned(), source },
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(8)..].join("; ");
    Err(BinaryError::Build { program: name, status: output.status, output: tail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_committed_modules() {
        assert!(CONTROLPLANE.version().starts_with("v1.36."), "{}", CONTROLPLANE.version());
        assert!(ETCD.version().starts_with("v3.6."));
        assert_eq!(E2E.version(), CONTROLPLANE.version(), "the suite is that of the control plane");
        for module in [&RUNC, &CNI, &CONTAINERD, &REGISTRY, &CRITEST, &HELM, &COREDNS] {
            assert!(module.version().starts_with('v'), "{}", module.name);
        }
    }

    #[test]
    fn durations_are_as_people_say_them() {
        assert_eq!([20, 60, 150].map(duration), ["20 s", "1 min", "2 min 30 s"]);
    }

    #[test]
    fn the_kubernetes_programs_are_stamped() {
        let flags = recipe(Program::KubeApiserver).ldflags;
        assert!(flags.contains("component-base/version.gitMajor=1 "), "{flags}");
        assert!(flags.contains("component-base/version.gitMinor=36 "), "{flags}");
    }
}
