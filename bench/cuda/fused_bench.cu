// Gate and fused quantisers: checks against f64 on the host, then times against copy bandwidth.
//
//   fused_bench
//
//   T rows   D, F widths
// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <numeric>
#include <random>

#include "bench/cuda/harness.cuh"
#include "ops/cuda/fused/config.h"

namespace {

using namespace hadal::bench;
using namespace hadal::cuda;
using bf16 = __nv_bfloat16;
using e4m3 = __nv_fp8_e4m3;

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

int check_gate(int tokens, float spread) {
  Buffer<float> logits(static_cast<int64_t>(tokens) * 256), bias(256), scores(logits.count()),
      weight(static_cast<int64_t>(tokens) * 8);
  Buffer<int> idx(static_cast<int64_t>(tokens) * 8);
  fill_gaussian(logits, 0.0f, spread, static_cast<uint64_t>(tokens));
  fill_gaussian(bias, 0.0f, 0.1f, 5);
  GateArgs a{logits.get(), bias.get(), scores.get(), idx.get(),
             weight.get(), tokens,     2.5f,         num_sms()};
  std::vector<int> got_idx[2];
  std::vector<float> got_weight[2], got_score;
  for (int i = 0; i < 2; ++i) {
    scores.fill_bytes(0xFF), idx.fill_bytes(0xFF), weight.fill_bytes(0xFF);
    gate_v3(a, nullptr);
    HADAL_CHECK_CUDA(cudaDeviceSynchronize());
    got_idx[i] = idx.to_host(), got_weight[i] = weight.to_host(), got_score = scores.to_host();
  }
  const auto x = logits.to_host(), b = bias.to_host();
  // The choice is checked on the device's own scores in f32, so that it has to agree exactly.
  int64_t wrong = 0;
  Distance ds, dw;
  for (int t = 0; t < tokens; ++t) {
    const float* s = got_score.data() + static_cast<size_t>(t) * 256;
    std::vector<std::pair<float, int>> groups;
    for (int e = 0; e < 256; ++e)
      ds.add(static_cast<double>(s[e]),
             1.0 / (1.0 + std::exp(-static_cast<double>(
                              x[static_cast<size_t>(t) * 256 + static_cast<size_t>(e)]))));
    for (int g = 0; g < 8; ++g) {
      std::vector<float> v;
      for (int e = g * 32; e < g * 32 + 32; ++e) v.push_back(s[e] + b[static_cast<size_t>(e)]);
      std::sort(v.rbegin(), v.rend());
      groups.push_back({-(v[0] + v[1]), g});
    }
    std::sort(groups.begin(), groups.end());
    std::vector<std::pair<float, int>> all;
    for (int g = 0; g < 4; ++g) {
      for (int e = groups[static_cast<size_t>(g)].second * 32, end = e + 32; e < end; ++e)
        all.push_back({-(s[e] + b[static_cast<size_t>(e)]), e});
    }
    std::sort(all.begin(), all.end());
    std::vector<int> want;
    double sum = 0.0;
    for (int k = 0; k < 8; ++k)
      want.push_back(all[static_cast<size_t>(k)].second),
          sum += static_cast<double>(s[want.back()]);
    std::sort(want.begin(), want.end());
    for (int k = 0; k < 8; ++k) {
      const size_t at = static_cast<size_t>(t) * 8 + static_cast<size_t>(k);
      wrong += got_idx[0][at] != want[static_cast<size_t>(k)];
      dw.add(static_cast<double>(got_weight[0][at]),
             static_cast<double>(s[want[static_cast<size_t>(k)]]) / sum * 2.5);
    }
  }
  const bool good = wrong == 0 && ds.relative() < 1e-6 && dw.relative() < 1e-6 &&
                    same_bits(got_idx[0], got_idx[1]) && same_bits(got_weight[0], got_weight[1]);
  std::printf("check gate T %d: wrong choices %lld, scores %.1e, weights %.1e %s\n", tokens,
              static_cast<long long>(wrong), ds.relative(), dw.relative(), good ? "ok" : "FAILED");
  return !good;
}

// Checks one quantised row against the exact values y: the scale within f32 rounding (a power of
// two where asked), every element within half a step of e4m3.
struct QuantiseCheck {
  int64_t bad = 0;
  Distance distance;
  void row(const std::vector<double>& y, const e4m3* q, const float* scale, int64_t stride,
           ScaleRounding rounding) {
    for (size_t block = 0; block * 128 < y.size(); ++block) {
      double amax = 0.0;
      for (size_t i = 0; i < 128; ++i) amax = std::max(amax, std::abs(y[block * 128 + i]));
      double want = std::max(amax, 1e-4) / 448.0;
      const double s = static_cast<double>(scale[static_cast<int64_t>(block) * stride]);
      if (rounding == ScaleRounding::kPowerOfTwo) {
        const double up = std::exp2(std::ceil(std::log2(want) - 1e-6)),
                     up2 = std::exp2(std::ceil(std::log2(want) + 1e-6));
        bad += s != up && s != up2;
      } else {
        bad += std::abs(s / want - 1.0) > 1e-5;
      }
      for (size_t i = 0; i < 128; ++i) {
        const double v = y[block * 128 + i],
                     got = static_cast<double>(static_cast<float>(q[block * 128 + i])) * s;
        const double step =
            std::max(std::exp2(std::floor(std::log2(std::max(std::abs(v) / s, 1e-9)))) / 8.0,
                     1.0 / 512.0) *
            s;
        bad += !(std::abs(got - v) <= 0.5002 * step + 1e-6 * std::abs(v));
        distance.add(got, v);
      }
    }
  }
};

int check_rmsnorm(int rows, int width, ScaleRounding rounding) {
  const int64_t count = static_cast<int64_t>(rows) * width, stride = rows + 3;
  Buffer<bf16> x(count), gain(width);
  Buffer<e4m3> q(count);
  Buffer<float> scale(width / 128 * stride), rstd(rows);
  fill_gaussian(x, 0.1f, 1.7f, static_cast<uint64_t>(width));
  fill_gaussian(gain, 1.0f, 0.2f, 9);
  RmsnormQuantiseArgs a{x.get(), gain.get(), q.get(), scale.get(), rstd.get(), stride,
                        rows,    width,      1e-6f,   rounding,    num_sms()};
  std::vector<e4m3> got[2];
  for (auto& g : got) {
    q.fill_bytes(0xFF), scale.fill_bytes(0xFF), rstd.fill_bytes(0xFF);
    rmsnorm_quantise(a, nullptr);
    HADAL_CHECK_CUDA(cudaDeviceSynchronize());
    g = q.to_host();
  }
  const auto hx = x.to_host(), hg = gain.to_host();
  const auto hs = scale.to_host(), hr = rstd.to_host();
  QuantiseCheck check;
  for (int r = 0; r < rows; r += std::max(1, rows / 64)) {
    double sum = 0.0;
    std::vector<double> y(static_cast<size_t>(width));
    for (int i = 0; i < width; ++i) {
      y[static_cast<size_t>(i)] = static_cast<double>(__bfloat162float(
          hx[static_cast<size_t>(r) * static_cast<size_t>(width) + static_cast<size_t>(i)]));
      sum += y[static_cast<size_t>(i)] * y[static_cast<size_t>(i)];
    }
    const double want = 1.0 / std::sqrt(sum / width + 1e-6);
    check.bad += std::abs(static_cast<double>(hr[static_cast<size_t>(r)]) / want - 1.0) > 1e-5;
    for (int i = 0; i < width; ++i)
      y[static_cast<size_t>(i)] *=
          want * static_cast<double>(__bfloat162float(hg[static_cast<size_t>(i)]));
    check.row(y, got[0].data() + static_cast<int64_t>(r) * width, hs.data() + r, stride, rounding);
  }
  const bool good = check.bad == 0 && same_bits(got[0], got[1]);
  std::printf("check rmsnorm_quantise T %d D %d: out of bounds %lld, distance %.2e %s\n", rows,
              width, static_cast<long long>(check.bad), check.distance.relative(),
              good ? "ok" : "FAILED");
  return !good;
}

struct Layout {
  std::vector<int> counts, begin{0};
  Buffer<int> d_counts, d_begin;
  explicit Layout(std::vector<int> c)
      : counts(std::move(c)),
        d_counts(static_cast<int64_t>(counts.size())),
        d_begin(static_cast<int64_t>(counts.size()) + 1) {
    for (int n : counts) begin.push_back(begin.back() + (n + 127) / 128);
    d_counts.copy_from(counts);
    d_begin.copy_from(begin);
  }
  int pages() const { return begin.back(); }
};

SwigluQuantiseArgs swiglu_args(const Layout& layout, const Buffer<bf16>& x,
                               const Buffer<float>& weight, const Buffer<e4m3>& q,
                               const Buffer<float>& scale, int width, ScaleRounding rounding) {
  return {x.get(),
          weight.get(),
          q.get(),
          scale.get(),
          layout.pages() * int64_t{128},
          layout.d_counts.get(),
          layout.d_begin.get(),
          static_cast<int>(layout.counts.size()),
          layout.pages(),
          width,
          rounding};
}

int check_swiglu(std::vector<int> counts, int width, ScaleRounding rounding) {
  Layout layout(std::move(counts));
  const int64_t rows = layout.pages() * int64_t{128};
  Buffer<bf16> x(rows * 2 * width);
  Buffer<float> weight(rows), scale(rows * (width / 128));
  Buffer<e4m3> q(rows * width);
  fill_gaussian(x, 0.0f, 2.0f, static_cast<uint64_t>(rows));
  fill_uniform(weight, 0.01f, 0.9f, 4);
  std::vector<e4m3> got[2];
  for (auto& g : got) {
    q.fill_bytes(0xFF), scale.fill_bytes(0xFF);
    swiglu_quantise(swiglu_args(layout, x, weight, q, scale, width, rounding), nullptr);
    HADAL_CHECK_CUDA(cudaDeviceSynchronize());
    g = q.to_host();
  }
  const auto hx = x.to_host();
  const auto hw = weight.to_host(), hs = scale.to_host();
  QuantiseCheck check;
  for (size_t e = 0; e < layout.counts.size(); ++e) {
    for (int r = 0; r < layout.counts[e]; r += 1 + layout.counts[e] / 50) {
      const size_t row = static_cast<size_t>(layout.begin[e]) * 128 + static_cast<size_t>(r),
                   w = static_cast<size_t>(width);
      std::vector<double> y(w);
      for (size_t i = 0; i < w; ++i) {
        const double g = static_cast<double>(__bfloat162float(hx[row * 2 * w + i])),
                     u = static_cast<double>(__bfloat162float(hx[row * 2 * w + w + i]));
        y[i] = static_cast<double>(hw[row]) * g / (1.0 + std::exp(-g)) * u;
      }
      check.row(y, got[0].data() + row * w, hs.data() + row, rows, rounding);
    }
    const int end = layout.counts[e];
    for (int r = end; r < (layout.begin[e + 1] - layout.begin[e]) * 128; ++r) {
      const auto* bytes = reinterpret_cast<const uint8_t*>(got[0].data()) +
                          (static_cast<int64_t>(layout.begin[e]) * 128 + r) * width;
      for (int i = 0; i < width; ++i) check.bad += bytes[i] != 0xFF;
    }
  }
  const bool good = check.bad == 0 && same_bits(got[0], got[1]);
  std::printf("check swiglu_quantise experts %zu F %d: out of bounds %lld, distance %.2e %s\n",
              layout.counts.size(), width, static_cast<long long>(check.bad),
              check.distance.relative(), good ? "ok" : "FAILED");
  return !good;
}

void print_row(const char* name, const char* shape, double us, double bytes, double copy) {
  std::printf("| %s | %s | %.1f | %.2f | %.0f%% |\n", name, shape, us, bytes / us * 1e-6,
              100.0 * bytes / us * 1e-6 / copy);
  std::fflush(stdout);
}

}  // namespace

int main() try {
  print_device();
  int failures = 0;
  failures += check_gate(1, 1.0f) + check_gate(4097, 1.5f) + check_gate(1000, 0.01f);
  failures += check_rmsnorm(300, 7168, ScaleRounding::kNone) +
              check_rmsnorm(4096, 7168, ScaleRounding::kPowerOfTwo);
  failures += check_rmsnorm(77, 1536, ScaleRounding::kNone) +
              check_rmsnorm(5, 512, ScaleRounding::kPowerOfTwo) +
              check_rmsnorm(9, 8192, ScaleRounding::kNone);
  failures += check_swiglu({300, 0, 1, 128, 1000}, 2048, ScaleRounding::kNone) +
              check_swiglu({129, 5}, 768, ScaleRounding::kPowerOfTwo);
  std::printf(failures ? "%d CHECKS FAILED\n" : "all checks passed\n", failures);
  const double copy = copy_ceiling();
  std::printf(
      "copy ceiling %.2f TB/s\n| kernel | shape | us | TB/s | of copy |\n|---|---|---|---|---|\n",
      copy);
  constexpr int kSets = 8;
  for (int tokens : {4096, 16384, 65536}) {
    Buffer<float> logits(static_cast<int64_t>(tokens) * 256 * kSets), bias(256),
        scores(logits.count()), weight(static_cast<int64_t>(tokens) * 8);
    Buffer<int> idx(static_cast<int64_t>(tokens) * 8);
    fill_gaussian(logits, 0.0f, 1.0f, 1);
    fill_gaussian(bias, 0.0f, 0.1f, 2);
    const double us = time_graph(32, 20, [&](int i, cudaStream_t stream) {
      const int64_t at = static_cast<int64_t>(i % kSets) * tokens * 256;
      gate_v3({logits.get() + at, bias.get(), scores.get() + at, idx.get(), weight.get(), tokens,
               2.5f, num_sms()},
              stream);
    });
    print_row("gate_v3", (std::to_string(tokens) + " x 256").c_str(), us, tokens * (2048.0 + 64.0),
              copy);
  }
  for (int rows : {4096, 16384}) {
    for (int width : {7168, 1536, 512}) {
      const int64_t count = static_cast<int64_t>(rows) * width;
      Buffer<bf16> x(count * kSets), gain(width);
      Buffer<e4m3> q(count * kSets);
      Buffer<float> scale(count / 128 * kSets), rstd(rows);
      fill_gaussian(x, 0.0f, 1.0f, 1);
      fill_gaussian(gain, 1.0f, 0.1f, 2);
      const double us = time_graph(32, 20, [&](int i, cudaStream_t stream) {
        const int64_t s = i % kSets;
        rmsnorm_quantise(
            {x.get() + s * count, gain.get(), q.get() + s * count, scale.get() + s * count / 128,
             rstd.get(), rows, rows, width, 1e-6f, ScaleRounding::kNone, num_sms()},
            stream);
      });
      print_row("rmsnorm_quantise", (std::to_string(rows) + " x " + std::to_string(width)).c_str(),
                us, static_cast<double>(count) * (3.0 + 4.0 / 128.0), copy);
    }
  }
  for (int per_expert : {1024, 7744}) {
    constexpr int kWidth = 2048;
    Layout layout(std::vector<int>(4, per_expert));
    const int64_t rows = layout.pages() * int64_t{128}, sets = per_expert > 2000 ? 2 : kSets;
    Buffer<bf16> x(rows * 2 * kWidth * sets);
    Buffer<float> weight(rows), scale(rows * (kWidth / 128) * sets);
    Buffer<e4m3> q(rows * kWidth * sets);
    fill_gaussian(x, 0.0f, 1.0f, 1);
    fill_uniform(weight, 0.01f, 0.9f, 4);
    const double us = time_graph(32, 20, [&](int i, cudaStream_t stream) {
      SwigluQuantiseArgs a = swiglu_args(layout, x, weight, q, scale, kWidth, ScaleRounding::kNone);
      const int64_t s = i % sets;
      a.gate_up = x.get() + s * rows * 2 * kWidth;
      a.q = q.get() + s * rows * kWidth;
      a.scale = scale.get() + s * rows * (kWidth / 128);
      swiglu_quantise(a, stream);
    });
    print_row("swiglu_quantise", (std::to_string(4 * per_expert) + " x 2 x 2048").c_str(), us,
              4.0 * per_expert * kWidth * (5.0 + 4.0 / 128.0), copy);
  }
  return failures != 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 2;
}
