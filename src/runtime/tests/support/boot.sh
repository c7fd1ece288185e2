#!/bin/sh
# Boots systemd as process 1 of a container of its own, in which one service is run: booted.rs says how.
# boot.sh NAME ROOT UNIT [DIRECTORY…], in namespaces of its own but for the cgroups'.
set -eu
name=$1 root=$2 unit=$3
shift 3
if [ "${INNER-}" = "" ]; then
    # A cgroup of its own in every tree, which the cgroup namespace then has for the root.
    trees=$(grep -E ' (cgroup|cgroup2) ' /proc/self/mounts | cut -d' ' -f2 | sort -u)
    for tree in $trees; do
        if [ -f "$tree/cgroup.subtree_control" ] && [ "$tree" = /sys/fs/cgroup ]; then
            for controller in cpu cpuset io memory pids; do
                echo "+$controller" >"$tree/cgroup.subtree_control" || true
            done
        fi
        mkdir -p "$tree/$name"
        if [ -f "$tree/$name/cpuset.mems" ] && [ -f "$tree/cpuset.mems" ] && [ "$tree" != /sys/fs/cgroup ]; then
            cat "$tree/cpuset.cpus" >"$tree/$name/cpuset.cpus"
            cat "$tree/cpuset.mems" >"$tree/$name/cpuset.mems"
        fi
        echo $$ >"$tree/$name/cgroup.procs"
    done
    INNER=$(echo $trees) exec unshare -C -m -p -u -i -n --fork --kill-child "$0" "$name" "$root" "$unit" "$@"
fi

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr etc/systemd/system proc sys dev run tmp var/lib var/log var/tmp root old
mount --rbind /usr usr
for link in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$link" ]; then ln -s "usr/$link" "$link"; fi
done
for file in passwd group nsswitch.conf ld.so.cache ld.so.conf ld.so.conf.d dbus-1 alternatives ssl; do
    if [ -e "/etc/$file" ]; then cp -a "/etc/$file" etc/; fi
done
for file in hosts resolv.conf; do
    if [ -e "/etc/$file" ]; then cat "/etc/$file" >"etc/$file"; fi
done
echo 0123456789abcdef0123456789abcdef >etc/machine-id
: >etc/fstab
echo podway-systemd >etc/hostname
cp "$unit" etc/systemd/system/podway-test.service

mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty kmsg; do
    [ -e "/dev/$device" ] || continue
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

if [ "$INNER" = /sys/fs/cgroup ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    for tree in $INNER; do
        mkdir -p ".$tree"
        case "$tree" in
        */unified) mount -t cgroup2 cgroup2 ".$tree" ;;
        */systemd) mount -t cgroup -o none,name=systemd cgroup ".$tree" ;;
        *) mount -t cgroup -o "${tree##*/}" cgroup ".$tree" ;;
        esac
    done
fi
for directory in "$@"; do
    mkdir -p ".$directory"
    mount --rbind "$directory" ".$directory"
done
pivot_root . old
umount -l old
exec env -i container=podway PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin /lib/systemd/systemd \
    --unit=podway-test.service --log-target=console --show-status=0
