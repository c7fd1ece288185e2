//! Where traces go and how many: the kubelet's `tracing` (a `TracingConfiguration` of component-base), or the
//! environment of every OpenTelemetry program.

use tonic::transport::Endpoint;

/// The endpoint of OTLP over gRPC where none is given.
const DEFAULT: &str = "localhost:4317";
/// The variables that name one; the first goes before the second.
const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// The variable that names the protocol, of which there is one.
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";

/// `tracing` of the agent's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// Where the collector takes OTLP over gRPC.
    pub endpoint: String,
    /// `samplingRatePerMillion`: how many of a million traces that nobody has decided on are kept.
    pub rate: u32,
}

/// Why traces cannot be sent like this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TracingError {
    /// More than all.
    #[error(
        "samplingRatePerMillion {0}: sampling rate per million must be less than or equal to one million"
    )]
    Rate(u32),
    /// Another way than plain gRPC.
    #[error("endpoint {0:?}: unsupported scheme. Options are none, http, dns or unix, all without TLS")]
    Scheme(String),
    /// Not an address.
    #[error("endpoint {0:?}: not a HOST:PORT or unix:///PATH")]
    Endpoint(String),
    /// Another protocol.
    #[error("not supported: OTEL_EXPORTER_OTLP_PROTOCOL={0} (grpc only)")]
    Protocol(String),
}

impl Tracing {
    /// All of them.
    pub const ALL: u32 = 1_000_000;

    /// As a file sets it: with `endpoint` and `rate`, or the environment's endpoint, and none but those that others
    /// have decided to keep.
    ///
    /// # Errors
    /// [`TracingError`].
    pub fn of(
        endpoint: Option<String>,
        rate: Option<u32>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, TracingError> {
        let endpoint = endpoint.or(named(variable)?).unwrap_or_else(|| DEFAULT.to_owned());
        Tracing { endpoint, rate: rate.unwrap_or(0) }.checked()
    }

    /// As the environment alone sets it: all, for that is the default of `OTEL_TRACES_SAMPLER`; `None` where it names
    /// no endpoint.
    ///
    /// # Errors
    /// [`TracingError`].
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, TracingError> {
        named(variable)?.map(|endpoint| Tracing { endpoint, rate: Tracing::ALL }.checked()).transpose()
    }

    fn checked(self) -> Result<Self, TracingError> {
        if self.rate > Tracing::ALL {
            return Err(TracingError::Rate(self.rate));
        }
        self.endpoint().map(|_| self)
    }

    /// Where to connect to.
    pub(super) fn endpoint(&self) -> Result<Endpoint, TracingError> {
        let text = self.endpoint.as_str();
        let bad = || TracingError::Endpoint(text.to_owned());
        let uri = match text.split_once("://") {
            None => format!("http://{text}"),
            // gRPC's names: dns://[AUTHORITY]/HOST:PORT.
            Some(("dns", name)) => format!("http://{}", name.strip_prefix('/').unwrap_or(name)),
            Some(("unix", path)) if path.starts_with('/') => {
                return Endpoint::from_shared(text.to_owned()).map_err(|_| bad());
            }
            Some(("http", _)) => text.to_owned(),
            Some(("unix", _)) => return Err(bad()),
            Some(_) => return Err(TracingError::Scheme(text.to_owned())),
        };
        let endpoint = Endpoint::from_shared(uri).map_err(|_| bad())?;
        endpoint.uri().port_u16().map(|_| endpoint.clone()).ok_or_else(bad)
    }
}

fn named(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, TracingError> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let Some(endpoint) = VARIABLES.iter().find_map(|name| set(name)) else { return Ok(None) };
    match set(PROTOCOL).filter(|protocol| protocol != "grpc") {
        Some(other) => Err(TracingError::Protocol(other)),
        None => Ok(Some(endpoint)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn off_unless_a_file_or_the_environment_says_so() {
        assert_eq!(Tracing::of_environment(of(&[])), Ok(None));
        assert_eq!(Tracing::of_environment(of(&[(VARIABLES[1], "")])), Ok(None));
        let set = Tracing::of_environment(of(&[(VARIABLES[1], "http://c:4317")])).unwrap().unwrap();
        assert_eq!((set.endpoint.as_str(), set.rate), ("http://c:4317", Tracing::ALL));
        let both: &[_] = &[(VARIABLES[1], "http://c:4317"), (VARIABLES[0], "t:4317")];
        assert_eq!(Tracing::of_environment(of(both)).unwrap().unwrap().endpoint, "t:4317");
        let file = Tracing::of(None, None, of(&[])).unwrap();
        assert_eq!((file.endpoint.as_str(), file.rate), (DEFAULT, 0));
        let file = Tracing::of(Some("unix:///run/otel.sock".to_owned()), Some(7), of(both)).unwrap();
        assert_eq!((file.endpoint.as_str(), file.rate), ("unix:///run/otel.sock", 7));
        assert_eq!(Tracing::of(None, None, of(both)).unwrap().endpoint, "t:4317");
    }

    #[test]
    fn what_is_not_built_is_said() {
        let http: &[_] = &[(VARIABLES[0], "c:4318"), (PROTOCOL, "http/protobuf")];
        assert_eq!(
            Tracing::of_environment(of(http)).unwrap_err().to_string(),
            "not supported: OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf (grpc only)"
        );
        let of = |endpoint: &str, rate| Tracing::of(Some(endpoint.to_owned()), Some(rate), of(&[]));
        assert!(matches!(of("https://c:4317", 0), Err(TracingError::Scheme(_))));
        assert!(matches!(of("unix-abstract:a", 0), Err(TracingError::Endpoint(_))));
        for bad in ["c d", "c", "http://c", "unix://a"] {
            assert!(matches!(of(bad, 0), Err(TracingError::Endpoint(_))), "{bad}");
        }
        assert_eq!(of("c:4317", 1_000_001), Err(TracingError::Rate(1_000_001)));
        of("dns:///c:4317", 1_000_000).unwrap();
    }
}
