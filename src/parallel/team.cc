// Team: who holds what, and who talks to whom.
// SPDX-License-Identifier: Apache-2.0
#include "parallel/team.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "parallel/comm_host.h"
#include "parallel/links_nccl.h"

namespace hadal {
Team::Team(const ParallelConfig& parallel, const Config& model, World* world, NcclWorld* gpus)
    : parallel_(parallel),
      model_(model),
      local_model_(split_config(model, parallel.mesh.tp)),
      host_(world),
      gpus_(gpus) {
  const Mesh& m = parallel_.mesh;
  HADAL_CHECK((world == nullptr ? 1 : world->size()) == m.num_ranks(),
              "internal error: ", m.num_ranks(),
              " ranks in the mesh, and another number of processes");
  rank_ = world == nullptr ? 0 : world->rank();
  at_ = coord_of(m, rank_);
  stages_ = stages_of(parallel_, model_, at_.pp);
  num_local_experts_ = model_.n_routed_experts / m.ep;
  first_expert_ = at_.dp % m.ep * num_local_experts_;

  // The same place in the pipeline; under DualPipe its mirror image too.
  enum class Tokens : uint8_t { kOwn, kOfTensorGroup };
  const auto with_mirror = [&](MeshAxis axis, Tokens tokens) {
    std::vector<int> ranks;
    for (const int pp : holders_of(parallel_, stages_.front().stage))
      for (int tp = 0; tp < m.tp; ++tp) {
        if (tokens == Tokens::kOwn && tp != at_.tp) continue;
        const int peer = rank_of(m, {.pp = pp, .dp = at_.dp, .tp = tp});
        for (const int r : group_of(m, peer, axis)) ranks.push_back(r);
      }
    return ranks;
  };
  world_ = make(world == nullptr ? std::vector<int>{0} : world->all_ranks(), "world");
  pipeline_ = make(group_of(m, rank_, MeshAxis::kPipeline), "pipeline");
  expert_ = make(group_of(m, rank_, MeshAxis::kExpert), "expert");
  const int per_node = parallel_.ranks_per_node > 0 ? parallel_.ranks_per_node : m.num_ranks();
  std::vector<int> in_node, across;
  for (const int r : group_of(m, rank_, MeshAxis::kExpert)) {
    if (r / per_node == rank_ / per_node) in_node.push_back(r);
    if (r % per_node == rank_ % per_node) across.push_back(r);
  }
  in_node_ = make(std::move(in_node), "expert, in the node");
  if (across.size() > 1) across_nodes_ = make(std::move(across), "expert, across nodes");
  tensor_ = make(group_of(m, rank_, MeshAxis::kTensor), "tensor");
  dense_ = make_summing(with_mirror(MeshAxis::kData, Tokens::kOfTensorGroup), "dense gradients");
  split_ = make_summing(with_mirror(MeshAxis::kData, Tokens::kOwn), "split gradients");
  experts_ =
      make_summing(with_mirror(MeshAxis::kExpertData, Tokens::kOfTensorGroup), "expert gradients");

  const int last = num_stages(parallel_) - 1;
  const bool shared = model_.num_nextn_predict_layers > 0 || model_.tie_word_embeddings;
  const std::vector<int> first_holders = holders_of(parallel_, 0),
                         last_holders = holders_of(parallel_, last);
  if (shared && first_holders != last_holders &&
      (at_.pp == first_holders[0] || at_.pp == last_holders[0]))
    embed_ = make({rank_of(m, {.pp = first_holders[0], .dp = at_.dp, .tp = at_.tp}),
                   rank_of(m, {.pp = last_holders[0], .dp = at_.dp, .tp = at_.tp})},
                  "embedding");
}

std::unique_ptr<Comm> Team::make(std::vector<int> ranks, const char* name) {
  std::sort(ranks.begin(), ranks.end());
  if (gpus_ != nullptr) return gpus_->make_comm(std::move(ranks), name);
  return host_ == nullptr ? make_comm_self() : make_comm_host(*host_, std::move(ranks), name);
}

// On GPUs beside the work, if the config says so. Whether a group is one rank alone is the same for
// all groups of a name.
std::unique_ptr<Comm> Team::make_summing(std::vector<int> ranks, const char* name) {
  if (sums_side() == nullptr || ranks.size() == 1) return make(std::move(ranks), name);
  std::sort(ranks.begin(), ranks.end());
  return gpus_->make_comm_beside(std::move(ranks), name);
}

// NOTE: not where each kernel is waited for: a message ends when another rank does its part.
std::unique_ptr<PipelineLinks> Team::make_links() {
  const int P = parallel_.mesh.pp;
  if (gpus_ == nullptr || parallel_.link_sms == 0 || P == 1 || !device::can_record(gpus_->device()))
    return nullptr;
  // Every number of micro-batches has the links of this one, which fits every schedule.
  return make_links_nccl(*gpus_, group_of(parallel_.mesh, rank_, MeshAxis::kPipeline),
                         links_of(make_schedule(schedule_shape(parallel_, 2 * P))), "pipeline");
}

std::unique_ptr<PeerWindows> Team::make_windows(size_t bytes) {
  HADAL_CHECK(gpus_ != nullptr,
              "parallel.exchange = windows is for ranks on GPUs: set train.device to cuda, or the "
              "exchange to messages");
  return std::make_unique<PeerWindows>(*host_, group_of(mesh(), rank_, MeshAxis::kExpert),
                                       gpus_->device(), bytes);
}

Comm& Team::summing(ParamStore::Region region) {
  using Region = ParamStore::Region;
  return region == Region::kExperts ? *experts_ : region == Region::kSplit ? *split_ : *dense_;
}

RankShare Team::share() const {
  const auto share_in = [](const Comm& group) { return Share{group.size(), group.rank()}; };
  RankShare p{.tensor = share_in(*tensor_),
              .experts = share_in(*experts_),
              .split = share_in(*split_),
              .dense = share_in(*dense_)};
  if (parallel_.mesh.num_ranks() == 1) return p;
  p.holds = [this](const ParamInfo& info) {
    if (info.expert >= 0 &&
        (info.expert < first_expert_ || info.expert >= first_expert_ + num_local_experts_))
      return false;
    return std::any_of(stages_.begin(), stages_.end(),
                       [&](const LocalStage& s) { return contains(s.range, info, model_); });
  };
  return p;
}

}  // namespace hadal
