//! How large a pod's /dev/shm is: 64 MiB, as containerd and CRI-O have it, or what the annotation
//! `io.kubernetes.cri-o.ShmSize` says where the configuration allows it (CRI-O's `allowed_annotations`,
//! pkg/annotations and server/sandbox_run_linux.go).

use crate::config::Annotation;
use crate::error::OpError;
use crate::journal::private_dir;
use crate::points::{self, Point};
use nix::mount::{MsFlags, mount};
use std::collections::HashMap;
use std::path::Path;

/// The annotation's name.
pub const ANNOTATION: &str = "io.kubernetes.cri-o.ShmSize";
/// containerd's `defaultShmSize`, CRI-O's `DefaultShmSize`.
pub const DEFAULT: u64 = 64 << 20;

/// The size in bytes that a sandbox with `annotations` gets. An annotation that is not allowed is none.
///
/// # Errors
/// [`OpError::Invalid`] for a value that is no size.
pub fn size(annotations: &HashMap<String, String>, allowed: &[Annotation]) -> Result<u64, OpError> {
    let wanted = annotations.get(ANNOTATION).filter(|_| allowed.contains(&Annotation::ShmSize));
    let Some(text) = wanted else { return Ok(DEFAULT) };
    let shown = podway_flow::record::bounded(text, 80);
    parse(text).ok_or_else(|| {
        OpError::Invalid(format!(
            "annotation {ANNOTATION}: {shown:?} is not a size above 0; give a whole number of bytes, or of Ki, \
             Mi, Gi, Ti, k, M, G, T"
        ))
    })
}

/// Mounts it at `shm` in the pod's directory; it belongs to `root`, the pod's.
pub(super) fn make(pod: &Path, size: u64, root: u32) -> Result<(), OpError> {
    let shm = pod.join("shm");
    private_dir(&shm).map_err(|e| OpError::Io("make the sandbox' shm", e))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let options = format!("mode=1777,size={size},uid={root},gid={root}");
    mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|e| OpError::Io("mount the sandbox' shm", e.into()))?;
    points::at(Point::ShmMounted);
    Ok(())
}

/// A quantity of the Kubernetes API as far as it is a size: a whole number and a suffix.
fn parse(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let unit: u64 = match suffix {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return None,
    };
    // tmpfs takes 0 for "no limit", which is nothing that a pod may ask for.
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|size| *size > 0 && i64::try_from(*size).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_64_mebibytes_or_an_allowed_annotations() {
        let annotated = |value: &str| HashMap::from([(ANNOTATION.to_owned(), value.to_owned())]);
        let allowed = [Annotation::ShmSize];
        assert_eq!(size(&HashMap::new(), &allowed).unwrap(), 64 << 20);
        assert_eq!(size(&annotated("16Mi"), &[]).unwrap(), 64 << 20, "not allowed");
        for (text, bytes) in [("16Mi", 16 << 20), ("1Gi", 1 << 30), ("4096", 4096), ("2M", 2_000_000)] {
            assert_eq!(size(&annotated(text), &allowed).unwrap(), bytes, "{text}");
        }
        for wrong in
            ["", "0", "0Mi", "-1", "1.5Gi", "Mi", "1mi", "1Mi,mode=777", "99999999999999999999", "9999999Ti"]
        {
            let refused = size(&annotated(wrong), &allowed).unwrap_err();
            assert!(refused.to_string().contains(ANNOTATION), "{wrong}: {refused}");
        }
    }
}
