// A CSI driver for the tests, on the CSI project's and Kubernetes' own Go packages: volumes are directories of --state,
// mounted by binding them. It registers itself, as node-driver-registrar does for others. It is strict: what the
// specification forbids a CO it refuses. Each call is a line on its standard output.
//
// A volume that outlives pods is there when its directory is; one of a pod's own comes and goes with its publication.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type driver struct {
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer
	name, node, state, endpoint string
	// The specification has a CO make one call at a time of a volume; this makes one at a time of all.
	turn sync.Mutex
}

func main() {
	d := &driver{}
	var registry string
	flag.StringVar(&d.name, "name", "dir.csi.podway.dev", "the driver's name")
	flag.StringVar(&d.node, "node", "", "what it calls the node")
	flag.StringVar(&d.state, "state", "", "the directory of volumes")
	flag.StringVar(&d.endpoint, "endpoint", "", "its socket")
	flag.StringVar(&registry, "registry", "", "the socket that it registers with")
	flag.Parse()
	server := grpc.NewServer()
	csi.RegisterNodeServer(server, d)
	registration.RegisterRegistrationServer(server, d)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	for _, path := range []string{d.endpoint, registry} {
		os.Remove(path)
		listener, err := net.Listen("unix", path)
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			if err := server.Serve(listener); err != nil {
				log.Fatal(err)
			}
		}()
	}
	<-stop
	// The sockets go with it.
	server.Stop()
}

func (d *driver) said(call, volume string) func() {
	d.turn.Lock()
	fmt.Println(strings.TrimSpace(call + " " + volume))
	return d.turn.Unlock
}

func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: d.name, Endpoint: d.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (d *driver) NotifyRegistrationStatus(_ context.Context, r *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	defer d.said(fmt.Sprintf("registered %t", r.PluginRegistered), r.Error)()
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId: d.node, MaxVolumesPerNode: 7,
		AccessibleTopology: &csi.Topology{Segments: map[string]string{"topology." + d.name + "/node": d.node}},
	}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	stage := &csi.NodeServiceCapability_RPC{Type: csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME}
	return &csi.NodeGetCapabilitiesResponse{Capabilities: []*csi.NodeServiceCapability{
		{Type: &csi.NodeServiceCapability_Rpc{Rpc: stage}},
	}}, nil
}

func (d *driver) NodeStageVolume(_ context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	defer d.said("stage", r.VolumeId)()
	volume := filepath.Join(d.state, r.VolumeId)
	if !isDir(volume) {
		return nil, status.Errorf(codes.NotFound, "volume %s", r.VolumeId)
	}
	if !isDir(r.StagingTargetPath) || r.GetVolumeCapability().GetMount() == nil {
		return nil, status.Error(codes.InvalidArgument, "the staging path is no directory, or nothing says how it is used")
	}
	return &csi.NodeStageVolumeResponse{}, bind(volume, r.StagingTargetPath, false)
}

func (d *driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	defer d.said("publish", r.VolumeId)()
	from := r.StagingTargetPath
	if r.VolumeContext["csi.storage.k8s.io/ephemeral"] == "true" {
		from = filepath.Join(d.state, r.VolumeId)
		if err := os.MkdirAll(from, 0o777); err != nil {
			return nil, err
		}
		pod := []byte(r.VolumeContext["csi.storage.k8s.io/pod.name"] + " " + r.Secrets["word"])
		if err := os.WriteFile(filepath.Join(from, "pod"), pod, 0o644); err != nil {
			return nil, err
		}
	} else if !isMounted(from) {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not staged", r.VolumeId)
	}
	if !isDir(filepath.Dir(r.TargetPath)) || r.GetVolumeCapability().GetMount() == nil {
		return nil, status.Error(codes.InvalidArgument, "the target has no directory, or nothing says how it is used")
	}
	if err := os.MkdirAll(r.TargetPath, 0o750); err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, bind(from, r.TargetPath, r.Readonly)
}

func (d *driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	defer d.said("unpublish", r.VolumeId)()
	if err := unbind(r.TargetPath); err != nil {
		return nil, err
	}
	if err := os.Remove(r.TargetPath); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	// A pod's own, by the handle that Kubernetes gives those.
	if strings.HasPrefix(r.VolumeId, "csi-") {
		return &csi.NodeUnpublishVolumeResponse{}, os.RemoveAll(filepath.Join(d.state, r.VolumeId))
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	defer d.said("unstage", r.VolumeId)()
	for _, point := range points() {
		if strings.HasSuffix(point.root, filepath.Join(filepath.Base(d.state), r.VolumeId)) && point.at != r.StagingTargetPath {
			return nil, status.Errorf(codes.FailedPrecondition, "volume %s is published at %s", r.VolumeId, point.at)
		}
	}
	return &csi.NodeUnstageVolumeResponse{}, unbind(r.StagingTargetPath)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

type point struct{ root, at string }

// Everything that is mounted.
func points() (all []point) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		log.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(table)), "\n") {
		fields := strings.Fields(line)
		all = append(all, point{root: fields[3], at: fields[4]})
	}
	return all
}

func isMounted(path string) bool {
	for _, point := range points() {
		if point.at == path {
			return true
		}
	}
	return false
}

func bind(from, to string, readonly bool) error {
	if isMounted(to) {
		return nil
	}
	if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
		return err
	}
	if !readonly {
		return nil
	}
	return syscall.Mount("", to, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
}

func unbind(path string) error {
	if !isMounted(path) {
		return nil
	}
	return syscall.Unmount(path, 0)
}
