#!/usr/bin/env bash
# Which GPUs nvidia-smi finds within the unit $1, and which of them, seen from outside, its processes hold memory of.
# A process that is put into the control group of a unit has its rights to devices, and no others.
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
