//! Flows as HTML: `-o html`, one file of one pod, and the pages of `podway ui`. Every page is one document:
//! it loads nothing, every text in it is escaped, and it has the terminal's numbers, from [`crate::picture`].
//!
//! The policy allows the one style and the one script of the document by their digests, and no other: no
//! attribute here is a style or a handler, so what a name or a message says can only be text.

mod compare;
mod draw;
mod overview;
mod pod;
mod pulls;

pub use compare::compare;
pub use overview::{Entry, Overview, State, overview};
pub use pod::pod;
pub use pulls::Told;

use crate::waterfall::escaped;
use crate::{Flow, Micros};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/live.js");
/// How often a page without script is asked for anew, in seconds.
const REFRESH: &str = "5";

/// Where a page stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The path of the stream that says when to draw anew; a page without it stands alone.
    pub live: Option<String>,
    /// Of which pods `podway ui` tells, e.g. `namespace web`.
    pub scope: String,
    /// What could not be read, and why.
    pub troubles: Vec<String>,
}

/// One pod as a file of its own.
#[must_use]
pub fn page(flow: &Flow, now: Option<Micros>) -> String {
    pod(flow, now, &crate::stuck::Limits::default(), None, &Frame::default())
}

/// The policy of every page: for its `meta`, and for the header of a server, where frames can be forbidden.
#[must_use]
pub fn policy(live: bool) -> String {
    let digest = |text: &str| format!("'sha256-{}'", BASE64.encode(Sha256::digest(text)));
    let style = digest(STYLE);
    let live = if live {
        format!("; script-src {}; connect-src 'self'; form-action 'self'; img-src 'self'", digest(SCRIPT))
    } else {
        "; form-action 'none'".to_owned()
    };
    format!("default-src 'none'; style-src {style}; base-uri 'none'{live}")
}

/// A page that says one thing: an error, mostly.
#[must_use]
pub fn notice(title: &str, said: &str, frame: &Frame) -> String {
    document(title, frame, &html! { h1 { (text(title)) } p { (text(said)) } p { a href="/" { "all pods" } } })
}

fn document(title: &str, frame: &Frame, body: &Markup) -> String {
    let live = frame.live.as_deref();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy(live.is_some()));
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { (text(title)) }
                style { (PreEscaped(STYLE)) }
                @if live.is_some() {
                    link rel="icon" href="/icon.svg" type="image/svg+xml";
                    noscript { meta http-equiv="refresh" content=(REFRESH); }
                }
            }
            body data-live=[live] {
                @if live.is_some() {
                    a.skip href="#main" { "to the content" }
                    header {
                        a.brand href="/" { "podway" }
                        span.scope { (text(&frame.scope)) }
                        nav aria-label="pages" { a href="/" { "pods" } " · " a href="/compare" { "compare" } }
                        span.state role="status" { "as of this load" }
                    }
                }
                main #main {
                    @for trouble in &frame.troubles { section.alert { p.bad { (text(trouble)) } } }
                    (body)
                }
                @if live.is_some() { script { (PreEscaped(SCRIPT)) } }
            }
        }
    }
    .into_string()
}

/// Text of a flow: control and direction characters shown as such; maud escapes what is HTML's.
fn text(text: &str) -> String {
    escaped(text, false)
}

/// The link to a pod's page.
fn link(flow: &Flow) -> String {
    format!("/pod/{}/{}", encoded(&flow.pod.namespace), encoded(&flow.pod.name))
}

/// `text` as one segment of a path, or one value of a query.
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => out.push(char::from(byte)),
            // A segment that is only dots would be walked, not looked up.
            b'.' if !text.bytes().all(|b| b == b'.') => out.push('.'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests;
