//! `podway image build`: the image of podway itself, made here, without Docker.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use podway_cluster::Program;
use podway_cluster::images::{self, Image, Programs};
use podway_cluster::push::{Registry, Target};

use crate::commands::{Hinted, print};
use crate::programs;

/// Make the image of podway that the manifests name.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  podway image build --output podway.tar && kind load image-archive podway.tar\n  podway image build --name registry.example/team/podway:0.1.0 --push"
)]
pub(super) struct Args {
    /// The image's name: REGISTRY/REPOSITORY:TAG.
    #[arg(long, default_value = images::PODWAY)]
    name: String,
    /// Write it to a file (an OCI image layout in a tar), for kind, containerd, podman or skopeo.
    #[arg(long, short, value_name = "FILE", required_unless_present = "push")]
    output: Option<PathBuf>,
    /// Push it to the registry of its name, with the credentials of docker's config.json if it asks for some.
    #[arg(long)]
    push: bool,
    /// The registry speaks HTTP without TLS.
    #[arg(long, requires = "push")]
    plain_http: bool,
}

/// Prints the bill of materials.
pub(super) fn sbom() -> anyhow::Result<()> {
    let bill = images::sbom().context("the lock file that podway was built with")?;
    print(&format!("{}\n", String::from_utf8_lossy(&bill)))
}

#[expect(clippy::print_stderr, reason = "progress of a command")]
fn say(line: &str) {
    eprintln!("{line}");
}

impl Args {
    /// Builds it, and puts it where it is wanted.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let target = Target::parse(&self.name, self.plain_http).with_context(|| {
            Hinted::new(format!("--name {}", self.name), "for example registry.example/team/podway:0.1.0")
        })?;
        let podway = programs::whole()?;
        let programs = Programs { runc: Program::Runc.locate(&say).await?, podway };
        let name = self.name.clone();
        let image = tokio::task::spawn_blocking(move || images::podway(&name, &programs)).await??;
        if let Some(path) = &self.output {
            write(&image, &self.name, path)?;
            say(&format!("wrote {}", path.display()));
        }
        if self.push {
            let pushed = Registry::open(&target)?.push(&image).await?;
            say(if pushed { "pushed" } else { "the registry has it already" });
        }
        print(&format!("{}@{}\n", self.name, image.index.digest))
    }
}

/// Beside its place first, so that a file of that name is whole.
fn write(image: &Image, name: &str, path: &std::path::Path) -> anyhow::Result<()> {
    let about = || format!("writing {}", path.display());
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(about)?;
    images::archive::write(image, name, std::io::BufWriter::new(&mut file)).with_context(about)?;
    file.flush().with_context(about)?;
    file.persist(path).with_context(about)?;
    Ok(())
}
