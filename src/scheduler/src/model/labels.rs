//! Label selectors (`apimachinery/pkg/labels`): parsed once, matched often.

use super::{Operator, Requirement};
use k8s_openapi::apimachinery::pkg::apis::meta::v1;
use std::collections::BTreeMap;

/// A selector of labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelSelector {
    /// No selector was given, or one that cannot be read: selects nothing.
    #[default]
    Nothing,
    /// Selects what passes all requirements; without one, everything.
    All(Vec<Requirement>),
}

impl LabelSelector {
    /// As `LabelSelectorAsSelector`: absent selects nothing, empty everything.
    #[must_use]
    pub fn parse(selector: Option<&v1::LabelSelector>) -> Self {
        let Some(selector) = selector else { return LabelSelector::Nothing };
        let equal = selector.match_labels.iter().flatten().map(|(key, value)| Some(one(key, value)));
        let expressions = selector.match_expressions.iter().flatten().map(requirement);
        equal
            .chain(expressions)
            .collect::<Option<Vec<_>>>()
            .map_or(LabelSelector::Nothing, LabelSelector::All)
    }

    /// True when it selects what has these labels.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            LabelSelector::Nothing => false,
            LabelSelector::All(all) => all.iter().all(|r| r.matches(labels.get(&r.key).map(String::as_str))),
        }
    }

    /// Upstream's `Empty`: there is no requirement, and so it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, LabelSelector::All(all) if all.is_empty())
    }

    /// The same with `key in (value)` required too.
    #[must_use]
    pub fn and(mut self, key: &str, value: &str) -> Self {
        if let LabelSelector::All(all) = &mut self {
            all.push(one(key, value));
        }
        self
    }
}

fn one(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: Operator::In(vec![value.to_owned()]) }
}

/// `None` for an operator that does not exist; the API server refuses it.
fn requirement(from: &v1::LabelSelectorRequirement) -> Option<Requirement> {
    let values = from.values.clone().unwrap_or_default();
    let operator = match from.operator.as_str() {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        _ => return None,
    };
    Some(Requirement { key: from.key.clone(), operator })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    #[rstest]
    #[case(Value::Null, false)]
    #[case(json!({}), true)]
    #[case(json!({"matchLabels": {"a": "1"}}), true)]
    #[case(json!({"matchLabels": {"a": "2"}}), false)]
    #[case(json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}), false)]
    #[case(json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0", "1"]}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}), true)]
    #[case(json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}), false)]
    #[case(json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}), false)]
    fn selects(#[case] selector: Value, #[case] want: bool) {
        let selector: Option<v1::LabelSelector> = serde_json::from_value(selector).unwrap();
        let selector = LabelSelector::parse(selector.as_ref());
        assert_eq!(selector.matches(&BTreeMap::from([("a".to_owned(), "1".to_owned())])), want);
    }

    #[test]
    fn nothing_stays_nothing_and_is_not_the_empty_one() {
        assert!(!LabelSelector::Nothing.is_empty() && LabelSelector::All(vec![]).is_empty());
        assert_eq!(LabelSelector::Nothing.and("a", "1"), LabelSelector::Nothing);
        assert!(!LabelSelector::All(vec![]).and("a", "1").matches(&BTreeMap::new()));
    }
}
