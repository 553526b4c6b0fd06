#!/usr/bin/env bash
# Tests and times the CUDA backend on another machine: built here, run there, rows brought back.
#
#   scripts/gpu.sh pack        builds, and puts stripped programs in build/gpu
#   scripts/gpu.sh run OUT     where the GPU is, from a copy of this tree: tests, then benches; logs
#                              and rows go to OUT. Needs no compiler.
#   scripts/gpu.sh ssh HOST    pack; copy to HOST; run there; rows come back to build/gpu-rows
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '3,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

pack() {
  cmake --preset cuda >/dev/null
  cmake --build --preset cuda --target hadal ops_cuda_test model_decode_invariance_test
  mkdir -p build/gpu
  strip -o build/gpu/hadal build/cuda/hadal
  strip -o build/gpu/ops_cuda_test build/cuda/tests/ops_cuda/ops_cuda_test
  strip -o build/gpu/model_decode_invariance_test build/cuda/tests/model_decode_invariance_test
  sh bench/cuda/build.sh build/gpu/bench
  rm -f build/gpu/bench/*.o
}

# Every step runs, whatever those before it gave; the last line says how many failed.
run() {
  local out=$1 failed=0
  mkdir -p "$out"
  step() {
    local name=$1 status=0
    shift
    "$@" >"$out/$name.txt" 2>&1 || status=$?
    echo "$name: exit $status"
    [ $status -eq 0 ] || failed=$((failed + 1))
  }
  step check scripts/check_cuda.sh build/gpu
  step invariance build/gpu/model_decode_invariance_test --gtest_brief=1
  step serve python3 scripts/gpu_serve.py check build/gpu/hadal "$out"
  step layer build/gpu/hadal bench layer --config configs/deepseek_v3.json --tokens 4096 \
    --format bf16,fp8 --device cuda
  step rows build/gpu/hadal bench rows --config configs/deepseek_v3.json --tokens 4096 --device cuda
  step kernels sh bench/cuda/run_all.sh build/gpu/bench "$out"
  echo "gpu.sh: $failed steps failed; see $out"
  [ $failed -eq 0 ]
}

case "${1:-}" in
  pack) pack ;;
  run) [ $# -eq 2 ] || usage; run "$2" ;;
  ssh)
    [ $# -eq 2 ] || usage
    pack
    rsync -a --delete --exclude .git --exclude '/build/*' --include /build/gpu ./ "$2:hadal-gpu/"
    rsync -a build/gpu "$2:hadal-gpu/build/"
    status=0
    # shellcheck disable=SC2029
    ssh "$2" "cd hadal-gpu && scripts/gpu.sh run rows" || status=$?
    rsync -a "$2:hadal-gpu/rows/" build/gpu-rows/
    exit $status
    ;;
  *) usage ;;
esac
