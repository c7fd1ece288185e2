//go:build tools

// Package helm pins the helm that podway's chart is rendered by in the tests.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
