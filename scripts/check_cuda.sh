#!/usr/bin/env bash
# Checks the CUDA backend on a machine with a GPU: every op against the CPU, the goldens in f32, f64
# and bf16, and generation against the CPU's.
#
#   scripts/check_cuda.sh [BUILD]     BUILD holds hadal and ops_cuda_test; default build/cuda
#
# Build first: cmake --preset cuda && cmake --build --preset cuda --target hadal ops_cuda_test
# SPDX-License-Identifier: Apache-2.0
set -uo pipefail
cd "$(dirname "$0")/.."

build=${1:-build/cuda}
hadal=$build/hadal
ops_test=$build/tests/ops_cuda/ops_cuda_test
[ -x "$ops_test" ] || ops_test=$build/ops_cuda_test
for program in "$hadal" "$ops_test"; do
  if [ ! -x "$program" ]; then
    echo "check_cuda: $program is missing; see the build commands at the top of this script" >&2
    exit 1
  fi
done

summary=()
failed=0
# run NAME COMMAND...: the output is shown where the command fails.
run() {
  local name=$1 output status start=$SECONDS
  shift
  output=$("$@" 2>&1)
  status=$?
  if [ $status -eq 0 ]; then
    summary+=("passed  $name ($((SECONDS - start)) s)")
  else
    echo "---- $name"
    echo "$output" | tail -n 40
    summary+=("FAILED  $name")
    failed=1
  fi
}

# The same tokens on both devices, with and without speculation, greedy and sampled.
same_tokens() {
  local model=$1 ids=5,9,30,7,12 device
  shift
  for device in cpu cuda; do
    "$hadal" generate --model "$model" --prompt-ids $ids --max-tokens 48 --ignore-eos --json \
      --device $device "$@" | grep -A 60 token_ids | tr -d ' \n' | sed 's/].*//' || return 1
    echo
  done | uniq | wc -l | grep -qx 1
}

run "every op against the CPU" "$ops_test" --gtest_brief=1
for case in base odd v3_heads; do
  model=tests/goldens/$case
  for golden in "$model"/golden.safetensors "$model"/train.safetensors; do
    [ -f "$golden" ] || continue
    for dtype in f32 f64 bf16; do
      run "verify $golden in $dtype" \
        "$hadal" verify --model "$model" --golden "$golden" --dtype $dtype --device cuda
    done
  done
  run "generate $case: the CPU's tokens" same_tokens "$model" --dtype f32
  run "generate $case: sampled" same_tokens "$model" --dtype f32 --temperature 0.8 --top-p 0.9
done
run "generate base: speculating" same_tokens tests/goldens/base --dtype f32 --speculate 2

printf '%s\n' "${summary[@]}"
[ $failed -eq 0 ] && echo "check_cuda: passed" || echo "check_cuda: FAILED"
exit $failed
