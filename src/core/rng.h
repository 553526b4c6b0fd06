// Counter-based random numbers: Philox-4x32-10 (Salmon et al., 2011), a pure function of (key,
// counter).
//
// No state to save beyond the counter, and any element can be drawn alone: initial weights do not
// depend on the order of parameters in memory, and the token at position p is drawn from (seed, p)
// whether or not anything was drafted.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

namespace hadal {

class Rng {
 public:
  // `stream` separates uses of one seed: Rng(seed, stream_id("init.layers.0.attn.wq_a")).
  Rng(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  std::array<uint32_t, 4> block(uint64_t counter) const {
    std::array<uint32_t, 4> x = {
        static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
        static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)};
    uint32_t k0 = static_cast<uint32_t>(seed_), k1 = static_cast<uint32_t>(seed_ >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * x[0], p1 = uint64_t{0xCD9E8D57u} * x[2];
      x = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(p1),
           static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(p0)};
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return x;
  }

  uint64_t u64(uint64_t counter) const {
    const auto x = block(counter);
    return (static_cast<uint64_t>(x[1]) << 32) | x[0];
  }
  // In [0, 1), 53 bits.
  double uniform(uint64_t counter) const {
    return static_cast<double>(u64(counter) >> 11) * 0x1p-53;
  }
  // Standard normal by Box-Muller.
  double normal(uint64_t counter) const {
    const auto x = block(counter);
    const double u = (static_cast<double>(x[0]) + 1.0) * 0x1p-32;  // (0, 1]
    const double v = static_cast<double>(x[1]) * 0x1p-32;
    return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
  }

 private:
  uint64_t seed_, stream_;
};

// FNV-1a of a name: the stream of what the name says.
constexpr uint64_t stream_id(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace hadal
