//! The images that the CRI validation suite asks for by name (cri-tools, `pkg/validate/consts.go`),
//! made from busybox, nginx and a few lines of C. One cannot be made: `test-image-digest` is named by
//! the digest of an image that only its own registry has.

use anyhow::{Context as _, ensure};
use podway_cluster::images::{Image, Layer, LayerBuilder, Run, busybox_layer, image};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// The suite's default image: busybox.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// nginx, on port 80.
pub const NGINX: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";
/// A web server beside another container, on port 80.
pub const HTTPD: &str = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4";
/// A set-user-ID program that tells its effective user.
pub const NO_NEW_PRIVS: &str = "registry.k8s.io/e2e-test-images/nonewprivs:1.3";
/// A user that the image puts into a group.
pub const PREDEFINED_GROUP: &str = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest";

const STAGING: &str = "gcr.io/k8s-staging-cri-tools";
const NNP: &str = r#"#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\n", (int)geteuid()); return 0; }
"#;

/// Builds all of them; `work` is for what is built on the way.
///
/// # Errors
/// Where busybox, a C compiler or nginx is not to be had.
pub async fn all(work: &Path) -> anyhow::Result<Vec<Image>> {
    let mut images = plain(work).await?;
    images.extend(served(work).await?);
    Ok(images)
}

fn base() -> anyhow::Result<Layer> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|p| p.is_file());
    Ok(busybox_layer(&busybox.context("there is no busybox: apt-get install busybox-static")?)?)
}

/// Those without a web server: all that our own suite asks for.
///
/// # Errors
/// Where busybox or a C compiler is not to be had.
pub async fn plain(work: &Path) -> anyhow::Result<Vec<Image>> {
    let base = base()?;
    let sh = Run { cmd: &["sh"], ..Run::default() };
    let mut images = vec![image(BUSYBOX, &[base.clone(), tools()?], &sh)?];
    // Different content, so different images: the suite counts them.
    for name in ["latest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest"] {
        let layers = [base.clone(), text("test", name)?];
        images.push(image(&format!("{STAGING}/test-image-{name}"), &layers, &sh)?);
    }
    // The same content under three tags: one image.
    for tag in ["1", "2", "3"] {
        let layers = [base.clone(), text("test", "tags")?];
        images.push(image(&format!("{STAGING}/test-image-tags:{tag}"), &layers, &sh)?);
    }
    for (name, user) in [
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:1003"),
        ("user-username-group", "www-data:www-data"),
    ] {
        let layers = [base.clone(), text("test", name)?];
        images.push(image(&format!("{STAGING}/test-image-{name}:latest"), &layers, &Run { user, ..sh })?);
    }
    let layers = [base.clone(), predefined_group()?];
    images.push(image(PREDEFINED_GROUP, &layers, &Run { user: "1000", ..sh })?);

    // No process of it ever runs but as an image of its own name; pause is what containerd needs.
    for name in ["registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.10.1"] {
        let mut layer = LayerBuilder::new();
        layer.file("pause", 0o755, &std::fs::read(compiled(work, "pause", PAUSE).await?)?)?;
        images.push(image(name, &[layer.finish()?], &Run { entrypoint: &["/pause"], ..Run::default() })?);
    }
    let mut layer = LayerBuilder::new();
    layer.file("nnp", 0o4755, &std::fs::read(compiled(work, "nnp", NNP).await?)?)?;
    let nnp = Run { entrypoint: &["/nnp"], ..Run::default() };
    images.push(image(NO_NEW_PRIVS, &[base.clone(), layer.finish()?], &nnp)?);
    Ok(images)
}

/// Those with nginx.
async fn served(work: &Path) -> anyhow::Result<Vec<Image>> {
    let (base, mut images) = (base()?, Vec::new());
    let program = nginx(work).await?;
    let arch = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    for (name, port) in [(NGINX.to_owned(), 80), (format!("{STAGING}/hostnet-nginx-{arch}:latest"), 12003)] {
        let run = Run { entrypoint: &["/usr/sbin/nginx", "-g", "daemon off;"], ..Run::default() };
        images.push(image(&name, &[base.clone(), web(&program, port)?], &run)?);
    }
    // It is looked for by its log, so it says its name.
    let httpd = Run {
        entrypoint: &["sh", "-c", "echo httpd; exec /usr/sbin/nginx -g 'daemon off;'"],
        ..Run::default()
    };
    images.push(image(HTTPD, &[base.clone(), web(&program, 80)?], &httpd)?);
    Ok(images)
}

/// What Debian's busybox lacks of the published one: ipcs, pgrep (by name), and a `ls` that is a file of its own.
fn tools() -> anyhow::Result<Layer> {
    let mut layer = LayerBuilder::new();
    layer.program(Path::new("/usr/bin/ipcs"), "/usr/bin/ipcs").context("util-linux' ipcs")?;
    layer.file("bin/ls", 0o755, b"#!/bin/busybox sh\nexec /bin/busybox ls \"$@\"\n")?;
    layer.file("bin/pgrep", 0o755, PGREP.as_bytes())?;
    Ok(layer.finish()?)
}

const PGREP: &str = r#"#!/bin/busybox sh
found=1
for process in /proc/[0-9]*; do
    if read -r name 2>/dev/null <"$process/comm" && [ "$name" = "$1" ]; then
        echo "${process#/proc/}"
        found=0
    fi
done
exit $found
"#;

/// The program of the pause image: it waits, and ends on SIGTERM.
const PAUSE: &str = r#"#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); signal(SIGCHLD, reap); for (;;) pause(); }
"#;

fn text(name: &str, content: &str) -> anyhow::Result<Layer> {
    let mut layer = LayerBuilder::new();
    layer.file(name, 0o644, content.as_bytes())?;
    // The users that the images' configurations name.
    let passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
                  nobody:x:65534:65534:nobody:/home:/bin/false\n";
    layer.file("etc/passwd", 0o644, passwd.as_bytes())?;
    layer.file("etc/group", 0o644, b"root:x:0:\nwww-data:x:33:\nnobody:x:65534:\n")?;
    Ok(layer.finish()?)
}

fn predefined_group() -> anyhow::Result<Layer> {
    let mut layer = LayerBuilder::new();
    let passwd = "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n";
    layer.file("etc/passwd", 0o644, passwd.as_bytes())?;
    let group = "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n";
    layer.file("etc/group", 0o644, group.as_bytes())?;
    Ok(layer.finish()?)
}

fn web(program: &Path, port: u16) -> anyhow::Result<Layer> {
    let mut layer = LayerBuilder::new();
    layer.program(program, "/usr/sbin/nginx")?;
    for dir in ["etc/nginx", "var/log", "var/log/nginx", "var/lib", "var/lib/nginx", "var/run", "run", "www"]
    {
        layer.dir(dir, 0o755)?;
    }
    let conf = format!(
        "user nobody;\nworker_processes 1;\npid /var/run/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 64; }}\nhttp {{ access_log off; server {{ listen {port}; root /www; }} }}\n"
    );
    layer.file("etc/nginx/nginx.conf", 0o644, conf.as_bytes())?;
    layer.file("www/index.html", 0o644, b"<html>Welcome to nginx!</html>\n")?;
    Ok(layer.finish()?)
}

/// Compiles a program of one file, static.
async fn compiled(work: &Path, name: &str, source: &str) -> anyhow::Result<PathBuf> {
    let (code, program) = (work.join(format!("{name}.c")), work.join(name));
    if !program.is_file() {
        std::fs::write(&code, source)?;
        let cc = Command::new("cc").args(["-static", "-Os", "-s", "-o"]).arg(&program).arg(&code).output();
        let cc = cc.await.context("running cc")?;
        ensure!(cc.status.success(), "cc {name}.c: {}", String::from_utf8_lossy(&cc.stderr));
    }
    Ok(program)
}

/// nginx: the installed one, else Debian's package, unpacked and not installed.
async fn nginx(work: &Path) -> anyhow::Result<PathBuf> {
    let unpacked = work.join("nginx/usr/sbin/nginx");
    let installed = Path::new("/usr/sbin/nginx");
    if let Some(found) = [installed, &unpacked].into_iter().find(|p| p.is_file()) {
        return Ok(found.to_owned());
    }
    let dir = work.join("nginx");
    std::fs::create_dir_all(&dir)?;
    let run = async |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(&dir).output().await;
        let output = output.with_context(|| format!("running {program}: install nginx"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{program} {args:?}: {said}");
        Ok(())
    };
    run("apt-get", &["download", "-q", "nginx"]).await?;
    run("sh", &["-c", "dpkg-deb -x nginx_*.deb ."]).await?;
    ensure!(unpacked.is_file(), "Debian's package nginx has no /usr/sbin/nginx");
    Ok(unpacked)
}
