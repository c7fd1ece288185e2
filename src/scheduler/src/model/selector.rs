//! Node selector terms: parsed once, matched often (`component-helpers/scheduling/corev1/nodeaffinity`).

use super::ModelError;
use k8s_openapi::api::core::v1;
use std::collections::BTreeMap;

/// A requirement's operator with its operands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The value is one of these.
    In(Vec<String>),
    /// The key is missing or its value is none of these.
    NotIn(Vec<String>),
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
    /// The value is an integer above this.
    Gt(i64),
    /// The value is an integer below this.
    Lt(i64),
}

/// One expression on a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The test.
    pub operator: Operator,
}

impl Requirement {
    /// True when `value`, the label's value if the key is there, passes.
    #[must_use]
    pub fn matches(&self, value: Option<&str>) -> bool {
        let integer = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Operator::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt(bound) => integer().is_some_and(|v| v > *bound),
            Operator::Lt(bound) => integer().is_some_and(|v| v < *bound),
        }
    }

    fn parse(from: &v1::NodeSelectorRequirement) -> Result<Self, ModelError> {
        let values = from.values.clone().unwrap_or_default();
        let bound = || match values.as_slice() {
            [one] => one.parse::<i64>().map_err(|_| ModelError::Bound { key: from.key.clone() }),
            _ => Err(ModelError::Bound { key: from.key.clone() }),
        };
        let operator = match from.operator.as_str() {
            "In" => Operator::In(values),
            "NotIn" => Operator::NotIn(values),
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::Gt(bound()?),
            "Lt" => Operator::Lt(bound()?),
            other => return Err(ModelError::Operator(other.to_owned())),
        };
        Ok(Requirement { key: from.key.clone(), operator })
    }
}

/// A term: all of its expressions and fields must match; an empty one matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeTerm {
    /// On labels.
    pub expressions: Vec<Requirement>,
    /// On `metadata.name`; only In and NotIn with one value.
    pub fields: Vec<Requirement>,
}

impl NodeTerm {
    /// Parses a term.
    ///
    /// # Errors
    /// [`ModelError`] for an operator or a field that Kubernetes 1.36 does not have.
    pub fn parse(term: &v1::NodeSelectorTerm) -> Result<Self, ModelError> {
        let expressions =
            term.match_expressions.iter().flatten().map(Requirement::parse).collect::<Result<_, _>>()?;
        let mut fields = Vec::new();
        for field in term.match_fields.iter().flatten() {
            let parsed = Requirement::parse(field)?;
            let one = matches!(&parsed.operator, Operator::In(v) | Operator::NotIn(v) if v.len() == 1);
            if parsed.key != "metadata.name" || !one {
                return Err(ModelError::Field(parsed.key));
            }
            fields.push(parsed);
        }
        Ok(NodeTerm { expressions, fields })
    }

    /// True when a node of this name and these labels matches.
    #[must_use]
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        if self.expressions.is_empty() && self.fields.is_empty() {
            return false;
        }
        self.expressions.iter().all(|r| r.matches(labels.get(&r.key).map(String::as_str)))
            && self.fields.iter().all(|r| r.matches(Some(name)))
    }

    /// The node names that the term is confined to by `metadata.name In`; `None` when it is not.
    #[must_use]
    pub fn named_nodes(&self) -> Option<Vec<&str>> {
        let mut names: Option<Vec<&str>> = None;
        for field in &self.fields {
            if let Operator::In(values) = &field.operator {
                let these: Vec<&str> = values.iter().map(String::as_str).collect();
                names = Some(match names {
                    None => these,
                    Some(before) => before.into_iter().filter(|n| these.contains(n)).collect(),
                });
            }
        }
        names
    }
}

/// A preferred term and its weight (1 to 100; 0 is ignored).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PreferredTerm {
    /// What is added to a matching node's score.
    pub weight: i64,
    /// The term.
    pub term: NodeTerm,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn requirement(operator: &str, values: &[&str]) -> Result<Requirement, ModelError> {
        Requirement::parse(&v1::NodeSelectorRequirement {
            key: "k".into(),
            operator: operator.into(),
            values: Some(values.iter().map(|&v| v.to_owned()).collect()),
        })
    }

    #[rstest]
    #[case("In", &["a", "b"], Some("b"), true)]
    #[case("In", &["a"], Some("b"), false)]
    #[case("In", &["a"], None, false)]
    #[case("NotIn", &["a"], Some("b"), true)]
    #[case("NotIn", &["a"], Some("a"), false)]
    #[case("NotIn", &["a"], None, true)]
    #[case("Exists", &[], Some(""), true)]
    #[case("Exists", &[], None, false)]
    #[case("DoesNotExist", &[], None, true)]
    #[case("DoesNotExist", &[], Some("x"), false)]
    #[case("Gt", &["5"], Some("6"), true)]
    #[case("Gt", &["5"], Some("5"), false)]
    #[case("Gt", &["5"], Some("x"), false)]
    #[case("Gt", &["5"], None, false)]
    #[case("Lt", &["5"], Some("4"), true)]
    #[case("Lt", &["5"], Some("5"), false)]
    fn operators(#[case] op: &str, #[case] values: &[&str], #[case] label: Option<&str>, #[case] want: bool) {
        assert_eq!(requirement(op, values).unwrap().matches(label), want);
    }

    #[test]
    fn what_kubernetes_does_not_have_is_refused() {
        assert!(matches!(requirement("Near", &[]), Err(ModelError::Operator(_))));
        assert!(matches!(requirement("Gt", &["x"]), Err(ModelError::Bound { .. })));
        assert!(matches!(requirement("Lt", &["1", "2"]), Err(ModelError::Bound { .. })));
    }

    #[test]
    fn an_empty_term_matches_nothing_and_fields_match_the_name() {
        let none = NodeTerm { expressions: vec![], fields: vec![] };
        assert!(!none.matches("n", &BTreeMap::new()));
        let named = NodeTerm {
            expressions: vec![],
            fields: vec![Requirement {
                key: "metadata.name".into(),
                operator: Operator::In(vec!["n".into()]),
            }],
        };
        assert!(named.matches("n", &BTreeMap::new()) && !named.matches("m", &BTreeMap::new()));
        assert_eq!(named.named_nodes(), Some(vec!["n"]));
    }
}
