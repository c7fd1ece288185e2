//! Pulls from a registry that behaves as it is told: honest, broken, hostile.

use super::*;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Response, StatusCode, header};
use podway_flow::{Clock, Writer};
use rstest::rstest;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a test's registry has, does, and saw.
#[derive(Default)]
struct State {
    files: HashMap<String, (String, Vec<u8>)>,
    /// Bodies of blobs end with a broken connection after so many bytes.
    breaks_after: Option<usize>,
    /// Ranges are not known to it.
    no_ranges: bool,
    /// Wants this `Authorization` and says where a token is to be had.
    wants: Option<String>,
    /// Blobs are elsewhere.
    redirect: Option<String>,
    digest_header: Option<String>,
    seen: Vec<(String, HeaderMap, Vec<u8>)>,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<State>>, String);

impl Fake {
    async fn start(state: State) -> Fake {
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        let app = axum::Router::new().fallback(move |request: Request| answer(shared.clone(), request));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Fake(state, host)
    }

    fn image(&self) -> ImageRef {
        ImageRef::parse(&format!("{}/t/i:1", self.1)).unwrap()
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    /// The byte ranges that blobs were asked for with.
    fn ranges(&self) -> Vec<String> {
        let range = |h: &HeaderMap| Some(h.get(header::RANGE)?.to_str().unwrap().to_owned());
        self.with(|s| s.seen.iter().filter_map(|(_, h, _)| range(h)).collect())
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
    let mut state = state.lock().unwrap();
    state.seen.push((path.clone(), parts.headers.clone(), body));
    let reply = Response::builder();
    if path == "/token" {
        return reply.body(Body::from(r#"{"access_token":"fresh"}"#)).unwrap();
    }
    let given = parts.headers.get(header::AUTHORIZATION).map(|v| v.to_str().unwrap().to_owned());
    if state.wants.is_some() && given != state.wants {
        let host = parts.headers[header::HOST].to_str().unwrap();
        let challenge =
            format!("Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:t/i:pull\"");
        let reply = reply.status(401).header(header::WWW_AUTHENTICATE, challenge);
        return reply.body(Body::empty()).unwrap();
    }
    if let Some(to) = state.redirect.clone().filter(|_| path.contains("/blobs/")) {
        return reply
            .status(307)
            .header(header::LOCATION, format!("{to}{path}"))
            .body(Body::empty())
            .unwrap();
    }
    let Some((kind, bytes)) = state.files.get(&path).cloned() else {
        return reply.status(404).body(Body::empty()).unwrap();
    };
    let mut reply = reply.header(header::CONTENT_TYPE, kind);
    if let Some(digest) = &state.digest_header {
        reply = reply.header("Docker-Content-Digest", digest);
    }
    let range = parts.headers.get(header::RANGE).filter(|_| !state.no_ranges);
    let from: usize = range.map_or(0, |r| r.to_str().unwrap()[6..].trim_end_matches('-').parse().unwrap());
    if range.is_some() {
        reply = reply
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()));
    }
    let rest = bytes[from..].to_vec();
    let Some(most) = state.breaks_after.filter(|_| path.contains("/blobs/")) else {
        return reply.body(Body::from(rest)).unwrap();
    };
    // A header says how much comes, and less comes.
    reply = reply.header(header::CONTENT_LENGTH, rest.len());
    let cut = rest.len() > most;
    let mut chunks: Vec<Result<bytes::Bytes, std::io::Error>> =
        rest[..most.min(rest.len())].chunks(300).map(|c| Ok(bytes::Bytes::copy_from_slice(c))).collect();
    if cut {
        chunks.push(Err(std::io::Error::other("cut")));
    }
    // What came before the cut is flushed first.
    let stream = stream::iter(chunks).then(|chunk| async {
        tokio::task::yield_now().await;
        chunk
    });
    reply.body(Body::from_stream(stream)).unwrap()
}

/// A tar of one file with 5000 bytes that do not repeat.
fn layer(name: &str) -> Vec<u8> {
    let mut seed = 1u32;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed.to_le_bytes()[0]
    };
    let data: Vec<u8> = (0..5000).map(|_| random()).collect();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    builder.append_data(&mut header, name, data.as_slice()).unwrap();
    builder.into_inner().unwrap()
}

/// An image of two layers, as OCI or Docker, with compression `pack`.
fn state(kind: &str, pack: fn(&[u8]) -> Vec<u8>) -> State {
    let tars = [layer("a"), layer("b")];
    let blobs: Vec<Vec<u8>> = tars.iter().map(|t| pack(t)).collect();
    let diff_ids: Vec<Digest> = tars.iter().map(|t| Digest::of(t)).collect();
    let config =
        serde_json::json!({"config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
    let config_kind = if kind == DOCKER {
        "application/vnd.docker.container.image.v1+json"
    } else {
        "application/vnd.oci.image.config.v1+json"
    };
    let described = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
    let layers: Vec<_> = blobs.iter().map(|b| described("whatever", b)).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": kind, "config": described(config_kind, config.as_bytes()), "layers": layers,
    });
    let mut files = HashMap::new();
    for bytes in blobs.into_iter().chain([config.into_bytes()]) {
        files.insert(format!("/v2/t/i/blobs/{}", Digest::of(&bytes)), ("a/b".to_owned(), bytes));
    }
    files.insert("/v2/t/i/manifests/1".to_owned(), (kind.to_owned(), manifest.to_string().into_bytes()));
    State { files, ..State::default() }
}

fn plain(tar: &[u8]) -> Vec<u8> {
    tar.to_vec()
}

fn zstd(tar: &[u8]) -> Vec<u8> {
    zstd::encode_all(tar, 1).unwrap()
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

struct Node {
    _dir: tempfile::TempDir,
    store: Arc<ImageStore>,
    puller: Arc<Puller>,
}

fn node(registry: config::Registry, images: config::Images) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("store")).unwrap();
    let puller = Puller::new(store.clone(), &registry, &images);
    Node { _dir: dir, store, puller }
}

impl Node {
    async fn pull(&self, fake: &Fake, credentials: Option<&Credentials>) -> Outcome {
        let recorder = Recorder::new(Writer::Runtime, Clock::new());
        self.puller.pull(&fake.image(), credentials, "i", &recorder).await
    }

    /// Nothing half made stays, whatever became of the pull. A layer beside the one that failed is given
    /// up: its thread ends, and deletes what it staged, a moment later.
    async fn nothing_is_staged(&self) {
        let staging = self.store.root().join("staging");
        let deadline = Instant::now() + std::time::Duration::from_secs(20);
        while std::fs::read_dir(&staging).unwrap().count() > 0 {
            assert!(Instant::now() < deadline, "a staging directory stays");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

#[rstest]
#[case::oci(OCI, plain)]
#[case::oci_gzip(OCI, gzip)]
#[case::oci_zstd(OCI, zstd)]
#[case::docker(DOCKER, gzip)]
#[tokio::test]
async fn every_kind_of_image_comes(#[case] kind: &str, #[case] pack: fn(&[u8]) -> Vec<u8>) {
    let fake = Fake::start(state(kind, pack)).await;
    let node = node(Default::default(), Default::default());
    let pulled = node.pull(&fake, None).await.unwrap();
    assert_eq!((pulled.layers.len(), pulled.image.layers.len()), (2, 2));
    assert_eq!(std::fs::metadata(pulled.image.layer_dirs[1].join("b")).unwrap().len(), 5000);
}

/// The tests of `progress` have each step; here, that a pull says what it does.
#[tokio::test]
async fn a_pull_tells_how_far_it_has_got() {
    use futures::StreamExt as _;
    use podway_cri::runtime_v1::pulls_server::Pulls as _;
    use podway_cri::runtime_v1::{LayerPhase, PullPhase, WatchPullsRequest};
    let fake = Fake::start(state(OCI, gzip)).await;
    let node = node(Default::default(), Default::default());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let server =
        crate::image::progress::service::PullsServer::new(node.puller.progress.clone(), shutdown.clone());
    let watch = server.watch_pulls(tonic::Request::new(WatchPullsRequest::default()));
    let mut told = watch.await.unwrap().into_inner();
    assert!(told.next().await.unwrap().unwrap().pulls.is_empty());
    let pulled = node.pull(&fake, None).await.unwrap();
    let last = loop {
        let pulls = told.next().await.unwrap().unwrap().pulls;
        if let Some(ended) = pulls.into_iter().find(|p| p.phase() == PullPhase::PullDone) {
            break ended;
        }
    };
    assert_eq!(last.image, fake.image().to_string());
    let bytes: u64 = pulled.layers.iter().map(|l| l.bytes).sum();
    assert_eq!((last.total_bytes, last.received_bytes), (bytes, bytes));
    assert!(last.layers.iter().all(|l| l.phase() == LayerPhase::LayerDone), "{last:?}");
}

#[rstest]
#[case::with_ranges(false)]
#[case::without(true)]
#[tokio::test]
async fn a_layer_that_breaks_off_is_taken_up_where_it_did(#[case] no_ranges: bool) {
    let fake = Fake::start(State { no_ranges, ..state(OCI, gzip) }).await;
    let node = node(Default::default(), Default::default());
    // The configuration is small enough to come whole; without ranges it takes a longer cut to get on.
    fake.with(|s| s.breaks_after = Some(2000));
    if no_ranges {
        let error = node.pull(&fake, None).await.unwrap_err();
        assert!(chain(&*error).contains("could not be read"), "{error}");
        node.nothing_is_staged().await;
        return;
    }
    let pulled = node.pull(&fake, None).await.unwrap();
    assert!(pulled.layers.iter().all(|l| l.resumed >= 1), "{:?}", pulled.layers);
    assert!(fake.ranges().iter().any(|r| r == "bytes=2000-"), "{:?}", fake.ranges());
    // Each byte came once.
    let size: u64 = fake.with(|s| {
        s.files.values().filter(|(k, b)| k == "a/b" && b.len() > 1000).map(|(_, b)| b.len() as u64).sum()
    });
    assert_eq!(pulled.layers.iter().map(|l| l.bytes).sum::<u64>(), size);
    node.nothing_is_staged().await;
}

/// The mirror has half of each blob, the registry the rest.
#[tokio::test]
async fn another_endpoint_goes_on_where_one_broke_off() {
    let whole = Fake::start(state(OCI, gzip)).await;
    let half = Fake::start(State { breaks_after: Some(2000), ..state(OCI, gzip) }).await;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join(format!("{}_", whole.1.replace(':', "_")));
    std::fs::create_dir(&at).unwrap();
    let toml = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", whole.1, half.1);
    std::fs::write(at.join("hosts.toml"), toml).unwrap();
    // It answers once a blob: what is asked of it again is not there.
    let node = node(
        config::Registry { config_path: Some(dir.path().to_owned()), ..Default::default() },
        Default::default(),
    );
    half.with(|s| s.no_ranges = true);
    let pulled = node.pull(&whole, None).await.unwrap();
    assert!(pulled.layers.iter().all(|l| l.endpoint.as_ref().is_some_and(|e| e.contains(&whole.1))));
    assert_eq!(whole.ranges(), ["bytes=2000-", "bytes=2000-"]);
}

#[tokio::test]
async fn a_blob_that_is_not_what_its_digest_says_is_refused_and_leaves_nothing() {
    let fake = Fake::start(state(OCI, plain)).await;
    fake.with(|s| {
        for (kind, bytes) in s.files.values_mut().filter(|(_, b)| b.len() > 5000) {
            assert_eq!(kind, "a/b");
            bytes[600] ^= 1;
        }
    });
    let node = node(Default::default(), Default::default());
    let error = node.pull(&fake, None).await.unwrap_err();
    assert!(chain(&*error).contains("(blob)"), "{error}");
    node.nothing_is_staged().await;
    assert!(node.store.images().is_empty());
    assert_eq!(std::fs::read_dir(node.store.root().join("layers")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_manifest_that_its_registry_calls_another_is_refused() {
    let fake =
        Fake::start(State { digest_header: Some(Digest::of(b"x").to_string()), ..state(OCI, plain) }).await;
    let error = node(Default::default(), Default::default()).pull(&fake, None).await.unwrap_err();
    assert!(chain(&*error).contains("sent content with digest"), "{error}");
}

#[tokio::test]
async fn an_identity_token_is_posted_for_a_token_and_goes_nowhere_else() {
    let elsewhere = Fake::start(state(OCI, gzip)).await;
    let to = format!("http://{}", elsewhere.1);
    let fake =
        Fake::start(State { wants: Some("Bearer fresh".to_owned()), redirect: Some(to), ..state(OCI, gzip) })
            .await;
    let auth = podway_cri::v1::AuthConfig { identity_token: "re/fresh".to_owned(), ..Default::default() };
    let credentials = Credentials::from_cri(&auth).unwrap();
    let node = node(Default::default(), Default::default());
    node.pull(&fake, credentials.as_ref()).await.unwrap();
    let forms = fake
        .with(|s| s.seen.iter().filter(|(p, ..)| p == "/token").map(|(.., b)| b.clone()).collect::<Vec<_>>());
    let form = String::from_utf8(forms[0].clone()).unwrap();
    assert!(form.contains("grant_type=refresh_token") && form.contains("refresh_token=re%2Ffresh"), "{form}");
    // A redirect to another host takes no credentials along.
    let leaked =
        elsewhere.with(|s| s.seen.iter().filter(|(_, h, _)| h.contains_key(header::AUTHORIZATION)).count());
    assert_eq!(leaked, 0);
    assert!(elsewhere.with(|s| s.seen.len()) >= 2, "the blobs came from there");
}

#[tokio::test]
async fn the_machines_credentials_are_used_where_the_pull_brings_none() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::start(State { wants: Some("Bearer fresh".to_owned()), ..state(OCI, gzip) }).await;
    let config = serde_json::json!({"auths": {fake.1.clone(): {"auth": "dTpw"}}});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let registry =
        config::Registry { docker_config: Some(dir.path().join("config.json")), ..Default::default() };
    let pulled = node(registry, Default::default()).pull(&fake, None).await.unwrap();
    assert!(pulled.auth.as_ref().is_some_and(|a| a.contains("docker_config")), "{:?}", pulled.auth);
    let basic = fake.with(|s| {
        let token = s.seen.iter().find(|(p, ..)| p == "/token").unwrap();
        token.1[header::AUTHORIZATION].to_str().unwrap().to_owned()
    });
    assert_eq!(basic, "Basic dTpw");
}

#[tokio::test]
async fn nothing_comes_of_an_image_that_no_verifier_accepts() {
    let fake = Fake::start(state(OCI, gzip)).await;
    let dir = tempfile::tempdir().unwrap();
    let images = config::Images { verifiers: Some(dir.path().to_owned()), ..Default::default() };
    let node = node(Default::default(), images);
    let error = node.pull(&fake, None).await.unwrap_err();
    assert!(matches!(&*error, PullError::Verify(VerifyError::Nobody(_))), "{error:?}");
    assert!(
        fake.with(|s| s.seen.iter().all(|(path, ..)| !path.contains("/blobs/"))),
        "not a blob was asked for"
    );
    assert!(node.store.images().is_empty());
}

#[tokio::test]
async fn a_redirect_to_no_scheme_of_ours_is_refused() {
    let fake = Fake::start(State { redirect: Some("ftp://127.0.0.1".to_owned()), ..state(OCI, gzip) }).await;
    let error = node(Default::default(), Default::default()).pull(&fake, None).await.unwrap_err();
    assert!(chain(&*error).contains("refused"), "{error}");
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_without_it() {
    let fake = Fake::start(state(OCI, gzip)).await;
    let node = node(Default::default(), Default::default());
    let old = node.pull(&fake, None).await.unwrap().image.id;
    fake.with(|s| {
        let (kind, body) = s.files["/v2/t/i/manifests/1"].clone();
        let mut manifest: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let config = serde_json::json!({
            "config": {"Cmd": ["new"]},
            "rootfs": {"diff_ids": [Digest::of(&layer("a")), Digest::of(&layer("b"))]},
        });
        let config = config.to_string().into_bytes();
        manifest["config"]["digest"] = Digest::of(&config).to_string().into();
        s.files.insert(format!("/v2/t/i/blobs/{}", Digest::of(&config)), ("a/b".to_owned(), config));
        s.files.insert("/v2/t/i/manifests/1".to_owned(), (kind, manifest.to_string().into_bytes()));
    });
    let pulled = node.pull(&fake, None).await.unwrap();
    assert_ne!(pulled.image.id, old);
    assert!(pulled.layers.iter().all(|l| l.bytes == 0), "the layers are there already");
    let before = node.store.resolve(&old.to_string()).unwrap();
    assert!(before.repo_tags.is_empty() && !before.repo_digests.is_empty());
    assert_eq!(node.store.find(&fake.image()).unwrap().id, pulled.image.id);
    // Removing one frees nothing that the other stands on; removing both frees all.
    node.store.remove(&old.to_string()).unwrap();
    assert!(node.store.usage().bytes > 0);
    node.store.remove(&fake.image().to_string()).unwrap();
    assert_eq!((node.store.usage().bytes, node.store.usage().inodes), (0, 0));
    assert_eq!(std::fs::read_dir(node.store.root().join("layers")).unwrap().count(), 0);
}
