#!/bin/sh
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Turns a Debian root file system that has the packages of packages.txt into a lab host.
# usage: setup.sh ROOT
set -eu
root=$1
here=$(dirname "$0")

cp -R "$here/rootfs/." "$root"
chmod 0440 "$root/etc/sudoers.d/fleet"
chroot "$root" useradd --create-home --shell /bin/bash --password '*' fleet
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" "$root/etc/resolv.conf" "$root/etc/apt/sources.list"
rm -rf "$root"/etc/apt/sources.list.d/*
: > "$root/etc/machine-id" # systemd makes one at the first start

# What needs a machine of its own, and timers that would hold the apt lock while a test runs.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount sys-kernel-config.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount proc-sys-fs-binfmt_misc.automount \
    systemd-modules-load.service systemd-remount-fs.service systemd-sysctl.service systemd-firstboot.service \
    console-getty.service getty.target systemd-ask-password-console.path systemd-ask-password-wall.path \
    systemd-networkd.service systemd-network-generator.service ; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
chroot "$root" systemctl set-default multi-user.target 2>/dev/null
chroot "$root" systemctl enable ssh.service 2>/dev/null
chroot "$root" systemctl disable docker-registry.service 2>/dev/null # tests start one of their own
