#!/usr/bin/env bash
# Runs every fuzzer of tests/fuzz, one after another: scripts/fuzz.sh [SECONDS [FUZZER ...]]
#   1200 seconds each unless given; FUZZER: safetensors, config, tokenizer, pretokenizer, chat, ...
#   TIMEOUT=SECONDS: what one input may take, 30 unless given (more where the machine is shared)
# Starts from tests/fuzz/corpus and from what earlier runs found (build/fuzz/corpus). A finding stays
# in build/fuzz/findings, is shown, and ends the run with status 1.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-1200}
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || { echo "fuzz.sh: $seconds is no number of seconds" >&2; exit 2; }
shift || true
fuzzers=("$@")
if [ ${#fuzzers[@]} -eq 0 ]; then
  for source in tests/fuzz/*_fuzzer.cc; do
    name=$(basename "$source" _fuzzer.cc)
    fuzzers+=("$name")
  done
fi

command -v clang++-19 >/dev/null ||
  { echo "fuzz.sh: clang++-19 is missing; run: scripts/setup.sh --full" >&2; exit 1; }
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz -j "${JOBS:-$(nproc)}"

findings=build/fuzz/findings
mkdir -p "$findings"
failed=0
for name in "${fuzzers[@]}"; do
  program=build/fuzz/tests/fuzz/${name}_fuzzer seeds=tests/fuzz/corpus/$name found=build/fuzz/corpus/$name
  [ -x "$program" ] || { echo "fuzz.sh: there is no fuzzer $name" >&2; exit 2; }
  mkdir -p "$found"
  log=build/fuzz/$name.log
  status=0
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$program" -max_total_time="$seconds" -max_len=16384 -timeout="${TIMEOUT:-30}" -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="$findings/$name-" "$found" "$seeds" >"$log" 2>&1 || status=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
  if [ "$status" -eq 0 ]; then
    echo "fuzz: $name: $seconds s, ${runs:-0} inputs, no finding"
  else
    failed=1
    echo "fuzz: $name: a finding in $findings, the log is $log:"
    grep -E "ERROR|SUMMARY|does not hold|runtime error" "$log" | head -5 || tail -5 "$log"
  fi
done
exit "$failed"
