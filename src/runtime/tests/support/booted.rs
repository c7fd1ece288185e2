//! A real systemd for a test: booted as process 1 of a container (namespaces, cgroups and a root of its own), in
//! which the test's own executable runs once more, as a service, and decides how it ended.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Set where the executable runs as the service.
pub const INSIDE: &str = "PODWAY_TEST_UNDER_SYSTEMD";
/// What systemd exits with where the service has succeeded: no other way out of the container has this code.
pub const SUCCESS: i32 = 77;

/// What this machine lacks to boot it.
fn lacks() -> Option<String> {
    let programs =
        ["/lib/systemd/systemd", "/usr/bin/dbus-daemon", "/usr/bin/unshare", "/usr/sbin/pivot_root"];
    let missing: Vec<&str> = programs.into_iter().filter(|p| !Path::new(p).exists()).collect();
    if !missing.is_empty() {
        return Some(format!("{} (apt-get install systemd dbus util-linux)", missing.join(", ")));
    }
    let merged = std::fs::symlink_metadata("/bin").is_ok_and(|m| m.is_symlink());
    (!merged).then(|| "a /bin that is /usr/bin".to_owned())
}

/// Boots it, runs this executable with these arguments inside, with [`INSIDE`] and these variables set, and gives
/// what it printed, or that it was not tested, and why. The directories are there as they are here, and /usr; nothing
/// else is.
///
/// # Errors
/// What was said, where it did not succeed; or what this machine would not do.
pub fn run(
    arguments: &[&str],
    variables: &[(&str, &str)],
    directories: &[PathBuf],
) -> Result<String, String> {
    if let Some(lacking) = lacks() {
        return Ok(format!("NOT TESTED: a test under systemd needs {lacking}"));
    }
    let (status, said, console) = boot(arguments, variables, directories)
        .map_err(|error| format!("systemd cannot be booted: {error}"))?;
    if status.code() == Some(SUCCESS) {
        return Ok(said);
    }
    if said.is_empty() {
        // It is not what is tested that a machine lets us boot it.
        return Ok(format!("NOT TESTED: systemd did not boot: {status}\n{console}"));
    }
    Err(format!("{status}\n{said}\nsystemd said:\n{console}"))
}

/// How it ended, and what was said by the service and by systemd.
fn boot(
    arguments: &[&str],
    variables: &[(&str, &str)],
    directories: &[PathBuf],
) -> io::Result<(ExitStatus, String, String)> {
    let exe = std::env::current_exe()?;
    let dir = tempfile::Builder::new().prefix("pwsd").tempdir()?;
    let at = |file: &str| dir.path().join(file);
    std::fs::create_dir(at("root"))?;
    std::fs::create_dir(at("log"))?;
    let mut environment = vec![format!("{INSIDE}=1")];
    for variable in ["KUBEBUILDER_ASSETS", "PODWAY_RUNC", "PODWAY_CNI"] {
        environment.extend(std::env::var(variable).ok().map(|value| format!("{variable}={value}")));
    }
    environment.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
    let environment: String = environment.iter().map(|e| format!("Environment=\"{e}\"\n")).collect();
    let unit = format!(
        "[Unit]\nRequires=dbus.socket\nWants=systemd-logind.service\nAfter=dbus.service systemd-logind.service\n\
         SuccessAction=exit-force\nSuccessActionExitStatus={SUCCESS}\nFailureAction=exit-force\nFailureActionExitStatus=1\n\
         [Service]\nType=oneshot\nTimeoutStartSec=600\nExecStart={} {arguments}\n\
         StandardOutput=append:{log}\nStandardError=append:{log}\n{environment}",
        exe.display(),
        arguments = arguments.join(" "),
        log = at("log/test").display(),
    );
    std::fs::write(at("unit"), unit)?;
    std::fs::write(at("boot.sh"), include_str!("boot.sh"))?;
    std::fs::set_permissions(at("boot.sh"), std::fs::Permissions::from_mode(0o755))?;
    let group = format!("podway-systemd-{}", std::process::id());
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "640"]).arg(at("boot.sh")).arg(&group).arg(at("root")).arg(at("unit"));
    // Where this executable is, and the programs that were built beside it.
    command.args(exe.parent().and_then(Path::parent));
    command.arg(at("log")).args(directories.iter().filter(|d| !d.starts_with("/usr"))).env_remove("INNER");
    let console = std::fs::File::create(at("log/console"))?;
    command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
    let status = command.status();
    remove(&group);
    let read = |file: &str| std::fs::read_to_string(at(file)).unwrap_or_default();
    Ok((status?, read("log/test"), read("log/console")))
}

/// The container's cgroups: all that was in them has ended with its process 1.
fn remove(group: &str) {
    fn below(dir: &Path) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                below(&entry.path());
            }
        }
        if let Err(error) = std::fs::remove_dir(dir) {
            eprintln!("{} stays: {error}", dir.display());
        }
    }
    let mount = Path::new("/sys/fs/cgroup");
    let trees = std::fs::read_dir(mount).into_iter().flatten().flatten().map(|e| e.path());
    trees
        .chain([mount.to_owned()])
        .map(|tree| tree.join(group))
        .filter(|d| d.is_dir())
        .for_each(|d| below(&d));
}
