// What a server knows about a small model: bytes as tokens, and a chat template.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "io/bpe_train.h"
#include "server/api_request.h"

namespace hadal::fuzz {

inline server::ModelInfo stub_model() {
  server::ModelInfo model;
  model.id = "stub";
  model.context = 512;
  model.tokenizer = io::train_bpe("In the beginning God created the heaven and the earth.", 263);
  model.vocab_size = model.tokenizer->vocab_size();
  model.eos = {1};
  model.chat_template = io::ChatTemplate::named("deepseek-v3.1");
  model.max_choices = 4;
  return model;
}

}  // namespace hadal::fuzz
