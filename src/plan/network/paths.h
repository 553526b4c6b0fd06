// Links and paths of a simulated network, kept so that millions of flows fit.
//
// A link is directed and has a capacity in bytes/s. A piece is a stretch of a path: links, each
// with the share of the flow's bytes that crosses it (1/n where a flow is sprayed over n links). A
// flow's path is up to kMaxPieces pieces; pieces that many flows use, such as all ways from one
// leaf switch to another, are stored once.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace hadal::plan::network {

struct Hop {
  uint32_t link;
  double share;
};

inline constexpr uint32_t kNoPiece = std::numeric_limits<uint32_t>::max();
inline constexpr size_t kMaxPieces = 4;

class Paths {
 public:
  // A link, and the piece that is this link alone.
  uint32_t add_link(double capacity);
  uint32_t add_piece(std::span<const Hop> hops);

  size_t num_links() const { return capacity_.size(); }
  size_t num_pieces() const { return begin_.size() - 1; }
  double capacity(uint32_t link) const { return capacity_[link]; }
  // Of a link that fails, is repaired or is shared with something else.
  void set_capacity(uint32_t link, double capacity) { capacity_[link] = capacity; }
  uint32_t piece_of(uint32_t link) const { return piece_of_link_[link]; }
  std::span<const Hop> hops(uint32_t piece) const {
    return std::span(hops_).subspan(begin_[piece], begin_[piece + 1] - begin_[piece]);
  }

 private:
  std::vector<double> capacity_;         // [links]
  std::vector<uint32_t> piece_of_link_;  // [links]
  std::vector<Hop> hops_;
  std::vector<size_t> begin_ = {0};  // [pieces + 1]
};

struct Flow {
  std::array<uint32_t, kMaxPieces> pieces = {kNoPiece, kNoPiece, kNoPiece, kNoPiece};
  double bytes = 0.0;
  double start = 0.0;  // when its first byte may arrive: latency is part of it
};

}  // namespace hadal::plan::network
