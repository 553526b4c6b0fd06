#!/usr/bin/env bash
# Verifies every checkpoint below DIR against its golden.safetensors and train.safetensors.
#   scripts/verify_fixtures.sh [DIR] [DTYPE ...]      default: tests/goldens, f32 and f64
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

dir=${1:-tests/goldens}
shift || true
dtypes=("$@")
[ ${#dtypes[@]} -gt 0 ] || dtypes=(f32 f64)
hadal=${HADAL:-build/release/hadal}
[ -x "$hadal" ] || { echo "verify_fixtures.sh: $hadal is missing; run: make build" >&2; exit 1; }

failed=0 checked=0
for golden in "$dir"/*/golden.safetensors "$dir"/*/train.safetensors; do
  [ -e "$golden" ] || continue
  for dtype in "${dtypes[@]}"; do
    printf '\n== %s in %s\n' "$golden" "$dtype"
    checked=$((checked + 1))
    "$hadal" verify --model "$(dirname "$golden")" --golden "$golden" --dtype "$dtype" || failed=$((failed + 1))
  done
done
[ "$checked" -gt 0 ] || { echo "verify_fixtures.sh: no golden below $dir" >&2; exit 1; }
printf '\n%d verifications, %d failed\n' "$checked" "$failed"
[ "$failed" -eq 0 ]
