//go:build tools

// Package coredns pins the DNS server that Kubernetes' specs of services and DNS are run with.
package coredns

import (
	_ "github.com/coredns/coredns"
)
