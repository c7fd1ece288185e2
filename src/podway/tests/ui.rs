//! `podway ui` in a real browser: it tells of every pod, with and without scripts, live, to who may see it,
//! readable for everyone; and nothing that a name or a message says is more than text.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at what it did not expect")]

mod support;

use serde_json::json;
use std::process::Stdio;
use support::api::FakeApi;
use support::chromium::Chromium;
use support::world;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

/// `podway ui` on a free port, and the address that it prints.
async fn ui(api: &FakeApi, args: &[&str]) -> (Child, String) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_podway"))
        .args(["ui", "--listen", "127.0.0.1:0", "--kubeconfig"])
        .arg(api.kubeconfig())
        .args(args)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).await.unwrap();
    (process, line.trim().to_owned())
}

/// A browser on the first page, once the page has been told of the pods.
async fn browser(address: &str, there: &str) -> Chromium {
    let mut browser = Chromium::start().await;
    browser.open(address).await;
    browser.until(&format!("document.body.innerText.includes({})", json!(there))).await;
    browser
}

fn base(address: &str) -> &str {
    address.split_once("/?").unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_of_every_pod_and_goes_on_telling() {
    let api = FakeApi::start().await;
    world::fill(&api);
    let (_ui, address) = ui(&api, &[]).await;
    let mut browser = browser(&address, "web-stuck").await;
    assert_eq!(browser.value("location.search").await, "", "the token stays out of the address");
    let text = browser.text().await;
    assert!(text.contains("kubelet-0") && text.contains("~4000"), "{text}");
    assert!(
        text.contains("ImagesPulled of app") && text.contains("manifest unknown") && text.contains("try 3"),
        "{text}"
    );
    let rows = "document.querySelectorAll('section[aria-labelledby=pods] tbody tr').length";
    assert_eq!(browser.value(rows).await, 27);
    browser.picture("pods-light").await;

    // Live: a pod that comes is there without a load.
    browser.value("window.same = true").await;
    world::ready(&api, "default", "late", "web", 0, 200);
    browser.until("document.body.innerText.includes('default/late')").await;
    assert_eq!(browser.value("window.same").await, true);
    assert_eq!(browser.value("document.querySelector('.state').textContent").await, "live");

    // A pod: its waterfall, the decision, the evidence.
    browser.open(&format!("{}/pod/default/api-3", base(&address))).await;
    let text = browser.text().await;
    for said in [
        "Ready in",
        "ContainersCreated",
        "Node podway-0 was chosen, ahead by 27",
        "318",
        "edge-7",
        "untolerated taint",
    ] {
        assert!(text.contains(said), "{said:?} is not in {text}");
    }
    browser.picture("pod-light").await;
    browser.open(&format!("{}/pod/default/web-stuck", base(&address))).await;
    let text = browser.text().await;
    assert!(text.contains("Stuck") && text.contains("try 3"), "{text}");
    browser.picture("stuck-light").await;

    // Two that are ticked, and two groups.
    browser.open(&format!("{}/", base(&address))).await;
    browser.value("for (const n of ['default/api-0','default/web-1']) document.querySelector(`input[value=\"${n}\"]`).checked = true").await;
    browser.value("document.querySelector('form[action=\"/compare\"]').requestSubmit()").await;
    browser.until("location.pathname === '/compare' && document.body.innerText.includes('B is ')").await;
    browser.open(&format!("{}/compare?a=app%3Dweb&b=app%3Dapi", base(&address))).await;
    let text = browser.text().await;
    assert!(text.contains("slower by") && text.contains("most by ImagesPulled"), "{text}");
    browser.picture("compare-light").await;
    assert_eq!(browser.complaints, Vec::<String>::new());
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_pulls_are_shown_as_they_go() {
    let api = FakeApi::start().await;
    world::pulling(&api, "slow", 10 << 20);
    let (_ui, address) = ui(&api, &[]).await;
    let mut browser = browser(&address, "10.0 MiB of 40.0 MiB").await;
    let text = browser.text().await;
    assert!(text.contains("registry.local/of-another:v1") && text.contains("6.0 s left"), "{text}");
    browser.picture("pulls-light").await;
    browser.value("window.same = true").await;
    world::pulling(&api, "slow", 30 << 20);
    browser.until("document.body.innerText.includes('30.0 MiB of 40.0 MiB')").await;
    assert_eq!(browser.value("window.same").await, true);
    // The pod's own page has its own images.
    browser.open(&format!("{}/pod/default/slow", base(&address))).await;
    let text = browser.text().await;
    assert!(text.contains("75%") && text.contains("downloading 75% of 40.0 MiB"), "{text}");
    assert!(!text.contains("of-another"), "{text}");
    assert_eq!(browser.value(include_str!("support/accessible.js")).await, json!([]));
    browser.picture("pull-light").await;
    // Nobody pulls for a pod that runs.
    browser.value("window.same = true").await;
    world::ready(&api, "default", "slow", "web", 0, 200);
    browser.until("!document.body.innerText.includes('Image pulls')").await;
    assert_eq!(browser.value("window.same").await, true);
    assert_eq!(browser.complaints, Vec::<String>::new());
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_scripts_it_says_the_same() {
    let api = FakeApi::start().await;
    world::fill(&api);
    let (_ui, address) = ui(&api, &["-A"]).await;
    let mut browser = browser(&address, "web-stuck").await;
    browser.value("document.querySelector('.state').textContent = 'as of this load'").await;
    browser.open(&format!("{}/pod/default/web-1", base(&address))).await;
    let with = browser.value("document.querySelector('main').innerText").await;
    browser.scripts(false).await;
    browser.open(&format!("{}/pod/default/web-1", base(&address))).await;
    assert_eq!(browser.value("document.querySelector('main').innerText").await, with);
    assert_eq!(browser.value("document.querySelector('.state').textContent").await, "as of this load");
    // It is asked for anew by the browser itself; the forms are plain ones.
    assert_eq!(browser.value("document.querySelector('noscript').innerHTML.includes('refresh')").await, true);
    browser.open(&format!("{}/?l=app%3Dapi", base(&address))).await;
    let text = browser.text().await;
    assert!(text.contains("api-3") && !text.contains("web-1") && text.contains("all namespaces"), "{text}");
    browser.open(&format!("{}/?l=app+in+(a)", base(&address))).await;
    assert!(browser.text().await.contains("not supported: a set in a selector"));
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_says_is_only_text() {
    let api = FakeApi::start().await;
    world::fill(&api);
    api.refuse("events");
    let (_ui, address) = ui(&api, &[]).await;
    let mut browser = browser(&address, "evil").await;
    let link = browser
        .value("[...document.querySelectorAll('td.name a')].find(a => a.textContent.includes('evil')).href")
        .await;
    let compare = format!("{}/compare?a=%3Cscript%3Ewindow.pwned%3D3%3C%2Fscript%3E&b=x", base(&address));
    let select = format!("{}/?l=%22%3E%3Cscript%3Ewindow.pwned%3D4%3C%2Fscript%3E", base(&address));
    for page in [format!("{}/", base(&address)), link.as_str().unwrap().to_owned(), compare, select] {
        browser.open(&page).await;
        assert_eq!(browser.value("typeof window.pwned").await, "undefined", "{page}");
        let inside = "document.querySelectorAll('main script, main img, main style, main iframe, [onerror], [style]').length";
        assert_eq!(browser.value(inside).await, 0, "{page}");
        let text = browser.text().await;
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
    }
    browser.open(link.as_str().unwrap()).await;
    let text = browser.text().await;
    assert!(text.contains("<script>window.pwned=1</script>"), "{text}");
    // What may not be read is told, as text too.
    assert!(text.contains("events is forbidden: no <b>rights</b>"), "{text}");
    // The policy holds against one who got in: a script that is not ours is refused.
    browser.complaints.clear();
    browser.value("(() => { const s = document.createElement('script'); s.textContent = 'window.pwned = 5'; document.body.append(s) })()").await;
    assert_eq!(browser.value("typeof window.pwned").await, "undefined");
    assert!(
        browser.complaints.iter().any(|c| c.contains("Content Security Policy")),
        "{:?}",
        browser.complaints
    );
    browser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_can_read_it_in_light_and_dark() {
    let api = FakeApi::start().await;
    world::fill(&api);
    let (_ui, address) = ui(&api, &[]).await;
    let mut browser = browser(&address, "web-stuck").await;
    for scheme in ["light", "dark"] {
        browser.scheme(scheme).await;
        for (name, path) in [
            ("pods", "/"),
            ("pod", "/pod/default/api-3"),
            ("stuck", "/pod/default/web-stuck"),
            ("compare", "/compare?a=app%3Dweb&b=app%3Dapi"),
            ("empty", "/compare"),
            ("none", "/nothing"),
        ] {
            browser.open(&format!("{}{path}", base(&address))).await;
            let wrong = browser.value(include_str!("support/accessible.js")).await;
            assert_eq!(wrong, json!([]), "{scheme} {name}");
            if let Some(axe) = std::env::var_os("PODWAY_AXE") {
                browser.value(&std::fs::read_to_string(axe).unwrap()).await;
                let found = browser.value("axe.run().then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' ')))").await;
                assert_eq!(found, json!([]), "axe, {scheme} {name}");
            }
            browser.picture(&format!("{name}-{scheme}")).await;
        }
    }
    browser.end().await;
}

/// An answer to a plain GET: status line and headers in small letters, and the body.
async fn get(address: &str, path: &str, header: &str) -> (String, String) {
    let host = address.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_the_token_sees_nothing() {
    let api = FakeApi::start().await;
    world::fill(&api);
    let (_ui, address) = ui(&api, &[]).await;
    let (base, token) = address.split_once("/?token=").unwrap();
    for (path, header) in [
        ("/", ""),
        ("/live", ""),
        ("/pod/default/api-3", "Cookie: podway-ui-1=x\r\n"),
        ("/?token=00000000000000000000000000000000", ""),
    ] {
        let (head, body) = get(base, path, header).await;
        assert!(head.starts_with("http/1.1 401"), "{path}: {head}");
        assert!(!body.contains("api-3") && !head.contains("set-cookie"), "{path}");
        assert!(head.contains("frame-ancestors 'none'") && head.contains("x-frame-options: deny"), "{head}");
        assert!(!head.contains("unsafe") && head.contains("cache-control: no-store"), "{head}");
    }
    let (head, _) = get(base, &format!("/?token={token}"), "").await;
    assert!(head.starts_with("http/1.1 303") && head.contains("httponly; samesite=strict"), "{head}");
    let port = base.rsplit_once(':').unwrap().1;
    let (head, _) = get(base, "/nothing", &format!("Cookie: podway-ui-{port}={token}\r\n")).await;
    assert!(head.starts_with("http/1.1 404"), "{head}");

    let refused = Command::new(env!("CARGO_BIN_EXE_podway"))
        .args(["ui", "--listen", "0.0.0.0:0"])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("--allow-remote"), "{said}");
}
