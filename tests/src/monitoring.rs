//! What `manifests/monitoring/` asks of a Prometheus: the rules' expressions and the dashboard's queries.

use crate::tree::text;
use anyhow::{Context as _, ensure};
use serde_json::Value;

/// The rules' file.
pub const RULES: &str = "manifests/monitoring/rules.yaml";
const DASHBOARD: &str = "manifests/monitoring/dashboard.json";

/// What Grafana puts in for `$__rate_interval` unless it was told how often Prometheus scrapes: four times 15 s.
const RATE_INTERVAL: &str = "1m";

/// The groups of rules, as a Prometheus reads them from a file.
///
/// # Errors
/// When the file is not what it should be.
pub fn rules() -> anyhow::Result<Value> {
    let object: Value = serde_yaml::from_str(&text(RULES)?)?;
    ensure!(object["kind"] == "PrometheusRule", "{object}");
    Ok(object["spec"].clone())
}

/// The rules of all groups.
pub fn each_rule(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["groups"].as_array().into_iter().flatten().flat_map(|g| g["rules"].as_array().into_iter().flatten())
}

/// The dashboard.
///
/// # Errors
/// When the file is not what it should be.
pub fn dashboard() -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&text(DASHBOARD)?)?)
}

/// One query.
#[derive(Clone, Debug)]
pub struct Query {
    /// The title of its panel, or the name of its rule.
    pub of: String,
    /// The expression.
    pub expression: String,
}

/// All of them, the dashboard's as Grafana asks them when it is opened; each without what hides that it has no data
/// ([`measured`]).
///
/// # Errors
/// When a file is not what it should be.
pub fn queries() -> anyhow::Result<Vec<Query>> {
    let (board, spec) = (dashboard()?, rules()?);
    let mut all = Vec::new();
    for panel in board["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().context("targets")? {
            let expression = filled(target["expr"].as_str().context("an expr")?, &board)?;
            let of = panel["title"].as_str().context("a title")?.to_owned();
            all.push(Query { of, expression: measured(&expression).to_owned() });
        }
    }
    for rule in each_rule(&spec) {
        let of = rule["record"].as_str().or(rule["alert"].as_str()).context("a name")?.to_owned();
        let expression = measured(rule["expr"].as_str().context("an expr")?).to_owned();
        all.push(Query { of, expression });
    }
    Ok(all)
}

/// With each variable's value for "All" in its place.
fn filled(expression: &str, board: &Value) -> anyhow::Result<String> {
    let mut filled = expression.replace("$__rate_interval", RATE_INTERVAL);
    for variable in board["templating"]["list"].as_array().context("variables")? {
        if let Some((name, all)) = variable["name"].as_str().zip(variable["allValue"].as_str()) {
            filled = filled.replace(&format!("${name}"), all);
        }
    }
    ensure!(!filled.contains('$'), "a variable that nobody gives a value: {filled}");
    Ok(filled)
}

/// What an expression compares with a number at its end, without a zero that stands for nothing: an alert has no data
/// in a healthy cluster, and such a panel always has some, whatever they ask for.
fn measured(expression: &str) -> &str {
    let expression = expression.trim_end();
    let expression = expression.strip_suffix("or on () vector(0)").unwrap_or(expression).trim_end();
    let compared = expression.rsplit_once(' ').filter(|(_, limit)| limit.parse::<f64>().is_ok());
    let measured = compared.and_then(|(rest, _)| rest.trim_end_matches(['<', '>', '=']).strip_suffix(' '));
    measured.unwrap_or(expression)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn queries_are_filled_in_and_thresholds_taken_off() {
        let board = json!({"templating": {"list": [
            {"name": "datasource"}, {"name": "instance", "allValue": ".*"}]}});
        let asked = "rate(a{instance=~\"$instance\"}[$__rate_interval])";
        assert_eq!(filled(asked, &board).unwrap(), "rate(a{instance=~\".*\"}[1m])");
        assert!(filled("rate(a[$interval])", &board).is_err());
        for (whole, left) in [
            ("sum by (p) (s{i=~\"x\"}) > 0 or on () vector(0)", "sum by (p) (s{i=~\"x\"})"),
            ("up{job=~\"a|b\"} == 0\n", "up{job=~\"a|b\"}"),
            ("a\n/ sum by (x) (b) > 0.1", "a\n/ sum by (x) (b)"),
            ("(a) < 1", "(a)"),
            ("a / 2", "a / 2"),
            ("a and on (job) b", "a and on (job) b"),
        ] {
            assert_eq!(measured(whole), left);
        }
    }
}
