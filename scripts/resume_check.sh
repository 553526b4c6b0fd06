#!/usr/bin/env bash
# Shows that training resumes bit for bit: 40 steps straight against 20 steps, kill -9, --resume; and
# 1 thread against 2. Weights, optimizer state and metrics must be identical.
#   scripts/resume_check.sh [--sabotage rng|microbatch|counts|position]
# With --sabotage a fault is planted in the resumed process, and the check must fail.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

sabotage=""
while [ $# -gt 0 ]; do
  case "$1" in
    --sabotage) sabotage=${2:?"--sabotage needs a name"}; shift 2 ;;
    *) echo "resume_check.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done
hadal=${HADAL:-build/release/hadal}
[ -x "$hadal" ] || { echo "resume_check.sh: $hadal is missing; run: make build" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A text of its own: words of a small vocabulary in a fixed pseudo-random order.
awk 'BEGIN { s = 7; for (i = 0; i < 30000; ++i) { s = (s * 1103515245 + 12345) % 2147483648; r = int(s / 4096);
  printf "%s%s", substr("abcdefghijklmnopqrstuvwxyz", r % 23 + 1, r % 7 % 4 + 1), i % 11 == 10 ? ".\n" : " " } }' >"$work/text.txt"
"$hadal" tokenizer train --input "$work/text.txt" --vocab-size 320 --output "$work/tokenizer" >"$work/log" ||
  { cat "$work/log" >&2; exit 1; }

arguments() {  # arguments NAME THREADS: of `hadal`
  args=(train configs/resume_check.json --set "train.output=\"$work/$1\"" --set "data.text=\"$work/text.txt\""
    --set "data.tokenizer=\"$work/tokenizer\"" --set "train.threads=$2")
}
run() {  # run NAME THREADS [--resume]
  arguments "$1" "$2"
  "$hadal" "${args[@]}" "${@:3}" >>"$work/$1.log" 2>&1
}

fail() { echo "resume_check: FAILED: $*"; exit 1; }

# Weights and optimizer state as bytes, metrics without the clock.
same() {
  local a=$1 b=$2 file name
  for file in model.safetensors optimizer.safetensors; do
    cmp -s "$work/$a/checkpoints/latest/$file" "$work/$b/checkpoints/latest/$file" || fail "$file of $a and $b differ"
  done
  for name in "$a" "$b"; do sed 's/,"time":{[^}]*}//' "$work/$name/metrics.jsonl" >"$work/$name.metrics"; done
  cmp -s "$work/$a.metrics" "$work/$b.metrics" || fail "metrics.jsonl of $a and $b differ"
}

run straight 2 || { cat "$work/straight.log" >&2; fail "the straight run"; }

# Killed after the checkpoint of step 20: steps 21 on are done again after the resume.
arguments killed 2
"$hadal" "${args[@]}" >>"$work/killed.log" 2>&1 &
pid=$!
while kill -0 $pid 2>/dev/null && [ ! -e "$work/killed/checkpoints/latest/trainer.json" ]; do sleep 0.01; done
kill -9 $pid 2>/dev/null || true
wait $pid 2>/dev/null || true
[ "$(readlink "$work/killed/checkpoints/latest")" = step_00000020 ] ||
  { cat "$work/killed.log" >&2; fail "the run to kill was not at step 20"; }
HADAL_SABOTAGE=$sabotage run killed 2 --resume || { cat "$work/killed.log" >&2; fail "the resumed run"; }
same straight killed

run one_thread 1 || fail "the run with one thread"
same straight one_thread
echo "resume_check: weights, optimizer state and metrics are identical"
