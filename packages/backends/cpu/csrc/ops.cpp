// SPDX-License-Identifier: Apache-2.0
// Operators, bound through torch's stable ABI: one binary serves every torch from 2.11 on. Their schemas are those of
// quanto.ops, defined in Python; ops_*.cpp implement them. Here is what belongs to the library as a whole.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <functional>
#include <string>

#include "run.h"

namespace quanto {

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, count, grain, body);
}

namespace {

std::string isa() { return kernels().name; }
std::string isas() { return available_kernels(); }
void select_isa(const std::string& name) { select_kernels(name.c_str()); }

}  // namespace
}  // namespace quanto

STABLE_TORCH_LIBRARY_IMPL(quanto_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&quanto::isa));
  m.impl("isas", TORCH_BOX(&quanto::isas));
  m.impl("select_isa", TORCH_BOX(&quanto::select_isa));
}
