//! A label selector, as kubectl takes it, read once: `k=v`, `k==v`, `k!=v`, `k`, `!k`, joined by commas.
//! Sets (`k in (a,b)`) are not supported here; `podway flow -l` has them, since there the API server selects.

use std::collections::BTreeMap;

/// A selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Is(String, String),
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

/// Why a selector was not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// A set.
    #[error("not supported: a set in a selector: {0:?}; k=v, k!=v, k and !k are")]
    Set(String),
    /// Something else.
    #[error("{0:?} is no label selector: k=v, k!=v, k or !k, joined by commas")]
    Invalid(String),
}

impl Selector {
    /// Reads one; an empty text selects all.
    ///
    /// # Errors
    /// [`SelectorError`] names the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.contains(['(', ')']) {
            return Err(SelectorError::Set(text.to_owned()));
        }
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(rule).collect::<Result<_, _>>().map(Selector)
    }

    /// Whether it takes something with these labels.
    #[must_use]
    pub fn takes(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|rule| match rule {
            Rule::Is(key, value) => labels.get(key) == Some(value),
            Rule::IsNot(key, value) => labels.get(key) != Some(value),
            Rule::Has(key) => labels.contains_key(key),
            Rule::HasNot(key) => !labels.contains_key(key),
        })
    }
}

fn rule(part: &str) -> Result<Rule, SelectorError> {
    let invalid = || SelectorError::Invalid(part.to_owned());
    let word = |text: &str| {
        let text = text.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if text.chars().all(plain) { Ok(text.to_owned()) } else { Err(invalid()) }
    };
    let key = |text: &str| word(text).and_then(|key| if key.is_empty() { Err(invalid()) } else { Ok(key) });
    if let Some((left, right)) = part.split_once("!=") {
        return Ok(Rule::IsNot(key(left)?, word(right)?));
    }
    if let Some((left, right)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Rule::Is(key(left)?, word(right)?));
    }
    match part.strip_prefix('!') {
        Some(absent) => Ok(Rule::HasNot(key(absent)?)),
        None => Ok(Rule::Has(key(part)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_takes_what_kubectl_would() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("tier", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (text, taken) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=api", false),
            ("app!=api", true),
            ("other!=x", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("tier=", true),
            (" app = web , tier ", true),
            ("app=web,other", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().takes(&labels), taken, "{text}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        assert!(matches!(Selector::parse("app in (a,b)"), Err(SelectorError::Set(_))));
        for text in ["=x", "a b", "a=<b>", "!", "a>b"] {
            assert!(matches!(Selector::parse(text), Err(SelectorError::Invalid(_))), "{text}");
        }
    }
}
