//! How the agent's requests reach the API server.
//!
//! Short ones share one HTTP/2 connection, as the kubelet's do: a burst of pods costs no handshakes, and a node at rest
//! keeps no hundred connections and their buffers. A watch has an HTTP/1.1 connection of its own: an API server takes
//! 100 streams on a connection (its answer to CVE-2023-44487), and the watches of a full node, one for each ConfigMap and
//! Secret that its pods show, would hold them for good.

use http::Request;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client as Http, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt as _};
use rustls_pki_types::ServerName;
use std::time::Duration;
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// How often a connection in use is asked whether it still stands, and how long it may take to say so (client-go's
/// `ReadIdleTimeout` and `PingTimeout`).
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));

/// A client of `config`. Behind a proxy all of it goes over HTTP/1.1.
///
/// # Errors
/// When the credential or the names in `config` cannot be used.
pub fn client(config: kube::Config) -> Result<kube::Client, kube::Error> {
    let namespace = config.default_namespace.clone();
    let short = config.proxy_url.is_none().then(|| shared(&config)).transpose()?;
    let watches = kube::Client::try_from(config)?;
    Ok(match short {
        Some(short) => chosen(
            namespace,
            move |request| {
                if stays(request.uri()) { watches.clone() } else { short.clone() }
            },
        ),
        None => watches,
    })
}

/// A client each of whose requests goes through the one that `choose` gives for it.
pub(crate) fn chosen(
    namespace: String,
    choose: impl Fn(&Request<Body>) -> kube::Client + Send + 'static,
) -> kube::Client {
    let through = tower::service_fn(move |request: Request<Body>| {
        let client = choose(&request);
        async move { client.send(request).await }
    });
    kube::Client::new(through, namespace)
}

/// A client whose requests share a connection, where the server speaks HTTP/2.
fn shared(config: &kube::Config) -> Result<kube::Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    let mut tls =
        HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name: ServerName<'static> =
            name.clone().try_into().map_err(|e| kube::Error::Service(Box::new(e)))?;
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let http: Http<_, Body> = Http::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING.0)
        .http2_keep_alive_timeout(PING.1)
        .build(tls.enable_all_versions().wrap_connector(tcp));
    let retry = config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

/// Whether it is a watch, whose answer does not end.
fn stays(uri: &http::Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_watch_has_a_connection_of_its_own() {
        for (uri, own) in [
            ("/api/v1/pods?&watch=true&timeoutSeconds=290", true),
            ("/api/v1/pods?&fieldSelector=spec.nodeName%3Da&watch=true", true),
            ("/api/v1/pods?&limit=500", false),
            ("/api/v1/namespaces/watch/pods/a/status?&fieldManager=watch", false),
            ("/apis/coordination.k8s.io/v1/leases", false),
        ] {
            assert_eq!(stays(&uri.parse().unwrap()), own, "{uri}");
        }
    }
}
