//! The pulls of a pod's images under its picture, as its node tells of them while the pod is on its way. Where the
//! node does not tell, or the user may not ask, the picture stays as it is.

use std::io::IsTerminal as _;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use podway_flow::pulls::Pull;
use podway_ui::pulls::{self, Told};

use super::{Args, Output};
use crate::commands::print;

/// What the node of the followed pod tells.
pub(super) struct Pulling {
    client: Client,
    /// Nothing until it is asked, and after it has refused.
    told: Option<BoxStream<'static, Told>>,
    asked: bool,
    pulls: Vec<Pull>,
    /// Why there are none to show.
    refused: Option<String>,
}

impl Pulling {
    pub(super) fn new(client: Client) -> Self {
        Pulling { client, told: None, asked: false, pulls: Vec::new(), refused: None }
    }

    /// Asks the pod's node, once it has one.
    pub(super) fn ask(&mut self, pod: &Pod) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|_| !self.asked);
        if let Some(node) = node {
            self.asked = true;
            self.told = Some(pulls::watch(self.client.clone(), node).boxed());
        }
    }

    /// Waits for the next word of the node; for ever if none is to come.
    pub(super) async fn next(&mut self) -> Told {
        if let Some(told) = &mut self.told
            && let Some(told) = told.next().await
        {
            return told;
        }
        self.told = None;
        std::future::pending().await
    }

    pub(super) fn take(&mut self, pulls: Vec<Pull>) {
        self.pulls = pulls;
    }

    pub(super) fn refuse(&mut self, why: String) {
        self.refused = Some(why);
    }

    /// The lines of those that are of the pod's images, or why there are none.
    pub(super) fn lines(&self, pod: &Pod) -> String {
        if let Some(why) = &self.refused {
            return format!("{why}\n");
        }
        let of_pod = pod.spec.as_ref().map(|spec| pulls::of_images(spec, &self.pulls)).unwrap_or_default();
        of_pod.iter().map(Pull::text).collect()
    }
}

/// Where picture and pulls are drawn: both anew on a terminal, else one below the other as they come.
pub(super) struct Screen {
    terminal: bool,
    picture: String,
    lines: String,
}

impl Screen {
    pub(super) fn new(args: &Args) -> Self {
        let terminal = args.output == Output::Text && std::io::stdout().is_terminal();
        Screen { terminal, picture: String::new(), lines: String::new() }
    }

    /// Shows `picture`, where it is another, and the lines of pulls.
    pub(super) fn draw(&mut self, picture: String, lines: String) -> anyhow::Result<()> {
        let out = self.drawn(picture, lines);
        if out.is_empty() { Ok(()) } else { print(&out) }
    }

    fn drawn(&mut self, picture: String, lines: String) -> String {
        let moved = (picture != self.picture, lines != self.lines);
        (self.picture, self.lines) = (picture, lines);
        match (self.terminal, moved) {
            (_, (false, false)) => String::new(),
            (true, _) => {
                let gap = if self.lines.is_empty() { "" } else { "\n" };
                format!("\u{1b}[H\u{1b}[2J{}{gap}{}", self.picture, self.lines)
            }
            (false, (true, false)) => self.picture.clone(),
            (false, (false, true)) => self.lines.clone(),
            (false, (true, true)) => format!("{}{}", self.picture, self.lines),
        }
    }

    /// The picture that is shown.
    pub(super) fn picture(&self) -> &str {
        &self.picture
    }

    pub(super) const fn is_terminal(&self) -> bool {
        self.terminal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_drawn_anew_and_all_else_gets_what_is_new() {
        let mut screen = Screen { terminal: false, picture: String::new(), lines: String::new() };
        let mut drawn = |picture: &str, lines: &str| screen.drawn(picture.to_owned(), lines.to_owned());
        assert_eq!(drawn("p\n", ""), "p\n");
        assert_eq!(drawn("p\n", "10%\n"), "10%\n");
        assert_eq!(drawn("p\n", "10%\n"), "");
        assert_eq!(drawn("q\n", "10%\n"), "q\n");
        assert_eq!(drawn("q\n", ""), "");
        let mut screen = Screen { terminal: true, ..screen };
        assert_eq!(screen.drawn("q\n".to_owned(), "20%\n".to_owned()), "\u{1b}[H\u{1b}[2Jq\n\n20%\n");
        assert_eq!(screen.drawn("q\n".to_owned(), String::new()), "\u{1b}[H\u{1b}[2Jq\n");
    }
}
