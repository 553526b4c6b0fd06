// Names of the ends of a request.
// SPDX-License-Identifier: Apache-2.0
#include "serve/request.h"

#include "core/check.h"

namespace hadal::serve {

const char* finish_name(Finish finish) {
  switch (finish) {
    case Finish::kStop:
      return "stop";
    case Finish::kLength:
      return "length";
    case Finish::kCancelled:
      return "cancelled";
    case Finish::kError:
      return "error";
  }
  HADAL_UNREACHABLE("unknown finish reason");
}

}  // namespace hadal::serve
