# Each step of CI is a target here; `just ci` is all of them.
ci:
    .ci/run
fmt:
    cargo fmt --all --check
clippy:
    cargo clippy --release --workspace --all-targets -- -D warnings
test:
    tests/run
crds:
    cargo run --release --bin podway -- crds > crds/podflows.yaml
deny:
    cargo deny check
up:
    cargo build --release --workspace --bins && target/release/podway up
# Kubernetes' own end-to-end suite; `just conformance --write` for the page, `--set cluster`, `--focus REGEX`.
conformance *ARGS:
    cargo build --release --workspace --bins && target/release/podway-conformance {{ARGS}}
