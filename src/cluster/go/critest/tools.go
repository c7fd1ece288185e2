//go:build tools

// Package critest pins the CRI validation suite that podway's runtime is held against.
package critest

import (
	_ "github.com/onsi/ginkgo/v2"
	_ "k8s.io/cri-client/pkg"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
