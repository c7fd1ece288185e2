//! Docker's file and helpers, honest and hostile.

use super::*;
use rstest::rstest;

fn keychain(config: &str) -> (tempfile::TempDir, Keychain) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::write(&file, config).unwrap();
    let keychain = Keychain { docker_config: Some(file), helpers: Some(dir.path().to_owned()) };
    (dir, keychain)
}

fn helper(dir: &tempfile::TempDir, name: &str, script: &str) {
    let path = dir.path().join(format!("docker-credential-{name}"));
    // By a process of its own: while this one forks for another test, no writer may be inherited.
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let made = std::process::Command::new("sh").args(["-c", write, "sh", script]).arg(&path).status();
    assert!(made.unwrap().success());
}

async fn found(keychain: &Keychain, image: &str) -> Option<(Credentials, Source)> {
    keychain.find(&ImageRef::parse(image).unwrap()).await.unwrap()
}

#[rstest]
#[case::exact(r#"{"auths":{"a.io":{"auth":"dTpw"}}}"#, "a.io/b", Some("a.io"))]
#[case::url(r#"{"auths":{"https://a.io/v2/":{"auth":"dTpw"}}}"#, "a.io/b", Some("https://a.io/v2/"))]
#[case::hub(
    r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#,
    "busybox",
    Some("https://index.docker.io/v1/")
)]
#[case::another_port(r#"{"auths":{"a.io":{"auth":"dTpw"}}}"#, "a.io:5000/b", None)]
#[case::no_suffix_match(r#"{"auths":{"a.io":{"auth":"dTpw"}}}"#, "evil-a.io/b", None)]
#[case::empty_entry(r#"{"auths":{"a.io":{}}}"#, "a.io/b", None)]
#[case::unknown_keys(r#"{"HttpHeaders":{},"auths":{"a.io":{"auth":"dTpw"}}}"#, "a.io/b", Some("a.io"))]
#[tokio::test]
async fn an_entry_is_found_by_its_host(
    #[case] config: &str,
    #[case] image: &str,
    #[case] want: Option<&str>,
) {
    let (_dir, keychain) = keychain(config);
    let source = found(&keychain, image).await.map(|(_, source)| source);
    assert_eq!(source, want.map(|w| Source::Entry(w.to_owned())));
}

#[tokio::test]
async fn a_helper_is_asked_for_its_registry_and_the_store_for_the_rest() {
    let config = r#"{"auths":{"a.io":{"auth":"dTpw"}},"credHelpers":{"a.io":"one"},"credsStore":"all"}"#;
    let (dir, keychain) = keychain(config);
    helper(
        &dir,
        "one",
        r#"read server; [ "$1 $server" = "get a.io" ] && echo '{"Username":"u","Secret":"p"}'"#,
    );
    helper(&dir, "all", r#"echo "credentials not found in native keychain"; exit 1"#);
    let (credentials, source) = found(&keychain, "a.io/b").await.unwrap();
    assert_eq!(source, Source::Helper("one".to_owned(), "a.io".to_owned()));
    let same = AuthConfig { username: "u".into(), password: "p".into(), ..AuthConfig::default() };
    assert!(credentials == Credentials::from_cri(&same).unwrap().unwrap());
    assert!(found(&keychain, "other.io/b").await.is_none(), "the store has none");
    helper(&dir, "all", r#"echo '{"Username":"<token>","Secret":"refresh"}'"#);
    let (credentials, _) = found(&keychain, "other.io/b").await.unwrap();
    let same = AuthConfig { identity_token: "refresh".into(), ..AuthConfig::default() };
    assert!(credentials == Credentials::from_cri(&same).unwrap().unwrap());
}

#[rstest]
#[case::outside("../../bin/evil")]
#[case::absolute("/bin/sh")]
#[case::missing("not-there")]
#[case::empty_name("a b")]
#[tokio::test]
async fn a_helper_outside_of_the_directory_is_not_run(#[case] name: &str) {
    let (_dir, keychain) = keychain(&serde_json::json!({"credHelpers": {"a.io": name}}).to_string());
    let error = keychain.find(&ImageRef::parse("a.io/b").unwrap()).await.unwrap_err();
    assert!(matches!(error, KeychainError::Refused(..)), "{error:?}");
}

#[tokio::test]
async fn errors_fail_the_pull_and_quote_no_secret() {
    let reference = ImageRef::parse("a.io/b").unwrap();
    let (dir, broken) = keychain("{\"auths\":{\"a.io\":{\"auth\":\"hunter2\"\n");
    let error = broken.find(&reference).await.unwrap_err();
    assert!(!format!("{error:?}{error}").contains("hunter2"), "{error}");
    helper(&dir, "bad", "echo hunter2; exit 3");
    let helping = Keychain { docker_config: Some(dir.path().join("c")), ..broken };
    std::fs::write(dir.path().join("c"), r#"{"credsStore":"bad"}"#).unwrap();
    let error = helping.find(&reference).await.unwrap_err();
    assert!(matches!(error, KeychainError::Helper(..)), "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    let off = Keychain::default();
    assert!(off.find(&reference).await.unwrap().is_none(), "off by default");
}
