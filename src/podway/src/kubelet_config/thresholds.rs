//! The eviction thresholds of a configuration file (`ParseThresholdConfig` of pkg/kubelet/eviction).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use podway_agent::env::quantity;
use podway_agent::node::pressure::{Amount, Signal, Threshold, Thresholds};

type List = BTreeMap<String, String>;

/// The lists as the file has them.
pub(super) struct Lists<'a> {
    /// `evictionHard`.
    pub(super) hard: Option<&'a List>,
    /// `mergeDefaultEvictionSettings`: whether the default holds for what the list leaves out.
    pub(super) merge: bool,
    /// `evictionSoft`.
    pub(super) soft: &'a List,
    /// `evictionSoftGracePeriod`.
    pub(super) graces: &'a List,
    /// `evictionMinimumReclaim`.
    pub(super) reclaim: &'a List,
}

/// Puts the lists into `to`.
pub(super) fn set(to: &mut Thresholds, lists: &Lists<'_>) -> anyhow::Result<()> {
    let mut hard: BTreeMap<Signal, Option<Amount>> = BTreeMap::new();
    if lists.hard.is_none() || lists.merge {
        hard.extend(Thresholds::HARD.map(|(signal, value)| (signal, Some(value))));
    }
    hard.extend(values("evictionHard", lists.hard.unwrap_or(&List::new()))?);
    let soft = values("evictionSoft", lists.soft)?;
    let mut graces = BTreeMap::new();
    for (name, text) in lists.graces {
        let known = signal("evictionSoftGracePeriod", name)?;
        graces.insert(known, super::duration("evictionSoftGracePeriod", text)?);
    }
    let mut reclaims = BTreeMap::new();
    for (name, text) in lists.reclaim {
        let field = || format!("evictionMinimumReclaim {name}: {text:?}");
        reclaims.insert(signal("evictionMinimumReclaim", name)?, amount(text).with_context(field)?);
    }
    let threshold = |signal, value, grace| Threshold {
        signal,
        value,
        grace,
        min_reclaim: reclaims.get(&signal).copied(),
    };
    to.list = hard.into_iter().filter_map(|(s, value)| Some(threshold(s, value?, None))).collect();
    for (signal, value) in soft {
        let Some(value) = value else { continue };
        let grace = graces.get(&signal).copied();
        let grace: Duration = grace.with_context(|| {
            format!("grace period must be specified for the soft eviction threshold {}", signal.name())
        })?;
        to.list.push(threshold(signal, value, Some(grace)));
    }
    to.list.sort_by_key(|t| t.signal);
    Ok(())
}

fn signal(field: &str, name: &str) -> anyhow::Result<Signal> {
    Signal::named(name).with_context(|| format!("{field}: not supported: signal {name:?}"))
}

/// A list of thresholds; none for one that is switched off.
fn values(field: &str, list: &List) -> anyhow::Result<BTreeMap<Signal, Option<Amount>>> {
    let one = |(name, text): (&String, &String)| {
        let signal = signal(field, name)?;
        // Of these two upstream makes no threshold.
        if text == "0%" || text == "100%" {
            return Ok((signal, None));
        }
        let value = amount(text).with_context(|| format!("{field} {name}: {text:?}"))?;
        anyhow::ensure!(value != Amount::Exact(0), "{field} {name}: {text:?}: must be positive");
        Ok((signal, Some(value)))
    };
    list.iter().map(one).collect()
}

fn amount(text: &str) -> anyhow::Result<Amount> {
    if let Some(number) = text.strip_suffix('%') {
        let percent: f32 = number.parse().context("not a percentage")?;
        anyhow::ensure!((0.0..=100.0).contains(&percent), "not between 0% and 100%");
        return Ok(Amount::Part(percent / 100.0));
    }
    let value = quantity::value(text).and_then(|n| u64::try_from(n).ok());
    value.map(Amount::Exact).context("neither a percentage nor a quantity")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(of: &[(&str, &str)]) -> List {
        of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn read(hard: Option<&List>, merge: bool, rest: [&List; 3]) -> anyhow::Result<Vec<Threshold>> {
        let mut to = Thresholds::default();
        let [soft, graces, reclaim] = rest;
        set(&mut to, &Lists { hard, merge, soft, graces, reclaim })?;
        Ok(to.list)
    }

    #[test]
    fn a_list_of_ones_own_replaces_the_default_unless_it_is_to_be_merged() {
        let none = List::new();
        let no = [&none, &none, &none];
        assert_eq!(read(None, false, no).unwrap(), Thresholds::default().list);
        let own = list(&[("memory.available", "5%"), ("imagefs.available", "0%"), ("pid.available", "100")]);
        let short = read(Some(&own), false, no).unwrap();
        let values: Vec<_> = short.iter().map(|t| (t.signal, t.value)).collect();
        assert_eq!(values, [(Signal::Memory, Amount::Part(0.05)), (Signal::Pids, Amount::Exact(100))]);
        let merged = read(Some(&own), true, no).unwrap();
        let signals: Vec<_> = merged.iter().map(|t| t.signal).collect();
        assert_eq!(
            signals,
            [Signal::Memory, Signal::NodeFs, Signal::NodeInodes, Signal::ImageInodes, Signal::Pids]
        );
        assert!(read(Some(&none), false, no).unwrap().is_empty());
    }

    #[test]
    fn soft_ones_have_a_grace_and_all_may_have_a_reclaim() {
        let soft = list(&[("nodefs.available", "20%")]);
        let graces = list(&[("nodefs.available", "1m30s")]);
        let reclaim = list(&[("nodefs.available", "1Gi")]);
        let all = read(None, false, [&soft, &graces, &reclaim]).unwrap();
        let of: Vec<_> = all.iter().filter(|t| t.signal == Signal::NodeFs).collect();
        assert_eq!(of.len(), 2);
        assert!(of.iter().all(|t| t.min_reclaim == Some(Amount::Exact(1 << 30))));
        assert_eq!(of.iter().find_map(|t| t.grace), Some(Duration::from_secs(90)));
        let none = List::new();
        let error = read(None, false, [&soft, &none, &none]).unwrap_err().to_string();
        assert_eq!(error, "grace period must be specified for the soft eviction threshold nodefs.available");
    }

    #[test]
    fn what_is_no_threshold_is_named() {
        let none = List::new();
        for (bad, says) in [
            (("nodefs.available", "101%"), "not between 0% and 100%"),
            (("nodefs.available", "-1%"), "not between 0% and 100%"),
            (("nodefs.available", "many"), "neither a percentage nor a quantity"),
            (("memory.available", "0"), "must be positive"),
            (("containerfs.available", "5%"), "not supported: signal \"containerfs.available\""),
            (("disk", "1%"), "not supported: signal \"disk\""),
        ] {
            let bad = list(&[bad]);
            let error = format!("{:#}", read(Some(&bad), false, [&none, &none, &none]).unwrap_err());
            assert!(error.contains(says), "{error}");
            let error = format!("{:#}", read(None, false, [&bad, &none, &none]).unwrap_err());
            assert!(error.contains("evictionSoft"), "{error}");
        }
    }
}
