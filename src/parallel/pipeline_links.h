// PipelineLinks: messages between pipeline ranks that travel beside the work, in streams of their
// own (schedule.h: Link).
//
// A link moves its messages one after the other, in the order in which both ends post them, and
// waits for nothing that other links carry. So a message moves when what it takes is there at both
// ends and those before it are gone, whatever the work meanwhile waits for. That is less than
// posting each step's messages as one group before its work takes, and a schedule does not deadlock
// even so (tests/unit/pipeline_schedule_test.cc plays both).
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/context.h"
#include "core/tensor.h"
#include "parallel/schedule.h"

namespace hadal {

class PipelineLinks {
 public:
  virtual ~PipelineLinks() = default;
  // Each is posted and returns; the message begins after what the stream of ctx was given so far.
  // What is sent stays as it is, and what is received is left alone, until the stream has awaited
  // the event. REQUIRES: link.from, or link.to, is this rank.
  virtual Event send(Context& ctx, const Link& link, In x) = 0;
  virtual Event receive(Context& ctx, const Link& link, Out y) = 0;
  // The stream of ctx goes on from where the message is through. Uses the event up; one that is
  // empty is of no message.
  virtual void await(Context& ctx, Event& event) = 0;
  // Of a GPU: those that messages may hold while they wait for their other end.
  virtual int num_sms() const = 0;
};

}  // namespace hadal
