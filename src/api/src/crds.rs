//! The `CustomResourceDefinition`s as YAML: `crds/*.yaml` in the repository are this output.

use crate::{PodFlow, SchedulerProfile};
use kube::CustomResourceExt as _;

/// One definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crd {
    /// The file in `crds/`.
    pub file: &'static str,
    /// The document.
    pub yaml: String,
}

/// Every definition that podway needs in a cluster.
///
/// # Errors
/// When a definition cannot be written as YAML, which is a defect of ours.
pub fn crds() -> Result<Vec<Crd>, serde_yaml::Error> {
    Ok(vec![
        Crd { file: "podflows.yaml", yaml: serde_yaml::to_string(&PodFlow::crd())? },
        Crd { file: "schedulerprofiles.yaml", yaml: serde_yaml::to_string(&SchedulerProfile::crd())? },
    ])
}

/// All of them as one stream of documents, as `podway crds` prints it.
///
/// # Errors
/// As [`crds`].
pub fn crds_yaml() -> Result<String, serde_yaml::Error> {
    Ok(crds()?.into_iter().map(|crd| format!("---\n{}", crd.yaml)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn the_files_in_the_repository_are_the_output() {
        for crd in crds().unwrap() {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../crds").join(crd.file);
            if std::env::var_os("PODWAY_BLESS").is_some() {
                std::fs::write(&path, format!("---\n{}", crd.yaml)).unwrap();
            }
            let file = std::fs::read_to_string(&path).unwrap();
            assert_eq!(
                file,
                format!("---\n{}", crd.yaml),
                "write {} anew: PODWAY_BLESS=1, or just crds",
                crd.file
            );
        }
    }

    #[test]
    fn the_schema_has_conditions_of_one_owner_and_the_columns() {
        let crd = serde_json::to_value(PodFlow::crd()).unwrap();
        let version = &crd["spec"]["versions"][0];
        let conditions =
            &version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-type"], "atomic");
        let columns: Vec<&str> = version["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|c| c["name"].as_str())
            .collect();
        assert_eq!(columns, ["PHASE", "TOTAL", "SLOWEST", "NODE", "AGE"]);
        assert_eq!(version["subresources"]["status"], serde_json::json!({}));
    }
}
