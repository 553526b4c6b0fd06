// Team: this rank's place in the mesh, what it holds of the model, and the groups it talks to.
//
// Gradients of dense parameters are summed over the ranks that hold the same stage, those of
// experts and of split matrices over the ranks among them that hold the same experts or parts: the
// ranks of a tensor group see different tokens, so only split matrices are not summed over it.
// Under DualPipe a stage is on two pipeline ranks, r and P-1-r, which hold exactly the same
// parameters: both belong to these groups.
// Otherwise only the embedding (shared with the MTP modules, or with a tied head) may be on two
// pipeline ranks; they form the pair `embed`.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "core/comm.h"
#include "model/param_store.h"
#include "parallel/comm_nccl.h"
#include "parallel/parallel_config.h"
#include "parallel/peer_windows.h"
#include "parallel/pipeline_links.h"
#include "parallel/world.h"

namespace hadal {

class Team {
 public:
  // world: none for a world of one. gpus: of its ranks, where their tensors are on GPUs; else none.
  // REQUIRES: check_parallel() passed; both outlive the team.
  Team(const ParallelConfig& parallel, const Config& model, World* world,
       NcclWorld* gpus = nullptr);

  const ParallelConfig& parallel() const { return parallel_; }
  const Mesh& mesh() const { return parallel_.mesh; }
  int rank() const { return rank_; }
  bool is_first() const { return rank_ == 0; }
  const MeshCoord& at() const { return at_; }
  // Data-parallel rank whose micro-batches this rank computes.
  int data_rank() const { return at_.dp; }

  const std::vector<LocalStage>& stages() const { return stages_; }  // ascending
  // The model with this rank's share of heads and dense widths.
  const Config& local_model() const { return local_model_; }
  // What this rank holds, and its shares of the optimizer's state.
  RankShare share() const;
  // Experts [first, first + count) of every MoE layer.
  int64_t num_local_experts() const { return num_local_experts_; }
  int64_t first_expert() const { return first_expert_; }
  // The embedding is also on an earlier pipeline rank, which counts and saves it.
  bool embed_is_copy() const { return embed_ != nullptr && at_.pp != 0; }

  Comm& world() { return *world_; }
  Comm& pipeline() { return *pipeline_; }
  Comm& expert() { return *expert_; }                   // ranks that share one set of all experts
  Comm& in_node() { return *in_node_; }                 // those of them on this rank's node
  Comm* across_nodes() { return across_nodes_.get(); }  // those of its index; none: one node
  Comm& tensor() { return *tensor_; }                   // ranks that share tokens and heads
  // Where the transfers of experts' tokens run beside the work; null: in its stream.
  SideStream* side() const {
    return gpus_ != nullptr && parallel_.overlap ? &gpus_->side() : nullptr;
  }
  // What a GPU records, where nothing that a rank needs of others for it takes a host: a
  // micro-batch if they come one by one, else all of a step's.
  enum class Recordable : uint8_t { kNothing, kMicroBatch, kStep };
  Recordable recordable() const {
    const Mesh& m = parallel_.mesh;
    const bool no_host = m.ep == 1 || parallel_.exchange == ExchangeKind::kWindows;
    const bool in_links = m.pp > 1 && parallel_.link_sms > 0;
    if (!parallel_.record || !no_host || in_links) return Recordable::kNothing;
    const bool one_by_one = m.pp == 1 && parallel_.schedule != ScheduleKind::kDualPipeV;
    return one_by_one ? Recordable::kMicroBatch : Recordable::kStep;
  }
  // Where sums of gradients run beside the work; null: in its stream, as where micro-batches are
  // recorded one by one. They may take so many SMs.
  SideStream* sums_side() const {
    return recordable() == Recordable::kMicroBatch ? nullptr : end_side();
  }
  // Where sums and masters travel beside the end of a step: its norm and its update. Null: in the
  // stream of these.
  SideStream* end_side() const {
    return gpus_ != nullptr && parallel_.overlap ? &gpus_->sums_side() : nullptr;
  }
  int num_sums_sms() const { return gpus_ == nullptr ? 0 : gpus_->options().beside_ctas; }
  // Collective over `pipeline`: where its messages travel beside the work; null: in its stream.
  std::unique_ptr<PipelineLinks> make_links();
  // Collective over `expert`: windows of so many bytes in their GPUs. An Error where the ranks have
  // none, or are not all on one host.
  std::unique_ptr<PeerWindows> make_windows(size_t bytes);
  // Not 0 once a rank has failed; null where nobody waits on a GPU.
  const int* stop_flag() const { return gpus_ == nullptr ? nullptr : gpus_->stop_flag(); }
  // Ranks that sum gradients: of a region of what they hold, and of dense parameters in particular.
  Comm& summing(ParamStore::Region region);
  Comm& dense() { return summing(ParamStore::Region::kDense); }
  Comm* embed() { return embed_.get(); }
  // Tells the others where this rank is.
  void at_step(int64_t step) {
    if (host_ != nullptr) host_->at_step(step);
  }
  void maybe_die(const char* fault) const {
    if (host_ != nullptr) host_->maybe_die(fault);
  }
  void maybe_die(const char* fault, int64_t step) const {
    if (host_ != nullptr) host_->maybe_die(fault, step);
  }

 private:
  std::unique_ptr<Comm> make(std::vector<int> ranks, const char* name);
  std::unique_ptr<Comm> make_summing(std::vector<int> ranks, const char* name);

  ParallelConfig parallel_;
  Config model_, local_model_;
  World* host_;
  NcclWorld* gpus_;
  int rank_ = 0;
  MeshCoord at_;
  std::vector<LocalStage> stages_;
  int64_t first_expert_ = 0, num_local_experts_ = 0;
  std::unique_ptr<Comm> world_, pipeline_, expert_, in_node_, across_nodes_;
  std::unique_ptr<Comm> tensor_, dense_, split_, experts_, embed_;
};

}  // namespace hadal
