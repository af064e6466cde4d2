#!/usr/bin/env bash
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Prints the GPUs that nvidia-smi sees from inside the unit $1, and those on which, seen from outside, the unit's processes
# hold memory. A process that is moved into the cgroup of a unit has exactly the device access of that unit.
set -euo pipefail
shopt -s inherit_errexit
group=/sys/fs/cgroup$(systemctl show --property ControlGroup --value "$1")
seen=$(
    echo $BASHPID > "$group/cgroup.procs"
    exec nvidia-smi --query-gpu=uuid --format=csv,noheader
)
holders=$(nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv,noheader)
held=$(while IFS=', ' read -r uuid pid; do
    ! grep -qx "$pid" "$group/cgroup.procs" || echo "$uuid"
done <<< "$holders")
echo "sees $(sort <<< "$seen" | xargs)"
echo "holds $(sort -u <<< "$held" | xargs)"
