//! One daemon: its port, its start, its restart where it is not what it should be.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use super::{READY, UpError, Work};
use crate::connect;
use crate::process::{self, Daemon, ProcessError};

impl Work<'_> {
    /// The port that was chosen for `name` before, or a free one.
    pub(super) fn port(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        preferred: Option<u16>,
    ) -> Result<u16, UpError> {
        if let Some(port) = self.state.ports.get(name) {
            return Ok(*port);
        }
        let free = |port| TcpListener::bind((address, port)).and_then(|l| l.local_addr());
        let found = preferred
            .and_then(|port| free(port).ok())
            .map_or_else(|| free(0), Ok)
            .map_err(|source| UpError::Port { address, source })?;
        self.state.ports.insert(name.to_owned(), found.port());
        self.state.save(self.layout)?;
        Ok(found.port())
    }

    /// Sees that the daemon runs with this command line and is ready.
    pub(super) async fn ensure<F>(&mut self, daemon: &Daemon, ready: impl FnMut() -> F) -> Result<(), UpError>
    where
        F: Future<Output = bool>,
    {
        let name = daemon.name.as_str();
        let log = self.layout.log(name);
        let mut running = self.state.processes.get(name).cloned().filter(process::alive);
        if running.is_none() {
            running = process::unrecorded(daemon, self.layout.root())
                .map_err(|source| ProcessError::Kernel { what: "list", pid: 0, source })?;
        }
        let record = match running {
            Some(record) if process::current(&record, daemon) => record,
            other => {
                if let Some(old) = other {
                    process::stop(&old, Duration::from_secs(10)).await?;
                }
                (self.progress)(&format!("starting {name}"));
                daemon.start(&log, self.layout.root())?
            }
        };
        if self.state.processes.get(name) != Some(&record) {
            self.state.processes.insert(name.to_owned(), record.clone());
            self.state.save(self.layout)?;
        }
        connect::until_ready(name, &record, &log, READY, ready).await?;
        Ok(())
    }
}
