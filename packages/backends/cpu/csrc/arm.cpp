// SPDX-License-Identifier: Apache-2.0
// Asks the system: user programs may not ask the processor.
#include "arm.h"

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#endif

namespace quanto {
namespace {

#if defined(__linux__)
// Bits of AT_HWCAP and AT_HWCAP2 that the kernel keeps for ever (arch/arm64/include/uapi/asm/hwcap.h).
constexpr unsigned long kDotprodBit = 1ul << 20, kI8mmBit = 1ul << 13;
#elif defined(__APPLE__)
bool feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

}  // namespace

bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & kDotprodBit;
#elif defined(__APPLE__)
  return feature("hw.optional.arm.FEAT_DotProd");
#else
  return false;
#endif
}

bool has_i8mm() {
#if defined(__linux__)
  return getauxval(AT_HWCAP2) & kI8mmBit;
#elif defined(__APPLE__)
  return feature("hw.optional.arm.FEAT_I8MM");
#else
  return false;
#endif
}

}  // namespace quanto
