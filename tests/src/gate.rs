//! A relay that holds back: of each connection's answers it lets through so many bytes as it was told to, and the rest
//! when it is told more. A download behind it is as far as a test wants it to be, on any machine.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The relay; it ends when this is dropped.
#[derive(Debug)]
pub struct Gate {
    /// Where it listens.
    pub address: SocketAddr,
    open: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Gate {
    /// A relay to `server` that listens at `at` and lets `bytes` of each connection through.
    ///
    /// # Errors
    /// When there is no such address here.
    pub async fn before(server: SocketAddr, at: IpAddr, bytes: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind((at, 0)).await?;
        let address = listener.local_addr()?;
        let (open, allowed) = watch::channel(bytes);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(relay(client, server, allowed.clone()));
            }
        });
        Ok(Gate { address, open, task })
    }

    /// Lets `bytes` of each connection through from now on, those included that have passed.
    pub fn open(&self, bytes: u64) {
        self.open.send_replace(bytes);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An end of either side is the end of both; who connected sees it and says so.
async fn relay(
    client: TcpStream,
    server: SocketAddr,
    mut allowed: watch::Receiver<u64>,
) -> std::io::Result<()> {
    let (mut asked, mut answered) = client.into_split();
    let (mut from, mut to) = TcpStream::connect(server).await?.into_split();
    let there = async {
        tokio::io::copy(&mut asked, &mut to).await?;
        to.shutdown().await
    };
    let back = async {
        let mut chunk = [0; 16 * 1024];
        let mut passed = 0_u64;
        loop {
            let read = from.read(&mut chunk).await?;
            if read == 0 {
                return answered.shutdown().await;
            }
            let mut rest = &chunk[..read];
            while !rest.is_empty() {
                let Ok(open) = allowed.wait_for(|open| *open > passed).await.map(|open| *open) else {
                    return Ok(());
                };
                let fits = usize::try_from(open - passed).unwrap_or(usize::MAX).min(rest.len());
                answered.write_all(&rest[..fits]).await?;
                (passed, rest) = (passed + fits as u64, &rest[fits..]);
            }
        }
    };
    tokio::try_join!(there, back).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_bytes_come_through_and_the_rest_when_it_is_opened() {
        let here = IpAddr::from([127, 0, 0, 1]);
        let server = TcpListener::bind((here, 0)).await.unwrap();
        let gate = Gate::before(server.local_addr().unwrap(), here, 5).await.unwrap();
        let mut client = TcpStream::connect(gate.address).await.unwrap();
        client.write_all(b"ask").await.unwrap();
        let (mut end, _) = server.accept().await.unwrap();
        let mut asked = [0; 3];
        end.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"ask");
        end.write_all(b"0123456789").await.unwrap();
        drop(end);
        let mut got = [0; 5];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"01234");
        // What is held back is not there, however long one looks.
        assert_eq!(client.try_read(&mut got).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        gate.open(8);
        client.read_exact(&mut got[..3]).await.unwrap();
        assert_eq!(&got[..3], b"567");
        gate.open(u64::MAX);
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "89");
    }
}
