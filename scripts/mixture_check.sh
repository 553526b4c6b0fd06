#!/usr/bin/env bash
# Shows that a long training from a mixture, with packing, fill-in-the-middle, chats, a growing batch, bf16
# moments and an average of the weights, goes on bit for bit: one run undisturbed and one killed twice with
# SIGKILL, side by side, one thread each. Weights, average, optimizer state and metrics must be identical.
#   scripts/mixture_check.sh [--dir DIR] [--set key=value ...]
# Takes more than half an hour; DIR (runs/mixture_check) keeps the two runs and their report pages.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

dir=runs/mixture_check more=()
while [ $# -gt 0 ]; do
  case "$1" in
    --dir) dir=${2:?"--dir needs a directory"}; shift 2 ;;
    --set) more+=(--set "${2:?"--set needs key=value"}"); shift 2 ;;
    *) echo "mixture_check.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done
hadal=${HADAL:-build/release/hadal}
fail() { echo "mixture_check: FAILED: $*" >&2; exit 1; }
rm -rf "$dir/straight" "$dir/killed"
mkdir -p "$dir"
scripts/prepare_mixture.sh

arguments() {  # arguments NAME: of `hadal`
  args=(train configs/mixture.json --set "train.output=\"$dir/$1\"" --set train.threads=1 "${more[@]}")
}
steps_of() { grep -c '"loss"' "$dir/$1/metrics.jsonl" 2>/dev/null || true; }
# kill_after STEPS [--resume]: a run that is killed when it has logged so many steps, in the middle of what it does.
kill_after() {
  arguments killed
  "$hadal" "${args[@]}" "${@:2}" >>"$dir/killed.log" 2>&1 &
  local pid=$! steps
  while steps=$(steps_of killed) && [ "${steps:-0}" -lt "$1" ]; do
    kill -0 $pid 2>/dev/null || fail "the run to kill ended at step ${steps:-0}; see $dir/killed.log"
    sleep 2
  done
  kill -9 $pid
  wait $pid 2>/dev/null || true
  echo "mixture_check: killed after step $(steps_of killed); its newest checkpoint is $(readlink "$dir/killed/checkpoints/latest")"
}

begin=$SECONDS
arguments straight
"$hadal" "${args[@]}" >"$dir/straight.log" 2>&1 &
straight=$!
: >"$dir/killed.log"
kill_after ${KILL_FIRST:-1300}
kill_after ${KILL_SECOND:-2700} --resume
arguments killed
"$hadal" "${args[@]}" --resume >>"$dir/killed.log" 2>&1 || fail "the resumed run; see $dir/killed.log"
wait $straight || fail "the undisturbed run; see $dir/straight.log"

for file in model.safetensors optimizer.safetensors ema/model.safetensors; do
  cmp "$dir/straight/checkpoints/latest/$file" "$dir/killed/checkpoints/latest/$file" || fail "$file differs"
done
for name in straight killed; do sed 's/,"time":{[^}]*}//' "$dir/$name/metrics.jsonl" >"$dir/$name.metrics"; done
cmp "$dir/straight.metrics" "$dir/killed.metrics" || fail "metrics.jsonl differs"
echo "mixture_check: $(steps_of straight) steps in $((SECONDS - begin)) s, killed twice: weights, average, optimizer state and metrics are identical"
tail -n 1 "$dir/straight.log"
