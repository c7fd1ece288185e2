//! The AppArmor profile of a container that names none, and of RuntimeDefault: containerd's and CRI-O's
//! (contrib/apparmor/template.go; both have it from Moby), under our name. It is loaded at the start, where the kernel
//! has AppArmor, so that no container waits for it, and stays until the machine ends.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;

use crate::check::in_path;
use crate::features::Features;
use podway_cri::v1::LinuxContainerSecurityContext;
use podway_cri::v1::security_profile::ProfileType;

/// Its name.
pub const DEFAULT: &str = "podway-default";

/// Where the distribution has its abstractions and tunables.
const MACROS: &str = "/etc/apparmor.d";

/// What compiles a profile and gives it to the kernel.
const PARSER: &str = "apparmor_parser";

/// Arguments with which it gives a profile to the kernel.
pub const LOAD: [&str; 2] = ["--skip-cache", "--replace"];

/// What the kernel has loaded: a line each, the name and the mode.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Whether the kernel has AppArmor and it is on.
#[must_use]
pub fn enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|t| t.trim_start().starts_with('Y'))
}

/// Loads [`DEFAULT`] if it is not loaded yet. A restart does not compile it again.
///
/// # Errors
/// When `apparmor_parser` is not there, or what it says.
pub async fn load() -> io::Result<()> {
    let loaded = tokio::fs::read_to_string(LOADED).await.unwrap_or_default();
    if loaded.lines().any(|line| line.split(' ').next() == Some(DEFAULT)) {
        return Ok(());
    }
    parse(&own_profile(), &LOAD).await
}

/// Compiles [`DEFAULT`], and leaves the kernel as it is.
///
/// # Errors
/// As [`load`].
pub async fn compile() -> io::Result<()> {
    parse(&own_profile(), &["--skip-cache", "--skip-kernel-load"]).await
}

fn own_profile() -> String {
    // How this process is confined, "NAME (enforce)": who signals containers. Without AppArmor it cannot be read.
    let own = std::fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let own = own.trim_matches(['\0', '\n']).split(' ').next().filter(|name| !name.is_empty());
    profile(own.unwrap_or("unconfined"), Path::new(MACROS))
}

/// Compiles a profile; `args` say what comes of it.
///
/// # Errors
/// As [`load`].
pub async fn parse(profile: &str, args: &[&str]) -> io::Result<()> {
    let parser =
        parser().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "install apparmor_parser"))?;
    let mut child = tokio::process::Command::new(parser)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(profile.as_bytes()).await?;
    }
    let end = child.wait_with_output().await?;
    if end.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{PARSER}: {}", String::from_utf8_lossy(&end.stderr).trim())))
}

/// In PATH, or where root's programs are: the PATH of a daemon may be a user's.
fn parser() -> Option<PathBuf> {
    let roots = ["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).join(PARSER));
    [PathBuf::from(PARSER)].iter().chain(&roots).find_map(|program| in_path(program))
}

/// The profile's text, with the distribution's macros as far as `macros` has them. `daemon` is the profile of this
/// process.
fn profile(daemon: &str, macros: &Path) -> String {
    let has = |name: &str| macros.join(name).is_file();
    let abi = if has("abi/3.0") { "abi <abi/3.0>,\n" } else { "" };
    let tunables = if has("tunables/global") { "#include <tunables/global>" } else { "@{PROC}=/proc/" };
    let base = if has("abstractions/base") { "  #include <abstractions/base>\n" } else { "" };
    format!(
        "{abi}{tunables}

profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{
{base}
  network,
  capability,
  file,
  umount,
  # The host, what runs containers and the runtime may signal them; they may signal each other.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (receive) peer={daemon},
  signal (send,receive) peer={DEFAULT},

  # Of /proc a container writes its processes' own, and of /proc/sys shared memory's limits.
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,

  deny mount,

  # Of /sys the cgroups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,

  ptrace (trace,tracedby,read,readby) peer={DEFAULT},
}}
"
    )
}

/// The profile that a container is confined by, if any: the one it names, else [`DEFAULT`] where it is loaded. What
/// cannot be had was refused before ([`refused`](crate::spec)).
pub(crate) fn of<'a>(context: &'a LinuxContainerSecurityContext, features: &Features) -> Option<&'a str> {
    if context.privileged {
        return None;
    }
    let default = features.apparmor_default.then_some(DEFAULT);
    match &context.apparmor {
        Some(named) if named.profile_type == ProfileType::Localhost as i32 => {
            Some(named.localhost_ref.trim_start_matches("localhost/"))
        }
        Some(named) if named.profile_type == ProfileType::RuntimeDefault as i32 => default,
        Some(_) => None,
        // kubernetes#51746: the default is of who does not say, too.
        None => default,
    }
}

#[cfg(test)]
mod tests {
    use super::{DEFAULT, MACROS, of, parse, parser, profile};
    use crate::features::Features;
    use podway_cri::v1::security_profile::ProfileType;
    use podway_cri::v1::{LinuxContainerSecurityContext, SecurityProfile};
    use std::path::Path;

    /// The parser compiles it, with the distribution's macros and without; only the kernel's part is not asked of it.
    #[tokio::test]
    #[expect(clippy::print_stderr, reason = "said, not passed over")]
    async fn the_profile_compiles() {
        if parser().is_none() {
            eprintln!("NOT TESTED: there is no apparmor_parser here");
            return;
        }
        for macros in [MACROS, "/nonexistent"] {
            let args = ["--skip-kernel-load", "--skip-cache"];
            parse(&profile("unconfined", Path::new(macros)), &args).await.unwrap();
            let broken = profile("unconfined", Path::new(macros)).replace("umount,", "umountt,");
            let error = parse(&broken, &args).await.unwrap_err().to_string();
            assert!(error.contains("syntax error"), "{error}");
        }
    }

    #[test]
    fn who_names_none_has_the_default_where_it_is_loaded() {
        let loaded = Features { apparmor: true, apparmor_default: true, ..Features::default() };
        let asks = |profile: Option<(ProfileType, &str)>, privileged| LinuxContainerSecurityContext {
            apparmor: profile.map(|(kind, name)| SecurityProfile {
                profile_type: kind as i32,
                localhost_ref: name.to_owned(),
            }),
            privileged,
            ..Default::default()
        };
        let default = Some(DEFAULT);
        for (asked, privileged, expected) in [
            (None, false, default),
            (Some((ProfileType::RuntimeDefault, "")), false, default),
            (Some((ProfileType::Unconfined, "")), false, None),
            (Some((ProfileType::Localhost, "localhost/own")), false, Some("own")),
            (Some((ProfileType::RuntimeDefault, "")), true, None),
            (None, true, None),
        ] {
            let context = asks(asked, privileged);
            assert_eq!(of(&context, &loaded), expected, "{asked:?}, privileged {privileged}");
            let not_loaded = of(&context, &Features::default());
            assert_eq!(not_loaded, expected.filter(|name| *name != DEFAULT), "{asked:?}");
        }
    }
}
