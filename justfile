# Each step of CI is a target here; `just ci` is all of them.
ci:
    .ci/run
fmt:
    cargo fmt --all --check
clippy:
    cargo clippy --profile tests --workspace --all-targets --features podway-runtime/failpoints -- -D warnings
test:
    tests/run
# kill -9 of the runtime at each step that leaves something behind (tests/run has it too)
points:
    cargo test --profile tests --workspace --features podway-runtime/failpoints --test points
# Each fuzz target for a minute, guided by coverage (needs g++)
fuzz seconds="60":
    fuzz/run {{seconds}}
crds:
    PODWAY_BLESS=1 cargo test -p podway-api --lib crds
# The page under axe-core besides our own checks; needs npm.
axe:
    cd "$(mktemp -d)" && npm pack --silent axe-core@4 && tar xf axe-core-*.tgz && cd {{justfile_directory()}} && PODWAY_AXE="$OLDPWD/package/axe.min.js" cargo test --profile tests -p podway --test ui everyone
# Static programs, packed for people (a build of its own, 15 minutes of two cores).
release:
    packaging/static && packaging/release target/dist
# Licences, bans and sources of all that is built in (needs cargo-deny).
deny:
    cargo deny check licenses bans sources
# What RustSec knows of: its database is fetched from GitHub.
advisories:
    cargo deny check advisories
up:
    cargo build --release --workspace --bins && target/release/podway up
# Kubernetes' own end-to-end suite; `just conformance --write` for the page, `--set cluster`, `--focus REGEX`.
conformance *ARGS:
    cargo build --release --workspace --bins && target/release/podway-conformance {{ARGS}}
# Our scheduler beside a stock kube-scheduler, 2,000 random pods (minutes); CI runs a short part of it.
differential *args:
    cargo run --release -p podway-tests --bin podway-differential -- {{args}}
# The validation suite of cri-tools against our runtime and against containerd: about 20 minutes.
critest *ARGS:
    cargo build --release --workspace --bins && target/release/podway-critest --out docs/conformance-cri.md {{ARGS}}
# Our runtime beside containerd, call by call, memory, restart and pulls: the table of docs/performance.md.
cribench *ARGS:
    cargo build --release --workspace --bins && target/release/podway-cribench {{ARGS}}
# Pods that come and go for 20 minutes on 2 nodes: nothing may grow. Writes docs/soak.md and docs/soak.svg.
soak *ARGS:
    cargo build --release --workspace --bins && target/release/podway-soak --out docs {{ARGS}}
# What a PodFlow costs, on and off in one run.
observed *ARGS:
    cargo build --release --workspace --bins && target/release/podway up --nodes 1 --no-demo && target/release/podway-bench --observed {{ARGS}}; target/release/podway down
# What 110 pods with probes cost that do nothing else.
steady *ARGS:
    cargo build --release --workspace --bins && target/release/podway up --nodes 1 --no-demo && target/release/podway-bench --steady 110 {{ARGS}}; target/release/podway down
# A pod's trace in a real OpenTelemetry Collector (built from the Go module proxy: minutes).
otel:
    cd tests/go/collector && go build -trimpath -o "${TMPDIR:-/tmp}/podway-otelcol" .
    cargo build --profile tests --workspace --bins
    PODWAY_E2E_TRACES=1 PODWAY_OTELCOL="${TMPDIR:-/tmp}/podway-otelcol" cargo test --profile tests -p podway-tests --test e2e -- traces
# docs/metrics.md and docs/conditions.md, made from the code.
pages:
    PODWAY_BLESS=1 cargo test --profile tests -p podway-tests --test ecosystem pages
# The CRI suite on cgroup v2, with AppArmor and under either cgroup driver and with crun: in a virtual machine (QEMU, about 15 minutes).
vm *WORDS:
    cargo build --profile tests --workspace --all-targets
    tests/vm/run tests/vm/cri {{WORDS}}
