// SPDX-License-Identifier: Apache-2.0
// What a processor of aarch64 has beyond the first version of it.
#pragma once

namespace quanto {

bool has_dotprod();  // sdot: Armv8.2 with that extension, and Armv8.4
bool has_i8mm();     // smmla: Armv8.2 with that extension, and Armv8.6

}  // namespace quanto
