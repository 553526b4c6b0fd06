// Optimizer state on disk: the moments, written by the ranks that hold them, read back by any
// others.
//
// DIR/optimizer.safetensors of one rank, else DIR/optimizer-00001-of-00008.safetensors and so on:
//   m.NAME, v.NAME            a whole parameter, in its shape
//   m.NAME[64:192], ...       elements 64 to 191 of it, flat, where it lies in several shares
//   m.NAME[:,8:16][64:192]    the same of its columns 8 to 15, where a tensor group splits them
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "io/safetensors.h"
#include "train/host_copies.h"
#include "train/learner.h"

namespace hadal::train {

// This rank's part of the files, and its name: copies of the moments in host memory, or (on the
// CPU, without `copies`) the moments themselves.
struct OptimizerPart {
  std::string file;
  std::vector<io::TensorSource> tensors;
};
OptimizerPart optimizer_part(const Config& model, Learner& learner, HostCopies* copies);

// This rank's shares, from whatever shares wrote them. An Error if elements are missing, or a
// tensor is not of the model.
void load_optimizer_state(const std::string& dir, const Config& model, Learner& learner);

}  // namespace hadal::train
