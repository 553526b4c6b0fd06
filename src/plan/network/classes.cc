// Colour refinement over flows and links.
// SPDX-License-Identifier: Apache-2.0
#include "plan/network/classes.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

#include "core/check.h"

namespace hadal::plan::network {
namespace {

// A bijection of 64 bits that spreads them (splitmix64's finaliser).
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}
uint64_t mix(uint64_t a, uint64_t b) { return mix(a + 0x632BE59BD9B4E019u * mix(b)); }
uint64_t bits(double x) { return std::bit_cast<uint64_t>(x == 0 ? 0.0 : x); }
uint64_t share_hash(double share) { return mix(bits(share)) | 1; }

// Open addressing; 0 is not stored, which no colour that matters is.
class ColourSet {
 public:
  explicit ColourSet(size_t expected) : slots_(std::bit_ceil(2 * expected + 16), 0) {}
  void insert(uint64_t colour) {
    if (colour == 0) colour = 1;
    for (size_t i = colour & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i] == colour) return;
      if (slots_[i] != 0) continue;
      slots_[i] = colour;
      if (++size_ * 2 > slots_.size()) grow();
      return;
    }
  }
  size_t size() const { return size_; }

 private:
  void grow() {
    std::vector<uint64_t> old(slots_.size() * 2, 0);
    old.swap(slots_);
    size_ = 0;
    for (const uint64_t colour : old)
      if (colour != 0) insert(colour);
  }
  std::vector<uint64_t> slots_;
  size_t size_ = 0;
};

size_t num_distinct(std::span<const uint64_t> colours) {
  ColourSet set(1024);
  for (const uint64_t colour : colours) set.insert(colour);
  return set.size();
}

struct Refinement {
  const Paths& paths;
  std::span<const Flow> flows;
  const std::vector<uint8_t>& skipped;  // links left out
  std::vector<uint64_t> flow_colour, link_colour;

  void begin() {
    flow_colour.resize(flows.size());
    for (size_t f = 0; f < flows.size(); ++f)
      flow_colour[f] = mix(bits(flows[f].bytes), bits(flows[f].start));
    link_colour.resize(paths.num_links());
    for (uint32_t l = 0; l < paths.num_links(); ++l) link_colour[l] = mix(bits(paths.capacity(l)));
  }

  // Sums of hashes do not depend on the order in which colours are met.
  void refine() {
    std::vector<uint64_t> piece(paths.num_pieces(), 0), through(paths.num_pieces(), 0);
    for (uint32_t p = 0; p < paths.num_pieces(); ++p)
      for (const Hop& hop : paths.hops(p))
        if (!skipped[hop.link]) piece[p] += mix(link_colour[hop.link], bits(hop.share));
    for (size_t f = 0; f < flows.size(); ++f) {
      uint64_t met = 0;
      for (const uint32_t p : flows[f].pieces)
        if (p != kNoPiece) met += piece[p];
      flow_colour[f] = mix(flow_colour[f], met);
      const uint64_t mine = mix(flow_colour[f]);
      for (const uint32_t p : flows[f].pieces)
        if (p != kNoPiece) through[p] += mine;
    }
    std::vector<uint64_t> met(paths.num_links(), 0);
    for (uint32_t p = 0; p < paths.num_pieces(); ++p)
      for (const Hop& hop : paths.hops(p)) met[hop.link] += through[p] * share_hash(hop.share);
    for (size_t l = 0; l < met.size(); ++l) link_colour[l] = mix(link_colour[l], met[l]);
  }

  void run() {
    begin();
    size_t before = 0;
    while (true) {
      refine();
      const size_t now = num_distinct(flow_colour) + num_distinct(link_colour);
      if (now == before) return;
      before = now;
    }
  }
};

// Number of each colour in order of first appearance, and an example of each.
struct Numbering {
  std::vector<uint32_t> number_of, example_of, count;
  explicit Numbering(std::span<const uint64_t> colours) : number_of(colours.size()) {
    std::unordered_map<uint64_t, uint32_t> known;
    uint64_t last = 0;
    uint32_t last_number = 0;
    for (size_t i = 0; i < colours.size(); ++i) {
      if (i == 0 || colours[i] != last) {
        const auto [at, is_new] =
            known.try_emplace(colours[i], static_cast<uint32_t>(example_of.size()));
        if (is_new) example_of.push_back(static_cast<uint32_t>(i)), count.push_back(0);
        last = colours[i], last_number = at->second;
      }
      number_of[i] = last_number;
      ++count[last_number];
    }
  }
};

}  // namespace

std::vector<uint8_t> never_full(const Paths& paths, std::span<const Flow> flows) {
  const size_t num_links = paths.num_links();
  std::vector<uint8_t> result(num_links, 0);
  std::vector<uint8_t> is_end(num_links, 0);
  for (const bool at_source : {true, false}) {
    // The pieces that each first (or last) link feeds.
    const auto end_of = [&](const Flow& flow) {
      if (at_source) return flow.pieces[0];
      size_t last = 0;
      while (last + 1 < kMaxPieces && flow.pieces[last + 1] != kNoPiece) ++last;
      return flow.pieces[last];
    };
    std::vector<uint64_t> pairs;  // end << 32 | piece
    size_t limit = size_t{1} << 24;
    for (const Flow& flow : flows) {
      const uint32_t end = end_of(flow);
      if (end == kNoPiece || paths.hops(end).size() != 1 || paths.hops(end)[0].share != 1.0)
        continue;
      is_end[paths.hops(end)[0].link] = 1;
      for (const uint32_t p : flow.pieces)
        if (p != kNoPiece && p != end) pairs.push_back(uint64_t{end} << 32 | p);
      if (pairs.size() > limit) {
        std::sort(pairs.begin(), pairs.end());
        pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
        limit = std::max(limit, 2 * pairs.size());
      }
    }
    std::sort(pairs.begin(), pairs.end());
    pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
    // What each end may push over each link: its capacity times the largest share.
    std::vector<double> bound(num_links, 0.0), share(num_links, 0.0);
    std::vector<uint32_t> touched;
    for (size_t i = 0; i < pairs.size();) {
      const uint32_t end = static_cast<uint32_t>(pairs[i] >> 32);
      for (; i < pairs.size() && static_cast<uint32_t>(pairs[i] >> 32) == end; ++i)
        for (const Hop& hop : paths.hops(static_cast<uint32_t>(pairs[i]))) {
          if (share[hop.link] == 0.0) touched.push_back(hop.link);
          share[hop.link] = std::max(share[hop.link], hop.share);
        }
      const double capacity = paths.capacity(paths.hops(end)[0].link);
      for (const uint32_t l : touched) bound[l] += capacity * share[l], share[l] = 0.0;
      touched.clear();
    }
    // A flow without such an end makes no promise about its links.
    std::vector<uint8_t> unbounded(num_links, 0);
    for (const Flow& flow : flows) {
      const uint32_t end = end_of(flow);
      if (end != kNoPiece && paths.hops(end).size() == 1 && paths.hops(end)[0].share == 1.0)
        continue;
      for (const uint32_t p : flow.pieces)
        if (p != kNoPiece)
          for (const Hop& hop : paths.hops(p)) unbounded[hop.link] = 1;
    }
    for (uint32_t l = 0; l < num_links; ++l)
      if (!unbounded[l] && bound[l] > 0 && bound[l] <= paths.capacity(l) * (1 + 1e-9))
        result[l] = 1;
  }
  for (size_t l = 0; l < num_links; ++l)
    if (is_end[l]) result[l] = 0;
  return result;
}

Classes merge_alike(const Paths& paths, std::span<const Flow> flows) {
  HADAL_CHECK(flows.size() < kNoPiece, "there are ", flows.size(), " flows; allowed: fewer than ",
              kNoPiece);
  const std::vector<uint8_t> skipped = never_full(paths, flows);
  Refinement refinement{paths, flows, skipped, {}, {}};
  refinement.run();
  Numbering of_flows(refinement.flow_colour), of_links(refinement.link_colour);
  Classes result;
  // Uses of one example link of each class: exact sums over the flows that cross it.
  std::vector<uint8_t> is_example(paths.num_links(), 0);
  for (const uint32_t l : of_links.example_of) is_example[l] = !skipped[l];
  std::vector<std::vector<std::pair<uint32_t, double>>> uses_of(paths.num_pieces());
  for (uint32_t p = 0; p < paths.num_pieces(); ++p)
    for (const Hop& hop : paths.hops(p))
      if (is_example[hop.link]) uses_of[p].push_back({of_links.number_of[hop.link], hop.share});
  std::unordered_map<uint64_t, double> amount;  // class of flow << 32 | class of link
  for (size_t f = 0; f < flows.size(); ++f)
    for (const uint32_t p : flows[f].pieces) {
      if (p == kNoPiece) continue;
      for (const auto& [link_class, share] : uses_of[p])
        amount[uint64_t{of_flows.number_of[f]} << 32 | link_class] += share;
    }
  std::vector<std::pair<uint64_t, double>> entries(amount.begin(), amount.end());
  std::sort(entries.begin(), entries.end());
  Incidence& incidence = result.incidence;
  for (const uint32_t l : of_links.example_of) incidence.capacity.push_back(paths.capacity(l));
  incidence.flow_begin.assign(of_flows.example_of.size() + 1, 0);
  for (const auto& [key, use] : entries) {
    ++incidence.flow_begin[(key >> 32) + 1];
    incidence.of_flow.push_back({static_cast<uint32_t>(key), use});
  }
  for (size_t c = 0; c < of_flows.example_of.size(); ++c)
    incidence.flow_begin[c + 1] += incidence.flow_begin[c];
  incidence.index_links();
  result.class_of = std::move(of_flows.number_of);
  result.example_of = std::move(of_flows.example_of);
  result.count = std::move(of_flows.count);
  return result;
}

}  // namespace hadal::plan::network
