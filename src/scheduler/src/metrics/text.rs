//! Prometheus' older text format (0.0.4) from OpenMetrics text.
//!
//! prometheus-client writes OpenMetrics only. The two differ in little: a counter's family has its
//! `_total` in the older one, there are no units, exemplars and `# EOF`, and `unknown` is `untyped`.

use std::borrow::Cow;

/// The content type of the older format.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The content type of OpenMetrics.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The same samples in format 0.0.4.
#[must_use]
pub fn prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    // HELP comes before TYPE, and what it is called depends on the type.
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest.split_once(' ').unwrap_or((rest, "")));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(&without_exemplar(line));
            out.push('\n');
        }
    }
    out
}

/// A sample without the ` # {…} …` after its value; label values in quotes may hold anything.
fn without_exemplar(line: &str) -> Cow<'_, str> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return Cow::Owned(line[..at].trim_end().to_owned()),
            _ => {}
        }
    }
    Cow::Borrowed(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_get_their_suffix_and_exemplars_go() {
        let text = "# HELP a_b Help.\n# TYPE a_b counter\n# UNIT a_b b\na_b_total{x=\"# {\\\"\"} 1 # {t=\"1\"} 2\n\
                    # HELP g Gauge.\n# TYPE g gauge\ng 3\n# TYPE u unknown\nu 1\n# EOF\n";
        assert_eq!(
            prometheus(text),
            "# HELP a_b_total Help.\n# TYPE a_b_total counter\na_b_total{x=\"# {\\\"\"} 1\n\
             # HELP g Gauge.\n# TYPE g gauge\ng 3\n# TYPE u untyped\nu 1\n"
        );
    }
}
