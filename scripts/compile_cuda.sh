#!/usr/bin/env bash
# Compiles every CUDA source for Hopper to an object, and checks the tests of its ops as the compiler sees them; says
# so where there is no nvcc. Runs nothing.
# SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
if [ -z "$nvcc" ]; then
  echo "compile_cuda: no nvcc here; the CUDA code was not compiled"
  exit 0
fi
out=build/cuda_objects
mkdir -p "$out"
launcher=$(command -v ccache || true)

compile() {
  local source=$1 object flags=()
  object="$out/$(echo "$source" | tr / _).o"
  echo "compile_cuda: $source"
  case "$source" in  # the bodies of ops, as cmake/cuda.cmake builds them
    src/ops/cuda/*/*) ;;
    src/ops/cuda/*) flags=(-fmad=false -DHADAL_HAS_CUDA -Werror=all-warnings) ;;
  esac
  ${launcher:+"$launcher"} "$nvcc" -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a \
    "${flags[@]}" -Isrc -I. -c "$source" -o "$object"
}
check() {
  echo "compile_cuda: $1"
  c++ -std=c++20 -fsyntax-only -Wall -Wextra -Wconversion -Werror -DHADAL_HAS_CUDA -DFMT_HEADER_ONLY=1 -Isrc -I. \
    -isystem "$(dirname "$nvcc")/../include" "$1"
}
export -f compile check
export nvcc out launcher
git ls-files '*.cu' 'src/core/device*_cuda.cc' | xargs -P "$(nproc)" -I {} bash -euc 'compile {}'
git ls-files 'tests/ops_cuda/*.cc' | xargs -P "$(nproc)" -I {} bash -euc 'check {}'
echo "compile_cuda: done"
