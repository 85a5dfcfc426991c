// SPDX-License-Identifier: Apache-2.0
// Chooses the instruction set at first use.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace quanto {

#if defined(QUANTO_X86)
extern const Kernels kAvx512, kAvxVnni, kAvx2;
#endif
#if defined(QUANTO_DOTPROD)
extern const Kernels kDotprod;
#endif
extern const Kernels kPortable;

const Kernels& find_kernels(const char* name);

namespace {

const Kernels* const kAll[] = {
#if defined(QUANTO_X86)
    &kAvx512, &kAvxVnni, &kAvx2,
#endif
#if defined(QUANTO_DOTPROD)
    &kDotprod,
#endif
    &kPortable,
};

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& first() {
  if (const char* name = std::getenv("QUANTO_CPU_ISA"); name && *name) return find_kernels(name);
  for (const Kernels* kernels : kAll) {
    if (kernels->available()) return *kernels;
  }
  return kPortable;
}

}  // namespace

const Kernels& find_kernels(const char* name) {
  std::string known;
  for (const Kernels* kernels : kAll) {
    if (std::strcmp(name, kernels->name) == 0) {
      if (!kernels->available()) throw std::runtime_error(std::string("this processor lacks the instructions of ") + name);
      return *kernels;
    }
    known += std::string(known.empty() ? "" : ", ") + kernels->name;
  }
  throw std::runtime_error(std::string("unknown instruction set ") + name + "; known here: " + known);
}

std::string available_kernels() {
  std::string names;
  for (const Kernels* kernels : kAll) {
    if (kernels->available()) names += std::string(names.empty() ? "" : ",") + kernels->name;
  }
  return names;
}

void select_kernels(const char* name) { chosen = &find_kernels(name); }

const Kernels& kernels() {
  const Kernels* known = chosen.load(std::memory_order_relaxed);
  if (!known) chosen = known = &first();
  return *known;
}

}  // namespace quanto
