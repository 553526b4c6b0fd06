// Optimizer state on disk: the moments, written by the ranks that hold them, read back by any
// others.
//
// DIR/optimizer.safetensors of one rank, else DIR/optimizer-00001-of-00008.safetensors and so on:
//   m.NAME, v.NAME            a whole parameter, in its shape
//   m.NAME[64:192], ...       elements 64 to 191 of it, flat, where it lies in several shares
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "train/learner.h"

namespace hadal::train {

// This rank's part of the files. Collective; `dir` exists.
void save_optimizer_state(const std::string& dir, Learner& learner);

// This rank's shares, from whatever shares wrote them. An Error if elements are missing, or a
// tensor is not of the model.
void load_optimizer_state(const std::string& dir, Learner& learner);

}  // namespace hadal::train
