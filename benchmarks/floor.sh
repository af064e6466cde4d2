# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# What converge.py compares with at the lower end: the same checks as benchmarks/builtin.yml, by hand, in one shell on the
# host. It names what differs, repairs nothing, and knows of nothing else.
set -eu
count=$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)
wanted="CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((count - 1))) OLLAMA_SCHED_SPREAD=1 OLLAMA_KEEP_ALIVE=-1 OLLAMA_NO_CLOUD=1"
found=$(systemctl show ollama.service -p Environment -p ActiveState -p UnitFileState)
for one in $wanted ActiveState=active UnitFileState=enabled; do
    case "$found" in *"$one"*) ;; *) echo "differs: $one"; exit 1 ;; esac
done
for one in $wanted; do
    grep -qF "\"$one\"" /etc/systemd/system/ollama.service.d/50-benchmark.conf || { echo "drop-in: $one"; exit 1; }
done
curl -sf http://127.0.0.1:11434/api/version >/dev/null
