// PipelineLinks over NCCL: a communicator of two ranks and a stream for each link.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "parallel/comm_nccl.h"
#include "parallel/pipeline_links.h"

namespace hadal {

// `links` of a pipeline of these ranks of the world. Collective over them. REQUIRES: gpus outlives
// it.
std::unique_ptr<PipelineLinks> make_links_nccl(NcclWorld& gpus, const std::vector<int>& ranks,
                                               const std::vector<Link>& links, const char* name);

}  // namespace hadal
