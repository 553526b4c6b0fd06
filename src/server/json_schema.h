// What of a JSON schema a reply can be held to.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace hadal::server {

// Why a reply cannot be held to the schema: what XGrammar passes over without a word. "" where it
// can. Of oneOf XGrammar makes anyOf, which is the same where no two alternatives hold at once.
std::string why_not_held(const nlohmann::ordered_json& schema);

}  // namespace hadal::server
