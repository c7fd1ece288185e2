//! A page by plain HTTP/1.0: enough for metrics and probes.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What is at a path; the answer's head is not looked at.
///
/// # Errors
/// When the connection breaks, or the answer is no text.
pub async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> anyhow::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
