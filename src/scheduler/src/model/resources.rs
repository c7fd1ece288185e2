//! A vector of resources: milli-CPU, bytes, and whole units for the rest.

use super::{ModelError, quantity};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Amounts of resources. `pods` is only meaningful for allocatable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU in thousandths of a core.
    pub milli_cpu: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Ephemeral storage in bytes.
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages, in units and bytes.
    pub scalars: BTreeMap<String, i64>,
}

/// What the name of a pod's resource means.
pub(crate) const CPU: &str = "cpu";
/// Memory's name.
pub(crate) const MEMORY: &str = "memory";
/// Ephemeral storage's name.
pub(crate) const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

impl Resources {
    /// Parses a resource list; `field` names it in errors. `pods` is left out.
    ///
    /// # Errors
    /// [`ModelError::Quantity`].
    pub fn parse(list: &BTreeMap<String, Quantity>, field: &str) -> Result<Self, ModelError> {
        let mut out = Resources::default();
        for (name, amount) in list {
            let read = if name == CPU { quantity::milli(&amount.0) } else { quantity::value(&amount.0) };
            let n =
                read.map_err(|source| ModelError::Quantity { field: format!("{field}[{name:?}]"), source })?;
            if name != "pods" {
                out.set(name, n);
            }
        }
        Ok(out)
    }

    /// The amount of a resource by name; 0 when it is not listed.
    #[must_use]
    pub fn get(&self, name: &str) -> i64 {
        match name {
            CPU => self.milli_cpu,
            MEMORY => self.memory,
            EPHEMERAL_STORAGE => self.ephemeral_storage,
            other => self.scalars.get(other).copied().unwrap_or(0),
        }
    }

    /// Sets the amount of a resource by name.
    pub fn set(&mut self, name: &str, amount: i64) {
        match name {
            CPU => self.milli_cpu = amount,
            MEMORY => self.memory = amount,
            EPHEMERAL_STORAGE => self.ephemeral_storage = amount,
            other => {
                self.scalars.insert(other.to_owned(), amount);
            }
        }
    }

    /// Adds, saturating.
    pub fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    /// Takes away, saturating.
    pub fn subtract(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_sub);
    }

    /// The larger of both, per resource.
    pub fn raise_to(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    /// True when nothing is asked for.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory == 0
            && self.ephemeral_storage == 0
            && self.scalars.values().all(|&n| n == 0)
    }

    /// Names and amounts, in the order in which upstream's Fit filter looks at them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        [(CPU, self.milli_cpu), (MEMORY, self.memory), (EPHEMERAL_STORAGE, self.ephemeral_storage)]
            .into_iter()
            .chain(self.scalars.iter().map(|(k, &v)| (k.as_str(), v)))
    }

    fn combine(&mut self, other: &Resources, op: fn(i64, i64) -> i64) {
        self.milli_cpu = op(self.milli_cpu, other.milli_cpu);
        self.memory = op(self.memory, other.memory);
        self.ephemeral_storage = op(self.ephemeral_storage, other.ephemeral_storage);
        for (name, &amount) in &other.scalars {
            let slot = self.scalars.entry(name.clone()).or_insert(0);
            *slot = op(*slot, amount);
        }
    }
}
