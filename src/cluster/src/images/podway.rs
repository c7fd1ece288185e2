//! The image of podway itself, which the Deployment and the DaemonSet of `manifests/` name: the very
//! programs that `up` runs (runc too, whose place differs from machine to machine), with the libraries
//! that they are linked to, and the list of what they were built from.
//!
//! The libraries are those that this machine's loader gives them (`ld.so --list`, which is what ldd
//! asks), each at its own path. Those of a distribution are where the loader looks without being
//! told; one that only /etc/ld.so.conf names is not found in the image.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Image, ImageError, LayerBuilder, Run, image};
use crate::elf;
use crate::own;

/// The image of podway, as the manifests name it.
pub const PODWAY: &str = concat!("podway.dev/podway:", env!("CARGO_PKG_VERSION"));

/// The user that it runs as where the pod does not say: nobody.
const USER: &str = "65534:65534";

/// Where the image has its [`sbom`](super::sbom).
const SBOM: &str = "/usr/share/podway/sbom.cdx.json";

/// The programs of the image, as this machine has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The `podway` program, with [the others](crate::own) beside it.
    pub podway: PathBuf,
    /// runc.
    pub runc: PathBuf,
}

impl Programs {
    /// Each with its place in the image.
    pub(super) fn places(&self) -> Vec<(PathBuf, String)> {
        let own =
            own::BESIDE.iter().map(|name| (own::beside(&self.podway, name), format!("/usr/bin/{name}")));
        let named = [(self.podway.clone(), "/usr/bin/podway"), (self.runc.clone(), "/usr/bin/runc")];
        own.chain(named.map(|(path, place)| (path, place.to_owned()))).collect()
    }
}

/// Builds [`PODWAY`], or the same under another name (`registry/repository:tag`).
pub fn podway(name: &str, programs: &Programs) -> Result<Image, ImageError> {
    let places = programs.places();
    let places: Vec<(&Path, &str)> =
        places.iter().map(|(path, place)| (path.as_path(), place.as_str())).collect();
    let mut files = with_libraries(&places)?;
    let passwd = b"root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    files.insert(PathBuf::from("/etc/passwd"), passwd.to_vec());
    files.insert(PathBuf::from("/etc/group"), b"root:x:0:\nnobody:x:65534:\n".to_vec());
    files.insert(PathBuf::from(SBOM), super::sbom()?);

    let mut layer = LayerBuilder::new();
    layer.dir("tmp", 0o1777)?;
    let data = |path: &Path| path.starts_with("/etc") || path == Path::new(SBOM);
    layer.files(&files, |path| if data(path) { 0o644 } else { 0o755 })?;
    let run = Run { entrypoint: &["/usr/bin/podway"], user: USER, ..Run::default() };
    image(name, &[layer.finish()?], &run)
}

/// Programs at their places, with the libraries that they are linked to.
pub(super) fn with_libraries(programs: &[(&Path, &str)]) -> Result<BTreeMap<PathBuf, Vec<u8>>, ImageError> {
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for (program, place) in programs {
        let bytes = read(program)?;
        if let Some(loader) = elf::interpreter(&bytes) {
            add_libraries(&mut files, &loader, program)?;
        }
        files.insert(PathBuf::from(place), bytes);
    }
    Ok(files)
}

/// Adds what `program`, which may be a library itself, is linked to and `files` have not.
pub(super) fn add_libraries(
    files: &mut BTreeMap<PathBuf, Vec<u8>>,
    loader: &str,
    program: &Path,
) -> Result<(), ImageError> {
    for library in libraries(loader, program)? {
        if let Entry::Vacant(place) = files.entry(library) {
            let bytes = read(place.key())?;
            place.insert(bytes);
        }
    }
    Ok(())
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(|source| ImageError::Read { path: path.display().to_string(), source })
}

/// A path as a layer has it.
pub(super) fn within(path: &Path) -> String {
    path.display().to_string().trim_start_matches('/').to_owned()
}

/// The directories of `files`, each before what is in it.
pub(super) fn directories<'a>(files: impl Iterator<Item = &'a PathBuf>) -> BTreeSet<String> {
    let above = files.flat_map(|f| f.ancestors().skip(1));
    above.map(within).filter(|dir| !dir.is_empty()).collect()
}

/// What `loader` maps for `program`: itself, and every library.
pub(super) fn libraries(loader: &str, program: &Path) -> Result<BTreeSet<PathBuf>, ImageError> {
    // Not what this environment adds or replaces: the image has another.
    let output = Command::new(loader).arg("--list").arg(program).env_clear().stdin(Stdio::null()).output();
    let output = output.map_err(|source| ImageError::Read { path: loader.to_owned(), source })?;
    let name = program.display().to_string();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(ImageError::Loader { loader: loader.to_owned(), program: name, said });
    }
    let mut found = listed(&String::from_utf8_lossy(&output.stdout))
        .map_err(|library| ImageError::Library { program: name, library })?;
    found.insert(PathBuf::from(loader));
    Ok(found)
}

/// The paths in the answer to `--list`; the name of a library that is not found is the error.
/// The kernel's vdso has a name and no path.
fn listed(answer: &str) -> Result<BTreeSet<PathBuf>, String> {
    let mut paths = BTreeSet::new();
    for line in answer.lines() {
        let (name, rest) = line.trim().split_once(" => ").unwrap_or(("", line.trim()));
        if rest == "not found" {
            return Err(name.to_owned());
        }
        // The address that it is mapped at is last.
        let path = rest.rsplit_once(" (").map_or(rest, |(path, _)| path);
        if path.starts_with('/') {
            paths.insert(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_loaders_answer_is_read() {
        let answer = "\tlinux-vdso.so.1 (0x00007f61)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 \
                      (0x00007f62)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f63)\n\tstatically linked\n";
        let paths = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(listed(answer), Ok(paths.map(PathBuf::from).into()));
        assert_eq!(listed("\tlibssl.so.3 => not found\n"), Err("libssl.so.3".to_owned()));
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it() {
        let files = ["/usr/bin/podway", "/lib64/ld.so"].map(PathBuf::from);
        let found: Vec<String> = directories(files.iter()).into_iter().collect();
        assert_eq!(found, ["lib64", "usr", "usr/bin"]);
    }

    /// A small program of this machine in podway's place: a debug build takes minutes to pack.
    #[test]
    fn the_image_has_all_that_its_program_needs() {
        let shell = Path::new("/bin/sh");
        let bytes = fs::read(shell).unwrap();
        let built = tempfile::tempdir().unwrap();
        let podway_of = built.path().join("podway");
        assert_eq!(own::missing(&podway_of), Some(built.path().join(own::BESIDE[0])));
        for name in own::BESIDE.iter().chain(&["podway"]) {
            fs::copy(shell, built.path().join(name)).unwrap();
        }
        assert_eq!(own::missing(&podway_of), None);
        let programs = Programs { podway: podway_of, runc: shell.to_owned() };
        let image = podway(PODWAY, &programs).unwrap();
        let other = podway("registry.example/team/podway:v2", &programs).unwrap();
        assert_eq!((other.repository.as_str(), other.tag.as_str()), ("team/podway", "v2"));
        assert_eq!(other.index.digest, image.index.digest, "the name is not in the bytes");
        assert_eq!((image.repository.as_str(), image.tag.as_str()), ("podway", env!("CARGO_PKG_VERSION")));
        let config: Value = serde_json::from_slice(&image.blobs[1].bytes).unwrap();
        assert_eq!(config["config"]["User"], USER);
        let dir = tempfile::tempdir().unwrap();
        tar::Archive::new(flate2::read::GzDecoder::new(&image.blobs[0].bytes[..]))
            .unpack(dir.path())
            .unwrap();
        for place in own::BESIDE.iter().chain(&["podway", "runc"]) {
            assert_eq!(fs::read(dir.path().join("usr/bin").join(place)).unwrap(), bytes, "{place}");
        }
        let sbom: Value =
            serde_json::from_slice(&fs::read(dir.path().join(within(Path::new(SBOM)))).unwrap()).unwrap();
        assert_eq!(sbom["bomFormat"], "CycloneDX");
        let Some(loader) = elf::interpreter(&bytes) else {
            eprintln!("skipped: /bin/sh is static");
            return;
        };
        let libraries = libraries(&loader, shell).unwrap();
        assert!(libraries.contains(Path::new(&loader)) && libraries.len() > 1, "{libraries:?}");
        for library in libraries {
            assert!(dir.path().join(within(&library)).is_file(), "{} is not there", library.display());
        }
    }

    #[test]
    fn the_manifests_name_this_image() {
        for text in [
            include_str!("../../../../manifests/scheduler.yaml"),
            include_str!("../../../../manifests/agent.yaml"),
        ] {
            let named: Vec<&str> = text.lines().filter_map(|l| l.trim().strip_prefix("image: ")).collect();
            assert!(!named.is_empty() && named.iter().all(|n| *n == PODWAY), "{named:?}");
        }
    }
}
