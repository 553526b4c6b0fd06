#!/usr/bin/env bash
# Passes if scripts/resume_check.sh notices a planted fault: it must fail because files differ, not
# for any other reason.
#   tests/tools/resume_sabotage.sh rng|microbatch|counts|position
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/../.."

fault=${1:?"give the name of a fault"}
status=0
output=$(scripts/resume_check.sh --sabotage "$fault" 2>&1) || status=$?
echo "$output"
if [ "$status" -ne 1 ]; then
  echo "resume_sabotage: $fault: exit $status instead of 1"
  exit 1
fi
if ! grep -Eqx 'resume_check: FAILED: [a-z.]+ of straight and killed differ' <<<"$output"; then
  echo "resume_sabotage: $fault: failed, but not because files differ"
  exit 1
fi
echo "resume_sabotage: $fault was noticed"
