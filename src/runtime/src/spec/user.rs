//! Who a container runs as: names are looked up in the image's own passwd and group files.
//!
//! Those files are hostile: they are opened below the root file system (no symlink leaves it),
//! at most [`LIMIT`] bytes are read and a line that is not of the format is passed over.

use podway_cri::v1::LinuxContainerSecurityContext;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::io::Read as _;
use std::path::Path;

/// The most that is read of passwd or group, in bytes.
pub const LIMIT: u64 = 1024 * 1024;

/// A resolved user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// Supplementary groups, the primary one left out.
    pub groups: Vec<u32>,
    /// The home directory; `/` when unknown.
    pub home: String,
}

/// Why a user was not found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A name that the image does not know.
    #[error("the {kind} {name:?} is not in the image's {file}: give a number, or add it to the image")]
    Unknown {
        /// user or group.
        kind: &'static str,
        /// As asked.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// An id outside of 0 to 2^32-2.
    #[error("{0} is not a user or group id")]
    Range(i64),
    /// A group was given without a user (CRI forbids it).
    #[error("run_as_group is set without run_as_user or run_as_username")]
    GroupOnly,
    /// The file does not read.
    #[error("cannot read {0} in the image")]
    Read(&'static str, #[source] std::io::Error),
}

fn id(value: i64) -> Result<u32, UserError> {
    u32::try_from(value).ok().filter(|&v| v != u32::MAX).ok_or(UserError::Range(value))
}

/// Reads a small file below `rootfs`; an absent one is empty.
fn read_inside(rootfs: &Path, path: &'static str) -> Result<String, UserError> {
    let err = |e: std::io::Error| UserError::Read(path, e);
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| err(e.into()))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => std::fs::File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(err(e.into())),
    };
    if !file.metadata().map_err(err)?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes).map_err(err)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The user of a container: the security context's, else the image's `user[:group]`, else root.
///
/// # Errors
/// [`UserError`].
pub fn resolve(
    rootfs: &Path,
    context: &LinuxContainerSecurityContext,
    image_user: &str,
) -> Result<User, UserError> {
    let passwd = read_inside(rootfs, "etc/passwd")?;
    let group = read_inside(rootfs, "etc/group")?;
    decide(&passwd, &group, context, image_user)
}

/// As [`resolve`], of the texts of both files. A number is a number: it is never looked for among the
/// names, or an image could call its root `1000` and be run as it (runAsNonRoot would not see it).
///
/// # Errors
/// [`UserError`].
pub fn decide(
    passwd: &str,
    group: &str,
    context: &LinuxContainerSecurityContext,
    image_user: &str,
) -> Result<User, UserError> {
    let asked_user = context.run_as_user.as_ref().map(|v| v.value);
    let (mut user_part, mut group_part) = image_user.split_once(':').unwrap_or((image_user, ""));
    let by_number;
    if let Some(uid) = asked_user {
        by_number = id(uid)?.to_string();
        (user_part, group_part) = (by_number.as_str(), "");
    } else if !context.run_as_username.is_empty() {
        (user_part, group_part) = (context.run_as_username.as_str(), "");
    } else if context.run_as_group.is_some() && image_user.is_empty() {
        return Err(UserError::GroupOnly);
    }
    // u32::MAX is no id: to chown(2) and setuid(2) it means "leave it".
    let parse = |text: &str| text.parse::<u32>().ok().filter(|&v| v != u32::MAX);
    let number = if user_part.is_empty() { Some(0) } else { user_part.parse::<i64>().ok() };
    let entry = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| {
        f.len() >= 6
            && match number {
                Some(number) => parse(f[2]).is_some_and(|uid| i64::from(uid) == number),
                None => f[0] == user_part,
            }
    });
    let known = entry.as_ref().and_then(|f| Some((parse(f[2])?, parse(f[3])?)));
    let (uid, mut gid) = match (known, user_part) {
        (Some(found), _) => found,
        (None, "") => (0, 0),
        (None, name) => match name.parse::<i64>() {
            Ok(number) => (id(number)?, 0),
            Err(_) => {
                return Err(UserError::Unknown { kind: "user", name: name.to_owned(), file: "etc/passwd" });
            }
        },
    };
    let groups = || {
        group.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() >= 4).filter_map(|f| {
            let gid = parse(f[2])?;
            Some((f[0], gid, f[3]))
        })
    };
    if let Some(asked) = &context.run_as_group {
        gid = id(asked.value)?;
    } else if !group_part.is_empty() {
        let unknown = || UserError::Unknown { kind: "group", name: group_part.to_owned(), file: "etc/group" };
        gid = match group_part.parse::<i64>() {
            Ok(number) => id(number)?,
            Err(_) => groups().find(|g| g.0 == group_part).ok_or_else(unknown)?.1,
        };
    }
    let mut all: Vec<u32> = Vec::new();
    for &asked in &context.supplemental_groups {
        all.push(id(asked)?);
    }
    // SupplementalGroupsPolicy Merge (0) adds what the image says, Strict (1) does not.
    if context.supplemental_groups_policy == 0
        && let Some(name) = entry.as_ref().map(|f| f[0])
    {
        all.extend(groups().filter(|g| g.2.split(',').any(|member| member == name)).map(|g| g.1));
    }
    let mut seen = std::collections::BTreeSet::from([gid]);
    all.retain(|g| seen.insert(*g));
    let home = entry.map_or("/", |f| f[5]);
    Ok(User {
        uid,
        gid,
        groups: all,
        home: if home.starts_with('/') && !home.chars().any(char::is_control) { home } else { "/" }
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_cri::v1::Int64Value;

    const PASSWD: &str = "root:x:0:0:r:/root:/bin/sh\nweb:x:33:44:w:/var/www:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:44:\nlogs:x:55:web,other\n";

    #[test]
    fn users_are_found_by_name_by_number_or_refused() {
        let plain = LinuxContainerSecurityContext::default();
        let user =
            |context: &LinuxContainerSecurityContext, image: &str| decide(PASSWD, GROUP, context, image);
        assert_eq!(user(&plain, "").unwrap().home, "/root");
        let web = user(&plain, "web").unwrap();
        assert_eq!((web.uid, web.gid, web.groups.as_slice()), (33, 44, [55].as_slice()));
        assert_eq!(user(&plain, "web:logs").unwrap().gid, 55);
        assert_eq!(user(&plain, "1000:1001").unwrap().gid, 1001);
        assert!(matches!(user(&plain, "nobody"), Err(UserError::Unknown { .. })));
        let asked = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 7 }),
            run_as_group: Some(Int64Value { value: 8 }),
            supplemental_groups: vec![8, 9, 9],
            ..Default::default()
        };
        let seven = user(&asked, "web").unwrap();
        assert_eq!((seven.uid, seven.gid, seven.groups.as_slice()), (7, 8, [9].as_slice()));
        let strict = LinuxContainerSecurityContext { supplemental_groups_policy: 1, ..Default::default() };
        assert!(user(&strict, "web").unwrap().groups.is_empty());
        let out = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: -1 }),
            ..Default::default()
        };
        assert!(matches!(user(&out, ""), Err(UserError::Range(-1))));
    }

    #[test]
    fn a_number_is_never_taken_for_a_name_and_no_line_gives_what_is_no_id() {
        let passwd = "1000:x:0:0::/root:/bin/sh\nmax:x:4294967295:0::/:/bin/sh\nodd:x:5:5::/a\rb:/bin/sh\n";
        let group = "2000:x:0:\nwheel:x:4294967295:odd\n";
        let plain = LinuxContainerSecurityContext::default();
        let asked = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            ..Default::default()
        };
        assert_eq!(decide(passwd, group, &asked, "").unwrap().uid, 1000);
        let named = decide(passwd, group, &plain, "1000:2000").unwrap();
        assert_eq!((named.uid, named.gid), (1000, 2000));
        assert!(matches!(decide(passwd, group, &plain, "max"), Err(UserError::Unknown { .. })));
        let odd = decide(passwd, group, &plain, "odd").unwrap();
        assert_eq!((odd.home.as_str(), odd.groups.len()), ("/", 0));
    }

    #[test]
    fn a_passwd_that_points_out_of_the_image_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname-of-the-host", root.path().join("etc/passwd")).unwrap();
        let user = resolve(root.path(), &LinuxContainerSecurityContext::default(), "").unwrap();
        assert_eq!(user.home, "/");
    }
}
