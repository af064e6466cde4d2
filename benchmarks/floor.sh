# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# What converge.py compares with at the lower end: the job of benchmarks/builtin.yml, by hand, in one shell on the host.
# It writes its drop-in, restarts and enables the service, and knows of nothing else. $1 is the value of
# OLLAMA_KEEP_ALIVE.
set -eu
unit=ollama.service dropin=/etc/systemd/system/ollama.service.d/50-benchmark.conf
count=$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)
wanted="CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((count - 1))) OLLAMA_SCHED_SPREAD=1 OLLAMA_KEEP_ALIVE=$1 OLLAMA_NO_CLOUD=1"
text="[Service]$(for one in $wanted; do printf '\nEnvironment="%s"' "$one"; done)"
if [ "$(cat $dropin 2>/dev/null)" != "$text" ]; then
    mkdir -p ${dropin%/*}
    printf '%s\n' "$text" >$dropin
    systemctl daemon-reload
    systemctl restart $unit
fi
found=$(systemctl show $unit -p Environment -p ActiveState -p UnitFileState)
case "$found" in *UnitFileState=enabled*) ;; *) systemctl enable --quiet --now $unit ;; esac
for one in $wanted ActiveState=active; do
    case "$found" in *"$one"*) ;; *) echo "differs: $one"; exit 1 ;; esac
done
curl -sf --retry 100 --retry-delay 0 --retry-connrefused http://127.0.0.1:11434/api/version >/dev/null
