//! `podway ui` over the cluster under test, as a client without scripts and as a browser sees it.

use crate::cluster::{Cluster, built, run};
use crate::namespace::LIMIT;
use anyhow::{Context as _, bail, ensure};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How a browser is started that is nobody's, in a container as well; where its profile is comes after it.
pub const CHROMIUM: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
];

/// The page; it ends when this is dropped.
#[derive(Debug)]
pub struct Page {
    process: Child,
    /// What the command printed: with the token.
    address: String,
    host: String,
    cookie: String,
}

impl Page {
    /// Starts `podway ui` for a namespace, and lets itself in.
    ///
    /// # Errors
    /// When it does not start, or lets nobody in.
    pub async fn open(cluster: &Cluster, namespace: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(built("podway")?);
        command.args(["ui", "--listen", "127.0.0.1:0", "-n", namespace]);
        command.env("KUBECONFIG", cluster.layout.admin_kubeconfig());
        let mut process = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut told = BufReader::new(process.stdout.take().context("stdout")?).lines();
        let address = told.next_line().await?.context("podway ui prints no address")?;
        let (host, token) = address.trim_start_matches("http://").split_once('/').context("an address")?;
        let mut page =
            Page { process, host: host.to_owned(), cookie: String::new(), address: address.clone() };
        let answer = page.get(&format!("/{token}")).await?;
        let cookie = answer.lines().find_map(|l| l.strip_prefix("set-cookie: ")).context("no cookie")?;
        cookie.split(';').next().unwrap_or_default().clone_into(&mut page.cookie);
        Ok(page)
    }

    async fn ask(&self, path: &str) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.host).await?;
        let Page { host, cookie, .. } = self;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        Ok(stream)
    }

    /// The whole answer, head and body.
    async fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut answer = String::new();
        self.ask(path).await?.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Waits until what is at `path` says `said`, looking whenever the page says that it may be another.
    ///
    /// # Errors
    /// After [`LIMIT`], with what it said last.
    pub async fn until(&self, path: &str, said: &str) -> anyhow::Result<()> {
        let mut live = BufReader::new(self.ask("/live").await?).lines();
        let mut last = String::new();
        let look = async {
            loop {
                last = self.get(path).await?;
                if last.contains(said) {
                    return Ok(());
                }
                loop {
                    let line = live.next_line().await?.context("/live ended")?;
                    if line.starts_with("data:") {
                        break;
                    }
                }
            }
        };
        match tokio::time::timeout(LIMIT, look).await {
            Ok(result) => result,
            Err(_) => bail!("{path} does not say {said:?} after {LIMIT:?}, but:\n{last}"),
        }
    }

    /// The first page's document in a real browser, once it has loaded.
    ///
    /// # Errors
    /// When there is no Chromium, or it fails.
    pub async fn in_chromium(&self) -> anyhow::Result<String> {
        let profile = tempfile::tempdir()?;
        let mut command = Command::new("chromium");
        command.args(CHROMIUM).arg("--dump-dom");
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg(&self.address);
        let answer = run(&mut command, "", LIMIT).await.context("is chromium installed?")?;
        ensure!(answer.code == 0, "chromium: {}", answer.err);
        Ok(answer.out)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn close(mut self) -> anyhow::Result<()> {
        Ok(self.process.kill().await?)
    }
}
