//! The profiles that are live, by scheduler name: those of the configuration, and over them those of
//! `SchedulerProfile` objects. Owned by the loop, so that one is exchanged between two cycles.

use super::profile::{Profile, ProfileError};
use crate::framework::Framework;
use crate::plugins::PluginArgs;
use podway_api::profile::ProfileSpec;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Gives every plugin that there is, with these arguments, in the default order.
pub type AllPlugins = Box<dyn Fn(&PluginArgs) -> Framework + Send + Sync>;

/// The profiles.
pub struct Profiles {
    configured: BTreeMap<String, ProfileSpec>,
    live: BTreeMap<String, Arc<Profile>>,
    all: AllPlugins,
}

impl Profiles {
    /// Those of the configuration.
    ///
    /// # Errors
    /// The first that is not valid, with its name.
    pub fn new(
        configured: &[(String, ProfileSpec)],
        all: AllPlugins,
    ) -> Result<Self, (String, ProfileError)> {
        let mut live = BTreeMap::new();
        for (name, spec) in configured {
            let profile = Profile::of(name, spec, 0, &*all).map_err(|error| (name.clone(), error))?;
            live.insert(name.clone(), Arc::new(profile));
        }
        Ok(Profiles { configured: configured.iter().cloned().collect(), live, all })
    }

    /// None yet.
    #[must_use]
    pub fn none(all: AllPlugins) -> Self {
        Profiles { configured: BTreeMap::new(), live: BTreeMap::new(), all }
    }

    /// The profile of a scheduler name; `None`: its pods are another scheduler's.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&Arc<Profile>> {
        self.live.get(name)
    }

    /// An object came or changed. One that is not valid leaves the profile as it is. Returns the
    /// generation that is live then.
    pub fn set(
        &mut self,
        name: &str,
        spec: &ProfileSpec,
        generation: i64,
    ) -> (Option<i64>, Option<ProfileError>) {
        let error = match Profile::of(name, spec, generation, &*self.all) {
            Ok(profile) => {
                self.live.insert(name.to_owned(), Arc::new(profile));
                None
            }
            Err(error) => Some(error),
        };
        let live = self.live.get(name).map(|p| p.generation).filter(|g| *g > 0);
        (live, error)
    }

    /// An object went: the profile is that of the configuration again, if it has one.
    pub fn unset(&mut self, name: &str) {
        let before = self.configured.get(name).map(|spec| Profile::of(name, spec, 0, &*self.all));
        match before {
            Some(Ok(profile)) => drop(self.live.insert(name.to_owned(), Arc::new(profile))),
            // It was valid at the start, and nothing that it hangs on has changed.
            Some(Err(_)) | None => drop(self.live.remove(name)),
        }
    }

    /// The plugins of each scheduler name.
    pub fn frameworks(&self) -> impl Iterator<Item = (Option<&str>, &Framework)> {
        self.live.iter().map(|(name, profile)| (Some(name.as_str()), &*profile.framework))
    }

    /// The names of the profiles that come from objects.
    pub fn of_objects(&self) -> impl Iterator<Item = &str> {
        self.live.values().filter(|p| p.generation > 0).map(|p| p.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::default_binder::NoBinder;
    use crate::plugins::default_framework;

    fn spec(yaml: &str) -> ProfileSpec {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[test]
    fn the_last_good_one_stays_and_the_configured_one_comes_back() {
        let all: AllPlugins =
            Box::new(|_| Framework { bind: vec![Arc::new(NoBinder)], ..default_framework() });
        let configured = [("a".to_owned(), ProfileSpec::default())];
        let mut profiles = Profiles::new(&configured, all).unwrap();
        let scores = |p: &Profiles, name: &str| p.of(name).unwrap().framework.score.len();
        assert!(profiles.of("b").is_none());
        assert_eq!(scores(&profiles, "a"), 7);
        let none = spec("{plugins: {score: {disabled: [{name: '*'}]}}}");
        assert_eq!(profiles.set("a", &none, 3), (Some(3), None));
        assert_eq!(scores(&profiles, "a"), 0);
        let (live, error) = profiles.set("a", &spec("{percentageOfNodesToScore: 101}"), 4);
        assert_eq!((live, error), (Some(3), Some(ProfileError::Percentage(101))));
        assert_eq!(scores(&profiles, "a"), 0);
        assert_eq!(profiles.set("b", &none, 1).0, Some(1));
        assert_eq!(profiles.of_objects().collect::<Vec<_>>(), ["a", "b"]);
        profiles.unset("a");
        profiles.unset("b");
        assert_eq!(scores(&profiles, "a"), 7);
        assert!(profiles.of("b").is_none());
        let bad = [("c".to_owned(), spec("{percentageOfNodesToScore: 300}"))];
        assert!(Profiles::new(&bad, Box::new(|_| default_framework())).is_err());
    }
}
