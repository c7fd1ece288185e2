//! `$(VAR)` expansion: third_party/forked/golang/expansion of Kubernetes, character by character.

/// Expands `$(NAME)` in `input`. `$$` is a literal `$`; a name that `lookup` does not know, an
/// unclosed `$(` and a `$` before anything else stay as they are written.
pub fn expand<'a>(input: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            after
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            after
        } else {
            // The character after `$` is taken as it stands, so that `$($(A)` keeps its first `$(`.
            out.push('$');
            let next = after.chars().next().map_or(0, char::len_utf8);
            out.push_str(&after[..next]);
            &after[next..]
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_is_upstreams() {
        let lookup = |name: &str| match name {
            "VAR_A" => Some("A"),
            "VAR_REF" => Some("$(VAR_A)"),
            "VAR_EMPTY" => Some(""),
            _ => None,
        };
        for (input, expected) in [
            ("$(VAR_A)", "A"),
            ("___$(VAR_REF)___", "___$(VAR_A)___"),
            ("$(VAR_EMPTY)", ""),
            ("$(VAR_DNE)", "$(VAR_DNE)"),
            ("$$(VAR_A)_$(VAR_A)", "$(VAR_A)_A"),
            ("$$$$(VAR_A)", "$$(VAR_A)"),
            ("f000-$$VAR_A", "f000-$VAR_A"),
            ("foo\\$(VAR_A)bar", "foo\\Abar"),
            ("$?_boo_$!", "$?_boo_$!"),
            ("$(VAR_A", "$(VAR_A"),
            ("$VAR_A)", "$VAR_A)"),
            ("${VAR_A}", "${VAR_A}"),
            ("$()", "$()"),
            ("$", "$"),
            ("x$é$(VAR_A)", "x$éA"),
        ] {
            assert_eq!(expand(input, lookup), expected, "{input}");
        }
    }
}
