//! `/metrics`: OpenMetrics as it was written, or Prometheus' older text for who asks for that.

use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};

/// Answers with `text`, which is OpenMetrics, in the format that the headers ask for.
#[must_use]
pub fn answer(text: String, headers: &HeaderMap) -> Response {
    let accepts = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if accepts.contains("application/openmetrics-text") {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(CONTENT_TYPE, kind)], text).into_response()
    } else {
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], plain(&text)).into_response()
    }
}

/// OpenMetrics as the older text: counters are declared under the name that their samples have, and
/// exemplars, units and the end mark are left out.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // A counter's HELP comes before its TYPE, so the counters are found first.
    let counters: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in text.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let declared = ["# TYPE ", "# HELP "].iter().find_map(|kind| Some((kind, line.strip_prefix(kind)?)));
        if let Some((kind, rest)) = declared {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let total = if counters.contains(&name) && !name.ends_with("_total") { "_total" } else { "" };
            out.push_str(&format!("{kind}{name}{total} {rest}\n"));
        } else {
            out.push_str(sample(line));
            out.push('\n');
        }
    }
    out
}

/// A sample without its exemplar, which comes after the value; a label's value may hold anything.
fn sample(line: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '#' if !quoted => return line[..at].trim_end(),
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_text() {
        let open = "# HELP a Things.\n# TYPE a counter\na_total{x=\"1\"} 2\n# UNIT b seconds\n# TYPE b histogram\n\
                    b_bucket{le=\"1\"} 3 # {trace_id=\"ab\"} 0.5\nc{x=\" # {\\\"} 7\"} 1\n# EOF\n";
        assert_eq!(
            plain(open),
            "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n# TYPE b histogram\n\
             b_bucket{le=\"1\"} 3\nc{x=\" # {\\\"} 7\"} 1\n"
        );
    }
}
