//! An exec or attach that runs: bytes in both directions until its end.
//!
//! A client that does not read holds back the process, a process that does not read holds back the
//! client's input only. What was written before the end is told before the end is.

use super::channel::{self, Said};
use super::client::{Client, Gone};
use super::output::Output;
use super::process::{End, Process};
use bytes::{Buf as _, Bytes};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// How long an ended process' terminal is read on, if others keep it open.
const LAST_WORDS: Duration = Duration::from_millis(500);

async fn read(output: Option<&mut Output>) -> Option<Bytes> {
    match output {
        Some(output) => output.read().await,
        None => std::future::pending().await,
    }
}

/// Carries a process' stdio; gives its exit code, or why there is none.
///
/// # Errors
/// [`Gone`].
pub async fn run(mut process: Process, client: &mut Client) -> Result<Result<i32, String>, Gone> {
    let result = carry(&mut process, client).await;
    if result.is_err() {
        // With its pipes closed it reads the end of its input and may not write: most end by that.
        process.stdin = None;
        process.end.of_input().await;
    }
    result
}

async fn carry(process: &mut Process, client: &mut Client) -> Result<Result<i32, String>, Gone> {
    let mut pending = Bytes::new();
    let mut input_ended = false;
    let result = loop {
        if input_ended && pending.is_empty() {
            input_ended = false;
            // A terminal has no half to close, and its end is the client's to type.
            if process.terminal.is_none() {
                process.stdin = None;
            }
            if process.end.of_input().await {
                break Ok(0);
            }
        }
        if process.end.is_output() && process.stdout.is_none() && process.stderr.is_none() {
            break process.end.come().await;
        }
        tokio::select! {
            result = process.end.come(), if !process.end.is_output() => break result,
            data = read(process.stdout.as_mut()) => match data {
                Some(data) => client.write(channel::STDOUT, data).await?,
                None => process.stdout = None,
            },
            data = read(process.stderr.as_mut()) => match data {
                Some(data) => client.write(channel::STDERR, data).await?,
                None => process.stderr = None,
            },
            wrote = async {
                match &mut process.stdin {
                    Some(stdin) => stdin.write(&pending).await,
                    None => Ok(pending.len()),
                }
            }, if !pending.is_empty() => match wrote {
                Ok(n) => pending.advance(n),
                // It reads no more: the rest of the input has nobody to go to.
                Err(_) => {
                    pending.clear();
                    process.stdin = None;
                }
            },
            said = client.next(), if pending.is_empty() => match said {
                Said::Stdin(data) => pending = data,
                Said::EndOfStdin => input_ended = true,
                Said::Resize(columns, rows) => process.resize(columns, rows),
                Said::Left => return Err(Gone),
            },
        }
    };
    if process.terminal.is_some() && process.stdout.is_some() {
        // A terminal's last words pass through a queue of the kernel: its end says that they are out.
        let last = async {
            while let Some(data) = read(process.stdout.as_mut()).await {
                client.write(channel::STDOUT, data).await?;
            }
            Ok(())
        };
        tokio::time::timeout(LAST_WORDS, last).await.unwrap_or(Ok(()))?;
    }
    for (number, output) in [(channel::STDOUT, &process.stdout), (channel::STDERR, &process.stderr)] {
        while let Some(data) = output.as_ref().and_then(Output::rest) {
            client.write(number, data).await?;
        }
    }
    Ok(result)
}

impl Process {
    fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        if let Some(terminal) = &self.terminal
            && let Err(error) = rustix::termios::tcsetwinsize(terminal, size)
        {
            tracing::debug!(%error, "a terminal's size was not set");
        }
    }
}

impl End {
    /// Whether it is the end of the output that ends the session.
    fn is_output(&self) -> bool {
        matches!(self, End::Container(attached) if attached.outputs)
    }

    /// The end, when it has come.
    async fn come(&mut self) -> Result<i32, String> {
        match self {
            End::Exit(exit) => {
                exit.await.map_err(|_| "the pod's monitor has ended: the exit code is not known".to_owned())
            }
            End::Container(attached) => attached.ended().await,
        }
    }

    /// The client's input has ended; whether that is the end of the session.
    async fn of_input(&mut self) -> bool {
        match self {
            End::Exit(_) => false,
            End::Container(attached) => attached.input_ended().await,
        }
    }
}
