//! A monitor of a test's own, and bundles of busybox for its containers.

#[path = "runc.rs"]
mod runc;

use podway_monitor::{Client, Create, Reply, Request};
use runc::runc;
use std::io::Read as _;
use std::path::{Path, PathBuf};

pub struct Place {
    dir: tempfile::TempDir,
    runc: PathBuf,
    cgroup: String,
}

pub struct Bench {
    pub client: Client,
}

/// Where a monitor can run, or `None` after saying why not.
pub fn bench(name: &str) -> Option<Place> {
    let root = rustix::process::geteuid().is_root();
    let (Some(runc), true, true) = (runc(), Path::new("/bin/busybox").exists(), root) else {
        println!("skipped: needs root, /bin/busybox and runc (PODWAY_RUNC, PATH or /tmp/kbin)");
        return None;
    };
    let cgroup = format!("podway-test-{name}-{}", std::process::id());
    Some(Place { dir: tempfile::tempdir().unwrap(), runc, cgroup })
}

impl Place {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the monitor.
    pub fn connect(&self) -> Bench {
        let binary = Path::new(env!("CARGO_BIN_EXE_podway-monitor"));
        podway_monitor::spawn(binary, &self.at("m.sock"), &self.at("state")).unwrap();
        Bench { client: Client::connect(&self.at("m.sock")).unwrap() }
    }

    /// Creates and starts a container; gives its id.
    pub fn start(
        &self,
        client: &mut Client,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut Create),
    ) -> String {
        let id = format!("{name}-{}", std::process::id());
        let dir = self.at(name);
        let mut create = Create {
            id: id.clone(),
            runc: self.runc.clone(),
            runc_root: self.at("runc"),
            runc_log: self.at("runc.log"),
            bundle: dir.clone(),
            log_path: Some(self.at(&format!("{name}.log"))),
            exit_file: self.at("exit"),
            ..Create::default()
        };
        change(&mut create);
        let bin = dir.join("rootfs/bin");
        for made in [&bin, &dir.join("rootfs/proc"), &dir.join("rootfs/dev")] {
            std::fs::create_dir_all(made).unwrap();
        }
        std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for applet in ["sh", "cat"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
        let config = format!(
            r#"{{"ociVersion":"1.2.0","root":{{"path":"rootfs"}},
            "process":{{"terminal":{},"user":{{"uid":0,"gid":0}},"args":["/bin/sh","-c",{script:?}],"env":["PATH=/bin"],"cwd":"/"}},
            "mounts":[{{"destination":"/proc","type":"proc","source":"proc"}},
            {{"destination":"/dev","type":"tmpfs","source":"tmpfs"}},
            {{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["newinstance","ptmxmode=0666"]}}],
            "linux":{{"cgroupsPath":"/{}/{id}","namespaces":[{{"type":"pid"}},{{"type":"mount"}},{{"type":"ipc"}},{{"type":"uts"}}]}}}}"#,
            create.console_socket.is_some(),
            self.cgroup,
        );
        std::fs::write(dir.join("config.json"), config).unwrap();
        assert!(matches!(client.call(&Request::Create(Box::new(create))).unwrap(), Reply::Created { .. }));
        client.call(&Request::Start { id: id.clone() }).unwrap();
        id
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(&format!("{name}.log"))).unwrap()
    }

    /// Waits until the log has `size` bytes and grows no more for a while; gives its size.
    pub fn log_reaches(&self, name: &str, size: u64) -> u64 {
        use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
        let path = self.at(&format!("{name}.log"));
        let watch = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        watch.add_watch(&path, AddWatchFlags::IN_MODIFY).unwrap();
        let mut file = std::fs::File::from(watch.as_fd().try_clone_to_owned().unwrap());
        let mut events = [0; 4096];
        loop {
            let now = std::fs::metadata(&path).unwrap().len();
            let mut fds = [nix::poll::PollFd::new(watch.as_fd(), nix::poll::PollFlags::POLLIN)];
            if now >= size && nix::poll::poll(&mut fds, 500u16).unwrap() == 0 {
                return now;
            }
            assert!(file.read(&mut events).unwrap() > 0);
        }
    }

    /// Deletes the containers and ends the monitor; nothing of the test stays.
    pub fn end(&self, mut client: Client, ids: &[String]) {
        for id in ids {
            client.call(&Request::Delete { id: id.clone() }).unwrap();
        }
        client.call(&Request::Shutdown).unwrap();
        for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let parent = controller.path().join(&self.cgroup);
            if parent.exists() {
                std::fs::remove_dir(parent).unwrap();
            }
        }
    }
}

use std::os::fd::AsFd as _;
