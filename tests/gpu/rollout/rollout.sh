#!/bin/bash
# Copyright: (c) The gpufleet developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Rolls an option, then a wrong data type, over vLLM on two hosts with a GPU each, under load.
#
#     export FOLDER=ENVIRONMENT_WITH_VLLM GATEWAY_KEY=$(openssl rand -hex 32) ENGINE_KEY=$(openssl rand -hex 32)
#     $FOLDER/bin/python tests/gpu/model_of_shape.py /srv/gpufleet-vllm/llama-1b llama-1b --weights   # on both hosts
#     tests/gpu/rollout/rollout.sh http://127.0.0.1:8080 -i tests/gpu/rollout/hosts.yml               # on the gateway
#
# The second rollout declares float16 for a model of bfloat16: the answers change, so it must be taken back. No request
# may fail. The last check is made once under load and once without. Exit status 0 only if all that is so.
set -u
url=$1
shift
cd "$(dirname "$0")/../../.." || exit 1
logs=$(mktemp -d)
python=$FOLDER/bin/python
play() { ansible-playbook "$@"; }
fail() { echo "FAILED: $*"; failed=1; }
failed=0

play "$@" playbooks/site.yml -e gpufleet_batch=100% || exit 1

"$python" tests/gpu/gateway/load.py "$url" chat 1000000 >"$logs/load.json" 2>"$logs/load.err" &
load=$!
trap 'kill -TERM $load 2>/dev/null' EXIT
until curl -s "$url/health" >/dev/null; do sleep 1; done

SECONDS=0
play "$@" playbooks/rollout.yml -e rollout_soak=20 -e vllm_max_num_seqs=48 || fail "the option was not rolled out"
echo "rollout of an option: $SECONDS s"

SECONDS=0
play "$@" playbooks/rollout.yml -e rollout_soak=20 -e vllm_max_num_seqs=48 -e vllm_dtype=float16 >"$logs/wrong" 2>&1 &&
    fail "another data type was accepted"
echo "rollout of another data type: $SECONDS s"
cat "$logs/wrong"
grep -q wrong_answers "$logs/wrong" || fail "nobody noticed the wrong answers"

play "$@" playbooks/verify.yml -e vllm_max_num_seqs=48 -e gpufleet_prove=now || fail "under load, not as before"
kill -TERM $load
wait $load
trap - EXIT
play "$@" playbooks/verify.yml -e vllm_max_num_seqs=48 -e gpufleet_prove=now || fail "not as before"

cat "$logs/load.err" "$logs/load.json"
"$python" -c 'import json, sys; sys.exit(json.load(open(sys.argv[1]))["failed"] != 0)' "$logs/load.json" ||
    fail "requests failed"
[ $failed = 0 ] && echo "all as expected"
exit $failed
