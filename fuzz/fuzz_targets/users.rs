//! The image's passwd and group: a user that is asked for by number is that number.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podway_cri::v1::{Int64Value, LinuxContainerSecurityContext};
use podway_runtime::spec::user::decide;

fuzz_target!(|input: (&str, &str, &str, i64)| {
    let (passwd, group, image_user, number) = input;
    let plain = LinuxContainerSecurityContext::default();
    let asked = LinuxContainerSecurityContext {
        run_as_user: Some(Int64Value { value: number }),
        ..Default::default()
    };
    for (context, image_user) in [(&plain, image_user), (&asked, image_user)] {
        let Ok(user) = decide(passwd, group, context, image_user) else { continue };
        assert!(user.uid != u32::MAX && user.gid != u32::MAX && !user.groups.contains(&user.gid));
        assert!(user.home.starts_with('/') && !user.home.contains('\n'));
        if context.run_as_user.is_some() {
            assert_eq!(i64::from(user.uid), number);
        }
    }
});
