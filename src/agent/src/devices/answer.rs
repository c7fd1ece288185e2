//! What a plugin wants a container to have of its devices, read once into narrow types, and what all of a container's
//! plugins want together. Pure.

use podway_cri::deviceplugin::ContainerAllocateResponse;
use podway_cri::v1;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A plugin's answer that no container can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its answer has {what} {value:?}")]
pub struct BadAnswer {
    what: &'static str,
    value: String,
}

/// A path of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mount {
    container_path: String,
    host_path: String,
    read_only: bool,
}

/// A device of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    container_path: String,
    host_path: String,
    permissions: String,
}

/// The answer of one plugin for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    env: BTreeMap<String, String>,
    mounts: Vec<Mount>,
    devices: Vec<Device>,
    annotations: BTreeMap<String, String>,
    cdi: Vec<String>,
}

fn check(good: bool, what: &'static str, value: &str) -> Result<(), BadAnswer> {
    let value = || podway_flow::record::bounded(value, 128);
    if good { Ok(()) } else { Err(BadAnswer { what, value: value() }) }
}

fn absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}

impl Answer {
    /// Reads a plugin's answer.
    ///
    /// # Errors
    /// [`BadAnswer`] names the first thing that cannot be.
    pub fn parse(given: ContainerAllocateResponse) -> Result<Self, BadAnswer> {
        let env: BTreeMap<_, _> = given.envs.into_iter().collect();
        for (name, value) in &env {
            check(!name.is_empty() && !name.contains(['=', '\0']), "a variable called", name)?;
            check(!value.contains('\0'), "a variable of value", value)?;
        }
        for mount in &given.mounts {
            check(absolute(&mount.container_path), "a mount at", &mount.container_path)?;
            check(absolute(&mount.host_path), "a mount of", &mount.host_path)?;
        }
        for device in &given.devices {
            check(absolute(&device.container_path), "a device at", &device.container_path)?;
            check(absolute(&device.host_path), "a device of", &device.host_path)?;
            let known = device.permissions.chars().all(|c| "rwm".contains(c));
            check(known && device.permissions.len() <= 3, "a device's permissions", &device.permissions)?;
        }
        for device in &given.cdi_devices {
            check(
                !device.name.is_empty() && !device.name.contains('\0'),
                "a CDI device called",
                &device.name,
            )?;
        }
        let mounts = given.mounts.into_iter().map(|m| Mount {
            container_path: m.container_path,
            host_path: m.host_path,
            read_only: m.read_only,
        });
        let devices = given.devices.into_iter().map(|d| Device {
            container_path: d.container_path,
            host_path: d.host_path,
            permissions: d.permissions,
        });
        Ok(Answer {
            env,
            mounts: mounts.collect(),
            devices: devices.collect(),
            annotations: given.annotations.into_iter().collect(),
            cdi: given.cdi_devices.into_iter().map(|d| d.name).collect(),
        })
    }
}

/// What a container has of all its devices, as CRI has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gear {
    /// Before the container's own, which count where both have a name.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<v1::Mount>,
    /// Device files.
    pub devices: Vec<v1::Device>,
    /// Annotations of the container, for the runtime.
    pub annotations: BTreeMap<String, String>,
    /// Devices by their CDI names.
    pub cdi: Vec<v1::CdiDevice>,
}

impl Gear {
    /// All of these answers together: of two that say something of one thing, the first counts
    /// (`deviceRunContainerOptions` of pkg/kubelet/cm/devicemanager/pod_devices.go).
    pub fn of<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> Self {
        let mut gear = Gear::default();
        for answer in answers {
            for (name, value) in &answer.env {
                if gear.env.iter().all(|(known, _)| known != name) {
                    gear.env.push((name.clone(), value.clone()));
                }
            }
            for mount in &answer.mounts {
                if gear.mounts.iter().all(|m| m.container_path != mount.container_path) {
                    gear.mounts.push(v1::Mount {
                        container_path: mount.container_path.clone(),
                        host_path: mount.host_path.clone(),
                        readonly: mount.read_only,
                        ..v1::Mount::default()
                    });
                }
            }
            for device in &answer.devices {
                if gear.devices.iter().all(|d| d.container_path != device.container_path) {
                    gear.devices.push(v1::Device {
                        container_path: device.container_path.clone(),
                        host_path: device.host_path.clone(),
                        permissions: device.permissions.clone(),
                    });
                }
            }
            for (name, value) in &answer.annotations {
                gear.annotations.entry(name.clone()).or_insert_with(|| value.clone());
            }
            for name in &answer.cdi {
                if gear.cdi.iter().all(|d| d.name != *name) {
                    gear.cdi.push(v1::CdiDevice { name: name.clone() });
                }
            }
        }
        gear
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_cri::deviceplugin::{CdiDevice, DeviceSpec, Mount as Given};

    fn device(container: &str, host: &str, permissions: &str) -> DeviceSpec {
        DeviceSpec {
            container_path: container.into(),
            host_path: host.into(),
            permissions: permissions.into(),
        }
    }

    fn mount(container: &str, host: &str) -> Given {
        Given { container_path: container.into(), host_path: host.into(), read_only: true }
    }

    #[test]
    fn of_two_answers_the_first_counts() {
        let answer = |value: &str| {
            Answer::parse(ContainerAllocateResponse {
                envs: [("A".into(), value.into())].into(),
                mounts: vec![mount("/m", &format!("/host/{value}"))],
                devices: vec![device("/dev/x", &format!("/dev/{value}"), "rw")],
                annotations: [("a".into(), value.into())].into(),
                cdi_devices: vec![CdiDevice { name: "v/c=0".into() }],
            })
            .unwrap()
        };
        let (one, two) = (answer("1"), answer("2"));
        let gear = Gear::of([&one, &two]);
        assert_eq!(gear, Gear::of([&one]));
        assert_eq!(gear.env, [("A".to_owned(), "1".to_owned())]);
        assert!(gear.mounts[0].readonly && gear.mounts[0].host_path == "/host/1");
        assert_eq!((gear.devices[0].permissions.as_str(), gear.cdi.len()), ("rw", 1));
        let kept = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&kept).unwrap(), one);
    }

    #[test]
    fn what_no_container_can_have_is_named() {
        let with = |change: fn(&mut ContainerAllocateResponse)| {
            let mut given = ContainerAllocateResponse::default();
            change(&mut given);
            Answer::parse(given).unwrap_err().to_string()
        };
        for (said, of) in [
            (with(|g| drop(g.envs.insert("A=B".into(), String::new()))), "a variable called \"A=B\""),
            (with(|g| g.mounts.push(mount("m", "/m"))), "a mount at \"m\""),
            (with(|g| g.mounts.push(mount("/m", "m"))), "a mount of \"m\""),
            (with(|g| g.devices.push(device("x", "/dev/x", "r"))), "a device at \"x\""),
            (with(|g| g.devices.push(device("/dev/x", "", "r"))), "a device of \"\""),
            (with(|g| g.devices.push(device("/dev/x", "/dev/x", "rx"))), "a device's permissions \"rx\""),
            (with(|g| g.cdi_devices.push(CdiDevice::default())), "a CDI device called \"\""),
        ] {
            assert!(said.ends_with(of), "{said}");
        }
    }
}
