//! A headless Chromium, driven by its own DevTools protocol over one WebSocket: the smallest driver that can
//! forbid scripts, choose dark, look at what the console says, and take a picture.

use base64::Engine as _;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(90);

pub struct Chromium {
    process: Child,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
    last: u64,
    /// What the console, the log and the policy complained about.
    pub complaints: Vec<String>,
    /// Documents whose loading has ended, by the browser's id for it.
    loaded: HashSet<String>,
    _profile: tempfile::TempDir,
}

impl Chromium {
    pub async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut process = Command::new("chromium")
            .args(podway_tests::page::CHROMIUM)
            .arg("--remote-debugging-port=0")
            .args(["--window-size=1280,900", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromium is in PATH: apt-get install chromium");
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = tokio::time::timeout(LIMIT, async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, address)) = line.split_once("DevTools listening on ") {
                    return address.to_owned();
                }
            }
            panic!("chromium ended before it listened");
        })
        .await
        .expect("chromium listens");
        // It would stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (socket, _) = tokio_tungstenite::connect_async(address).await.unwrap();
        let session = String::new();
        let mut this = Chromium {
            process,
            socket,
            session,
            last: 0,
            complaints: Vec::new(),
            loaded: HashSet::new(),
            _profile: profile,
        };
        let target = this.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attached = this
            .call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}))
            .await;
        attached["sessionId"].as_str().unwrap().clone_into(&mut this.session);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            this.call(domain, json!({})).await;
        }
        this.call("Page.setLifecycleEventsEnabled", json!({"enabled": true})).await;
        this
    }

    /// Calls a method and returns its result.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.ask(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Calls a method and returns its result, or the browser's refusal.
    async fn ask(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        self.last += 1;
        let id = self.last;
        let mut message = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        self.socket.send(Message::text(message.to_string())).await.unwrap();
        let answer = async {
            loop {
                let message = self.next().await;
                if message["id"] == id {
                    let refused = message["error"].clone();
                    return if refused.is_null() { Ok(message["result"].clone()) } else { Err(refused) };
                }
            }
        };
        tokio::time::timeout(LIMIT, answer).await.unwrap_or_else(|_| panic!("{method} was not answered"))
    }

    async fn next(&mut self) -> Value {
        let message = self.socket.next().await.expect("chromium lives").unwrap();
        let message: Value = serde_json::from_str(message.to_text().unwrap_or("null")).unwrap();
        match message["method"].as_str() {
            Some("Page.lifecycleEvent") if message["params"]["name"] == "load" => {
                self.loaded.extend(message["params"]["loaderId"].as_str().map(str::to_owned));
            }
            Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled") => {
                self.complaints.push(message.to_string())
            }
            Some("Log.entryAdded") => self.complaints.push(message["params"]["entry"]["text"].to_string()),
            _ => {}
        }
        message
    }

    /// Opens an address, and waits until it is loaded: this document, for the word that another one is may come late.
    pub async fn open(&mut self, address: &str) {
        let begun = self.call("Page.navigate", json!({"url": address})).await;
        let document = begun["loaderId"].as_str().unwrap_or_else(|| panic!("{address}: {begun}")).to_owned();
        let loaded = async {
            while !self.loaded.contains(&document) {
                self.next().await;
            }
        };
        tokio::time::timeout(LIMIT, loaded).await.unwrap_or_else(|_| panic!("{address} was not loaded"));
    }

    /// What an expression comes to, awaited if it is a promise.
    pub async fn value(&mut self, expression: &str) -> Value {
        self.evaluate(expression).await.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    async fn evaluate(&mut self, expression: &str) -> Result<Value, Value> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.ask("Runtime.evaluate", params).await?;
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        Ok(result["result"]["value"].clone())
    }

    /// The text of the page.
    pub async fn text(&mut self) -> String {
        self.value("document.body.innerText").await.as_str().unwrap().to_owned()
    }

    /// Waits until an expression is true, looking whenever the page changes, and on the page that comes after
    /// it: the promise of a page that is left is never kept.
    pub async fn until(&mut self, expression: &str) {
        let promise = format!(
            "new Promise(done => {{ const look = () => {{ if (document.body && ({expression})) {{ done(true); return true }} }};
             if (!look()) new MutationObserver(look).observe(document, {{subtree: true, childList: true, characterData: true}}) }})"
        );
        loop {
            let error = match self.evaluate(&promise).await {
                Ok(_) => return,
                Err(error) => error,
            };
            let left = ["navigated", "context was destroyed"].iter().any(|e| error.to_string().contains(e));
            assert!(left, "{expression}: {error}");
        }
    }

    pub async fn scripts(&mut self, allowed: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({"value": !allowed})).await;
    }

    pub async fn scheme(&mut self, scheme: &str) {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", feature).await;
    }

    /// A picture of the whole page, for people: `target/tmp/ui/NAME.png`.
    pub async fn picture(&mut self, name: &str) {
        let shot = self
            .call("Page.captureScreenshot", json!({"captureBeyondViewport": true, "format": "png"}))
            .await;
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("ui");
        std::fs::create_dir_all(&directory).unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(directory.join(format!("{name}.png")), png).unwrap();
    }

    pub async fn end(mut self) {
        self.process.kill().await.unwrap();
    }
}
