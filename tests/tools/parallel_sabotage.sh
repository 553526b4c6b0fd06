#!/usr/bin/env bash
# Passes if scripts/parallel_check.sh notices a planted fault: every mesh of the case must fail because
# a number differs, not for any other reason.
#   tests/tools/parallel_sabotage.sh expert_group|local_counts|microbatch|balance_by_ranks
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/../.."

fault=${1:?"give the name of a fault"}
status=0
output=$(scripts/parallel_check.sh --ranks 4 --case "pp 2, dp 2, ep 2" --sabotage "$fault" 2>&1) || status=$?
echo "$output"
if [ "$status" -ne 1 ]; then
  echo "parallel_sabotage: $fault: exit $status instead of 1"
  exit 1
fi
if ! grep -q '^parallel_check: 0 of 15 equal one rank$' <<<"$output"; then
  echo "parallel_sabotage: $fault was not noticed in every case"
  exit 1
fi
if grep '^pp' <<<"$output" | grep -Evq "FAILED: rank [0-9]+ at step [0-9]+.*(off by|differs? from one rank)"; then
  echo "parallel_sabotage: $fault: failed, but not because numbers differ"
  exit 1
fi
echo "parallel_sabotage: $fault was noticed"
