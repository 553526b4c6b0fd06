// How a subcommand runs a model: alone, or led by the first of several processes that it starts
// (--ranks).
//
// Each rank loads its share of the weights. Rank 0 does what was asked for; the others follow its
// decoders' calls until it is done (serve/follower.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "cli/loaded_model.h"
#include "cli/memory_plan.h"
#include "parallel/world.h"

namespace hadal::cli {

// What the rank that leads has.
struct ModelLead {
  Context& ctx;
  const LoadedModel& model;
  DecoderRanks ranks = {};
  const World* world = nullptr;  // none: it is alone

  Decoder decoder(const Decoder::Limits& limits) const {
    return {ctx, model.config(), model.weights, model.act, limits, ranks};
  }
};

// Refuses what cannot be split. With several ranks, prints the plan and refuses what does not fit.
void check_ranks_of(const PlanInput& plan);

// Loads and runs. Several ranks of GPUs refuse what does not fit theirs.
// REQUIRES: what check_ranks_of() refuses was refused; this process has one thread, and has used no
// GPU.
void run_model(const PlanInput& plan, const std::function<void(ModelLead&)>& body);

}  // namespace hadal::cli
