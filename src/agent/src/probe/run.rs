//! How a probe is asked and a hook is done.

use crate::cri::{CallError, Cri};
use crate::probe::schedule::Answer;
use crate::probe::spec::{Handler, Probe};
use crate::probe::{grpc, http};
use async_trait::async_trait;
use podway_flow::record::bounded;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::Code;

/// The most that people are told of an answer, in bytes.
const OUTPUT_LIMIT: usize = 10 << 10;
/// How often a question that could not be put is put again at once.
const ATTEMPTS: usize = 3;

/// What a command in a container came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to both its outputs.
    pub output: String,
}

/// Who runs commands in containers.
#[async_trait]
pub trait Exec: Send + Sync {
    /// Runs `command` to its end, for at most `timeout` if there is one.
    ///
    /// # Errors
    /// [`CallError`], with `DeadlineExceeded` for one that did not end in time.
    async fn exec(&self, id: &str, command: &[String], timeout: Option<Duration>) -> Result<Ran, CallError>;
}

#[async_trait]
impl Exec for Cri {
    async fn exec(&self, id: &str, command: &[String], timeout: Option<Duration>) -> Result<Ran, CallError> {
        let response = self.exec_sync(id, command, timeout).await?;
        let both = [response.stdout, response.stderr].concat();
        let output = bounded(&String::from_utf8_lossy(&both), OUTPUT_LIMIT);
        Ok(Ran { code: response.exit_code, output })
    }
}

/// The container that is asked.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The pod's address; empty where it has none.
    pub address: String,
}

impl Target {
    fn at(&self, host: Option<&String>, port: u16) -> String {
        let host = host.unwrap_or(&self.address);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// Asks a probe; what could not be asked is asked again, up to three times.
pub async fn ask(exec: &dyn Exec, target: &Target, probe: &Probe) -> Answer {
    let handler = match &probe.handler {
        Ok(handler) => handler,
        Err(why) => return Answer::Error(why.clone()),
    };
    let mut answer = Answer::Error(String::new());
    for _ in 0..ATTEMPTS {
        answer = once(exec, target, handler, probe.timeout).await;
        if !matches!(answer, Answer::Error(_)) {
            break;
        }
    }
    answer
}

async fn once(exec: &dyn Exec, target: &Target, handler: &Handler, timeout: Duration) -> Answer {
    match handler {
        Handler::Exec(command) => match exec.exec(&target.id, command, Some(timeout)).await {
            Ok(ran) if ran.code == 0 => Answer::Good,
            Ok(ran) => Answer::Bad(ran.output),
            Err(e) if e.code == Code::DeadlineExceeded => {
                Answer::Bad(format!("command timed out: {:?} timed out after {timeout:?}", command.join(" ")))
            }
            Err(e) => Answer::Error(e.message),
        },
        Handler::Http(get) => {
            let url = match http::url(get, &target.address) {
                Ok(url) => url,
                Err(why) => return Answer::Error(why),
            };
            match tokio::time::timeout(timeout, http::get(&url, &get.headers)).await {
                Err(_) => Answer::Bad(format!(
                    "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                )),
                Ok(Err(error)) => Answer::Bad(error.to_string()),
                Ok(Ok(response)) => match response.status {
                    200..=299 => Answer::Good,
                    300..=399 => Answer::Warning(format!(
                        "Probe terminated redirects, Response body: {}",
                        response.body
                    )),
                    status => Answer::Bad(format!("HTTP probe failed with statuscode: {status}")),
                },
            }
        }
        Handler::Tcp { host, port } => {
            let address = target.at(host.as_ref(), *port);
            match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
                Ok(Ok(_)) => Answer::Good,
                Ok(Err(error)) => Answer::Bad(http::dial(&address, &error)),
                Err(_) => Answer::Bad(format!("dial tcp {address}: i/o timeout")),
            }
        }
        Handler::Grpc { port, service } => grpc::ask(&target.at(None, *port), service, timeout).await,
        Handler::Sleep(_) => Answer::Error("missing probe handler".to_owned()),
    }
}

/// Does a hook, to its end however long it takes. What is worth a word though it worked comes back.
///
/// # Errors
/// In the kubelet's words.
pub async fn hook(
    exec: &dyn Exec,
    target: &Target,
    handler: &Result<Handler, String>,
) -> Result<Option<String>, String> {
    match handler.as_ref().map_err(Clone::clone)? {
        Handler::Exec(command) => {
            let failed = |why: String, output: &str| {
                format!(
                    "Exec lifecycle hook ({command:?}) for Container {:?} failed - error: {why}, message: {output:?}",
                    target.name
                )
            };
            match exec.exec(&target.id, command, None).await {
                Ok(ran) if ran.code == 0 => Ok(None),
                Ok(ran) => Err(failed(
                    format!(
                        "command '{}' exited with {}: {}",
                        command.join(" "),
                        ran.code,
                        ran.output.trim()
                    ),
                    &ran.output,
                )),
                Err(e) => Err(failed(e.message, "")),
            }
        }
        Handler::Http(get) => {
            let url = http::url(get, &target.address)?;
            let (answer, word) = match http::get(&url, &get.headers).await {
                // As before 1.26, when hooks knew no TLS.
                Err(error) if error.plain => {
                    let plain = http::url(
                        &crate::probe::spec::HttpGet { tls: false, ..get.clone() },
                        &target.address,
                    )?;
                    let word = format!(
                        "request to HTTPS lifecycle hook got HTTP response, retry with HTTP succeeded: {url}"
                    );
                    (http::get(&plain, &get.headers).await, Some(word))
                }
                other => (other, None),
            };
            // Any answer will do.
            answer.map(|_| word).map_err(|e| {
                format!(
                    "HTTP lifecycle hook ({}) for Container {:?} failed - error: {e}",
                    get.path, target.name
                )
            })
        }
        Handler::Sleep(time) => {
            tokio::time::sleep(*time).await;
            Ok(None)
        }
        Handler::Tcp { .. } | Handler::Grpc { .. } => Err("invalid handler: cannot run handler".to_owned()),
    }
}

#[cfg(test)]
mod tests;
