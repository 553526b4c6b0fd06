#!/usr/bin/env bash
# Shows that training on many ranks is training on one: a tiny model on every mesh and schedule, on
# processes of this machine; losses, gradients, counts and router biases of 10 steps against one rank.
#   scripts/parallel_check.sh [--ranks N,N,...] [--case TEXT] [--sabotage NAME] [--fast]
# Without arguments: 4 ranks, in f32 two of the schedules (--fast). --ranks 1,2,4,8 is everything up to 8
# (make parallel). With --sabotage a fault is planted in the ranks, and the check must fail: expert_group,
# local_counts, microbatch, balance_by_ranks.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

check=${PARALLEL_CHECK:-build/release/tests/parallel_check}
[ -x "$check" ] || { echo "parallel_check.sh: $check is missing; run: make test" >&2; exit 2; }
[ $# -gt 0 ] || set -- --fast
exec "$check" "$@"
