// SPDX-License-Identifier: Apache-2.0
// Uninitialized memory for whole registers. Of internal linkage: every instruction set compiles it with flags of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

namespace quanto {
namespace {

struct Free {
  void operator()(void* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;
template <class T>
Buffer<T> allocate(int64_t count) {
  return Buffer<T>(static_cast<T*>(::operator new[](sizeof(T) * std::max<int64_t>(count, 1), std::align_val_t(64))));
}

}  // namespace
}  // namespace quanto
