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
extern const Bfloat16 kAvx512Bfloat16;
#endif
#if defined(QUANTO_ARM)
extern const Kernels kI8mm, kDotprod;
#endif
extern const Kernels kPortable;

const Kernels& find_kernels(const char* name);

namespace {

#if defined(QUANTO_X86)
const Kernels kAvx512Bf16 = [] {  // here, where no instruction is used that the processor may lack
  Kernels made = kAvx512;
  made.name = "avx512_bf16";
  made.bfloat16 = &kAvx512Bfloat16;
  made.available = [] { return kAvx512.available() && kAvx512Bfloat16.available(); };
  return made;
}();
#endif

// Best first. With BF16 by name alone: a Xeon of the Sapphire Rapids generation takes vdpbf16ps so slowly that 128 tokens
// last 53 ms instead of 30 (4096 x 4096, int4).
const Kernels* const kAll[] = {
#if defined(QUANTO_X86)
    &kAvx512, &kAvx512Bf16, &kAvxVnni, &kAvx2,
#endif
#if defined(QUANTO_ARM)
    &kI8mm, &kDotprod,
#endif
    &kPortable,
};

std::atomic<const Kernels*> chosen{nullptr};
std::atomic<const Kernels*> light{nullptr};  // for what is little, where nobody named a set

// Products that vectors of 256 bits take sooner: using those of 512 bits at all costs a microsecond a call (Xeon of the
// Sapphire Rapids generation: one token and 64 x 64 in 4.3 us instead of 5.1, 256 x 256 in 5.5 instead of 6.5).
constexpr int64_t kLittle = int64_t{1} << 16;

const Kernels& first() {
  if (const char* name = std::getenv("QUANTO_CPU_ISA"); name && *name) return find_kernels(name);
  for (const Kernels* kernels : kAll) {
    if (!kernels->available()) continue;
#if defined(QUANTO_X86)
    if (kernels == &kAvx512 && kAvxVnni.available()) light = &kAvxVnni;
#endif
    return *kernels;
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

void select_kernels(const char* name) {
  chosen = *name ? &find_kernels(name) : nullptr;
  light = nullptr;
}

const Kernels& kernels() {
  const Kernels* known = chosen.load(std::memory_order_relaxed);
  if (!known) chosen = known = &first();
  return *known;
}

bool is_amd() {
#if defined(QUANTO_X86)
  static const bool amd = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
  }();
  return amd;
#else
  return false;
#endif
}

const Kernels& kernels_for(int64_t products) {
  const Kernels& best = kernels();
  const Kernels* other = products <= kLittle ? light.load(std::memory_order_relaxed) : nullptr;
  return other ? *other : best;
}

}  // namespace quanto
