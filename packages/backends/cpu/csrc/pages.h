// SPDX-License-Identifier: Apache-2.0
// Pages of 2 MB below weights, which are read 8 to 40 % faster from such: processors don't fetch ahead beyond a page. Wishes,
// all of them; what becomes of one is no error.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>

#include <fstream>
#include <string>
#endif

namespace quanto {

#if defined(__linux__)
#if !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

// Calls madvise for the whole pages of 2 MB within memory.
inline void advise(const void* data, int64_t bytes, int advice) {
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t at = reinterpret_cast<uintptr_t>(data), begin = (at + kPage - 1) / kPage * kPage, end = (at + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

// Before memory is written to: new memory then comes in such pages.
inline void prefer_huge_pages(const void* data, int64_t bytes) { advise(data, bytes, MADV_HUGEPAGE); }

// After: what the heap had used before is moved together, unless the system is set to never have such pages.
inline void collapse_pages(const void* data, int64_t bytes) {
  static const bool allowed = [] {
    std::string setting;
    std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled"), setting);
    return setting.find("[never]") == std::string::npos;
  }();
  if (allowed) advise(data, bytes, MADV_COLLAPSE);
}
#else
inline void prefer_huge_pages(const void*, int64_t) {}
inline void collapse_pages(const void*, int64_t) {}
#endif

}  // namespace quanto
