// PeerWindows: every rank tells the others by which handle they open its window.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/peer_windows.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "core/check.h"
#include "parallel/comm_host.h"

namespace hadal {

PeerWindows::PeerWindows(World& world, std::vector<int> ranks, Device device, size_t bytes)
    : world_(world), ranks_(std::move(ranks)), device_(device) {
  HADAL_CHECK(ranks_.size() <= ops::kMaxPeers, "parallel.exchange: ", ranks_.size(),
              " ranks share their experts; windows are for at most ", ops::kMaxPeers,
              ": use \"messages\"");
  for (const int r : ranks_)
    HADAL_CHECK(world.host_of(r) == world.host_of(world.rank()), "parallel.exchange: rank ", r,
                " is on another host than rank ", world.rank(),
                "; windows are within a host: use \"messages\"");
  const size_t G = ranks_.size();
  const auto me =
      static_cast<size_t>(std::find(ranks_.begin(), ranks_.end(), world.rank()) - ranks_.begin());
  view_.place = static_cast<int>(me);
  view_.size = static_cast<int>(G);
  std::vector<device::WindowHandle> handles(G);
  view_.window[me] = device::allocate_window(device, bytes, &handles[me]);
  std::vector<Parcel> parcels;
  for (size_t g = 0; g < G; ++g) {
    if (g == me) continue;
    for (const bool send : {true, false})
      parcels.push_back({.send = send,
                         .peer = ranks_[g],
                         .data = &handles[send ? me : g],
                         .bytes = sizeof(device::WindowHandle),
                         .tag = 0x57494eu});
  }
  world.at("start", "windows");
  world.exchange(parcels);
  for (size_t g = 0; g < G; ++g)
    if (g != me) view_.window[g] = device::open_window(device, handles[g]);
}

PeerWindows::~PeerWindows() {
  // NOTE: after an error the others end as well; what they still write must find the memory there.
  if (std::uncaught_exceptions() > 0) return;
  const auto meet = [&] {
    try {
      make_comm_host(world_, ranks_, "windows")->barrier();
    } catch (const Error&) {
      // It was said when it happened, or the launcher will say it.
    }
  };
  meet();
  for (int g = 0; g < view_.size; ++g)
    if (g != view_.place) device::close_window(device_, view_.window[static_cast<size_t>(g)]);
  meet();
  device::release_window(device_, view_.window[static_cast<size_t>(view_.place)]);
}

}  // namespace hadal
