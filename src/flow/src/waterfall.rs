//! The waterfall: a flow as text, 80 columns by default.
//!
//! A pure function of the flow and the options; safe on a terminal whatever the flow says: control
//! and direction characters are escaped, and colour is never the only mark. Queue is drawn apart
//! from work, a failed attempt stays, a running phase ends in `>`, unknown time is a gap.

use crate::picture::{Evidence, Kind, Picture, Row, picture};
use crate::{Flow, Micros, Outcome};
use anstyle::{AnsiColor, Style};
use std::fmt::Write as _;

/// How to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Columns; less than 60 is taken as 60.
    pub width: usize,
    /// ASCII only.
    pub ascii: bool,
    /// ANSI colours (the caller heeds `NO_COLOR` and whether it is a terminal).
    pub color: bool,
    /// Up to when running phases are drawn; `None`: to the last time in the flow.
    pub now: Option<Micros>,
    /// Whether the evidence follows the picture.
    pub evidence: bool,
    /// What the pod itself says that it is stuck on: the first line, where the flow tells of nothing.
    pub stuck: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { width: 80, ascii: false, color: false, now: None, evidence: true, stuck: None }
    }
}

/// Columns before the bar: steps 5, phase 17, start 8, duration 9, and a blank after each.
const LEFT: usize = 5 + 1 + 17 + 1 + 8 + 1 + 9 + 1;

/// Draws a flow; ends in a newline.
#[must_use]
pub fn waterfall(flow: &Flow, options: &Options) -> String {
    let picture = picture(flow, options.now);
    let pen = Pen { options, width: options.width.max(60) };
    let mut out = String::new();
    pen.head(&mut out, &picture);
    for row in &picture.rows {
        pen.row(&mut out, row, picture.horizon);
    }
    pen.foot(&mut out, &picture);
    if options.evidence && !picture.evidence.is_empty() {
        out.push_str("\nevidence\n");
        for evidence in &picture.evidence {
            pen.evidence(&mut out, evidence);
        }
    }
    out
}

/// `text` without anything that could move a cursor, change colours or turn the reading direction.
/// With `ascii`, every other character outside ASCII is escaped as well.
#[must_use]
pub fn escaped(text: &str, ascii: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hidden = matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
        if c.is_control() || hidden || (ascii && !c.is_ascii()) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

struct Pen<'a> {
    options: &'a Options,
    width: usize,
}

impl Pen<'_> {
    fn bar_width(&self) -> usize {
        self.width - LEFT
    }

    fn clean(&self, text: &str) -> String {
        escaped(text, self.options.ascii)
    }

    fn styled(&self, text: &str, style: Style) -> String {
        if self.options.color && !text.is_empty() {
            format!("{}{text}{}", style.render(), style.render_reset())
        } else {
            text.to_owned()
        }
    }

    fn head(&self, out: &mut String, picture: &Picture) {
        for line in &picture.stuck {
            self.wrapped(out, &self.clean(line), 0, 2);
        }
        if let Some(said) = self.options.stuck.as_deref().filter(|_| picture.stuck.is_empty()) {
            self.wrapped(out, &self.clean(&format!("STUCK: {said}")), 0, 2);
        }
        let first = format!(
            "{}  node {}  created {}",
            self.clean(&picture.name),
            self.clean(&picture.node),
            picture.created
        );
        self.wrapped(out, &first, 0, 2);
        self.wrapped(out, &self.clean(&picture.headline), 0, 2);
        let head = format!(
            "{:<5} {:<17} {:>8} {:>9} {}",
            "STEP",
            "PHASE",
            "START",
            "DUR",
            self.axis(picture.horizon)
        );
        let _ = writeln!(out, "{}", self.styled(head.trim_end(), Style::new().bold()));
    }

    /// Ticks at round numbers of ms, the unit at the end.
    fn axis(&self, horizon: u64) -> String {
        let width = self.bar_width();
        let mut step = 1_000_u64;
        // 1, 2, 5, 10, 20, … ms until at most five ticks stand in the bar.
        for factor in [2, 5, 10].iter().cycle() {
            if horizon / step <= 5 {
                break;
            }
            let base = 10_u64.saturating_pow(step.ilog10());
            step = base.saturating_mul(*factor);
        }
        let mut axis = vec![' '; width];
        let mut at = 0_u64;
        let mut free = 0;
        while at <= horizon {
            let label: Vec<char> = (at / 1000).to_string().chars().collect();
            let column = column(at, horizon, width);
            if column >= free && column + label.len() + 3 <= width {
                axis[column..column + label.len()].copy_from_slice(&label);
                free = column + label.len() + 1;
            }
            at = at.saturating_add(step);
        }
        axis[width - 2] = 'm';
        axis[width - 1] = 's';
        axis.into_iter().collect()
    }

    fn row(&self, out: &mut String, row: &Row, horizon: u64) {
        let label = self.clean(&row.label);
        let label = if row.part { format!("  {label}") } else { label };
        let left = format!(
            "{:<5} {:<17} {:>8} {:>9} ",
            row.steps,
            cut(&label, 17, self.options.ascii),
            cut(&row.start, 8, self.options.ascii),
            cut(&row.duration, 9, self.options.ascii)
        );
        let bar = self.bar(row, horizon);
        let _ = writeln!(out, "{}", format!("{left}{bar}").trim_end());
    }

    fn bar(&self, row: &Row, horizon: u64) -> String {
        let width = self.bar_width();
        let mut cells: Vec<Option<Kind>> = vec![None; width];
        for segment in &row.segments {
            let from = column(segment.from, horizon, width);
            // What happened is never narrower than a column, however short.
            let to = column_end(segment.to, horizon, width).max(from + 1);
            for cell in &mut cells[from..to] {
                *cell = (*cell).max(Some(segment.kind));
            }
        }
        let first = cells.iter().position(Option::is_some).unwrap_or(0);
        let last = cells.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let note = self.clean(&row.note);
        let length = note.chars().count();
        let after = !note.is_empty() && last + 1 + length <= width;
        let before = !note.is_empty() && !after && length < first;
        let mut bar = String::new();
        if before {
            let _ = write!(bar, "{note:>pad$} ", pad = first - 1);
        } else {
            bar.extend(std::iter::repeat_n(' ', first));
        }
        let mut at = first;
        while at < last {
            let kind = cells[at];
            let run = cells[at..last].iter().take_while(|&&k| k == kind).count();
            let mut text: String = std::iter::repeat_n(self.glyph(kind), run).collect();
            if kind == Some(Kind::Running) && at + run == last {
                text.pop();
                text.push('>');
            }
            bar.push_str(&self.styled(&text, kind.map_or(Style::new(), style)));
            at += run;
        }
        if after {
            bar.push_str(if last == 0 { "" } else { " " });
            bar.push_str(&note);
        }
        bar
    }

    fn glyph(&self, kind: Option<Kind>) -> char {
        match (kind, self.options.ascii) {
            (None, _) => ' ',
            (Some(Kind::Queue), true) => '=',
            (Some(Kind::Queue), false) => '░',
            (Some(Kind::Work | Kind::Running), true) => '#',
            (Some(Kind::Work | Kind::Running), false) => '█',
            (Some(Kind::Failed), true) => 'x',
            (Some(Kind::Failed), false) => '╳',
        }
    }

    fn foot(&self, out: &mut String, picture: &Picture) {
        if !picture.slowest.is_empty() {
            self.wrapped(out, &format!("slowest: {}", picture.slowest.join(", ")), 0, 9);
        }
        if !picture.critical_path.is_empty() {
            let path: Vec<&str> = picture.critical_path.iter().map(|p| p.name()).collect();
            self.wrapped(out, &format!("critical path: {}", path.join(" > ")), 0, 15);
        }
        for note in &picture.notes {
            self.wrapped(out, &self.clean(note), 0, 2);
        }
    }

    fn evidence(&self, out: &mut String, evidence: &Evidence) {
        let mark = match evidence.outcome {
            Outcome::Failed => "FAILED ",
            Outcome::Running => "running ",
            Outcome::Succeeded | Outcome::Skipped => "",
        };
        let title = format!(
            "{:<5} {}  {mark}{}",
            evidence.steps,
            self.clean(&evidence.title),
            self.clean(&evidence.verdict)
        );
        self.wrapped(out, &title, 0, 8);
        if !evidence.message.is_empty() {
            self.wrapped(out, &self.clean(&evidence.message), 6, 8);
        }
        let widest =
            evidence.facts.iter().map(|(k, _)| self.clean(k).chars().count()).max().unwrap_or(0).min(24);
        for (key, value) in &evidence.facts {
            let fact = format!("{:<widest$}  {}", self.clean(key), self.clean(value));
            self.wrapped(out, &fact, 6, 8 + widest);
        }
    }

    /// One line, broken at blanks (or anywhere, if there are none) to fit; later lines are indented.
    fn wrapped(&self, out: &mut String, text: &str, indent: usize, hanging: usize) {
        let mut rest: Vec<char> = text.trim_end().chars().collect();
        let mut indent = indent;
        loop {
            let room = self.width.saturating_sub(indent).max(1);
            let pad = " ".repeat(indent);
            if rest.len() <= room {
                let _ = writeln!(out, "{pad}{}", rest.iter().collect::<String>());
                return;
            }
            // Never break within the key of `key  value`, which would leave a line with only that.
            let floor = room / 2;
            let at = (floor..=room).rev().find(|&i| rest[i] == ' ').unwrap_or(room);
            let line: String = rest[..at].iter().collect();
            let _ = writeln!(out, "{pad}{}", line.trim_end());
            rest = rest[at..].iter().copied().skip_while(|&c| c == ' ').collect();
            if rest.is_empty() {
                return;
            }
            indent = hanging.min(self.width / 2);
        }
    }
}

fn style(kind: Kind) -> Style {
    let color = match kind {
        Kind::Queue => AnsiColor::Yellow,
        Kind::Work => AnsiColor::Green,
        Kind::Running => AnsiColor::Cyan,
        Kind::Failed => AnsiColor::Red,
    };
    color.on_default()
}

/// The column in which a time lies.
fn column(at: u64, horizon: u64, width: usize) -> usize {
    scaled(at, horizon, width, false).min(width - 1)
}

/// The column after the one in which a time ends.
fn column_end(at: u64, horizon: u64, width: usize) -> usize {
    scaled(at, horizon, width, true).min(width)
}

fn scaled(at: u64, horizon: u64, width: usize, up: bool) -> usize {
    let product = u128::from(at.min(horizon)) * width as u128;
    let horizon = u128::from(horizon.max(1));
    let column = if up { product.div_ceil(horizon) } else { product / horizon };
    usize::try_from(column).unwrap_or(width)
}

fn cut(text: &str, limit: usize, ascii: bool) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mark = if ascii { '~' } else { '…' };
    text.chars().take(limit - 1).chain([mark]).collect()
}

#[cfg(test)]
mod tests;
