// Groups of messages that meet: a rank which waits for all messages of a group before it goes on
// waits for nobody who waits for it.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "parallel/schedule.h"

namespace hadal::detail {

// Moves receives into earlier groups of their rank until every group is done in the end, where no
// message is kept on its way: it is sent while its receiver is in the group that receives it.
// Groups that meet stay as they are, and the order of messages between two ranks stays.
//
// Interleaved needs it, where two ranks send to each other before either receives.
void let_groups_meet(Schedule& schedule);

}  // namespace hadal::detail
