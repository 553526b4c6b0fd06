#!/bin/sh
# Builds the CUDA bench programs: bench/cuda/build.sh OUT_DIR [name ...]; needs nvcc 13, no GPU.
# SPDX-License-Identifier: Apache-2.0
set -eu
cd "$(dirname "$0")/../.."
out=$1
shift
mkdir -p "$out"
[ $# -gt 0 ] || set -- mla_decode decode_attention fp8_gemm fp8_wgrad mla_attention bf16_gemm
flags="-std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -Isrc -I. -cudart static"
g++ -std=c++20 -O2 -Isrc -c src/core/check.cc -o "$out/check.o"
for name in "$@"; do
  nvcc $flags -c "src/ops/cuda/$name/launch.cu" -o "$out/$name.o"
  nvcc $flags -c "bench/cuda/${name}_bench.cu" -o "$out/${name}_bench.o"
  objects="$out/${name}_bench.o $out/$name.o $out/check.o"
  case $name in
    bf16_gemm | decode_attention)
      nvcc $flags -c src/ops/cuda/gemv/launch.cu -o "$out/gemv.o"
      objects="$objects $out/gemv.o"
      ;;
  esac
  libs=
  case $name in fp8_gemm | bf16_gemm) libs=-lcublasLt ;; esac
  nvcc $flags $objects $libs -o "$out/${name}_bench"
done
