//! The socket where runc hands over the master of a terminal that it has made.
//!
//! It must listen before runc runs. runc connects and sends before it ends with success, so that the
//! master is there to be taken then, without waiting.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A socket that is gone with this.
#[derive(Debug)]
pub struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens at `path` (at most 107 bytes; one that was left there is replaced). Its directory must
    /// be private: whoever connects first is taken for runc.
    pub fn bind(path: &Path) -> io::Result<Console> {
        remove(path)?;
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Console { listener, path: path.to_owned() })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The master, after runc has ended with success.
    pub fn master(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 4096];
        let name = &mut [IoSliceMut::new(&mut name)];
        rustix::net::recvmsg(&stream, name, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let sent = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let master = sent.ok_or_else(|| io::Error::other("runc sent no descriptor"))?;
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(master)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("console socket {} stays: {error}", self.path.display());
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
