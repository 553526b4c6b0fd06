// The page of a report: HTML, style and script in one text, with a mark where the data goes.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace hadal::train {

const char* report_page();

}  // namespace hadal::train
