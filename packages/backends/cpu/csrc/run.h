// SPDX-License-Identifier: Apache-2.0
// A linear layer as a whole: how activations are cut into tiles, which kernel takes them, and on which threads.
#pragma once

#include <algorithm>
#include <functional>

#include "memory.h"
#include "problem.h"

#if defined(QUANTO_X86)
#include <immintrin.h>
#endif

namespace quanto {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs body(begin, end) over 0 … count on torch's threads, at least `grain` at a time. Whoever links this defines it.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

constexpr int64_t kGrain = int64_t{1} << 18;  // multiply-adds that are worth a thread

template <class Body>
void parallel(int64_t count, int64_t work, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(work, 1));
  if (count <= grain) {
    body(0, count);
  } else {
    parallel_for(count, grain, body);
  }
}

// Lets subnormal numbers be what they are, whatever torch.set_flush_denormal says: float8 and float16 are decoded through
// them.
class Subnormals {
 public:
#if defined(QUANTO_X86)
  Subnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }  // FTZ, DAZ
  ~Subnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  Subnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (saved_ & kFlush) set(saved_ & ~kFlush);
  }
  ~Subnormals() {
    if (saved_ & kFlush) set(saved_);
  }

 private:
  static constexpr uint64_t kFlush = uint64_t{1} << 24 | uint64_t{1} << 19;  // FZ, FZ16
  static void set(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
  uint64_t saved_;
#endif
};

// What multiplies the rows of x, given as it is: values of `type`, or int8 codes with scales.
struct Rows {
  const uint8_t* data;
  Type type;
  int64_t count;
  const float* scales = nullptr;  // of int8: one, or one a row
  bool many = false;
};

// How to compute: integers, or floats decoded as they go where rows are few, or floats decoded in blocks.
enum class Way { kInteger, kFloat, kBlocks };

// Multiplies every row of x with the weight: out [rows, n].
void run(const Kernels& kernels, const Weight& w, const Rows& x, Way way, uint8_t* out, Type out_type, const float* bias,
         float out_scale, Nonlinearity then = Nonlinearity::kNone);

}  // namespace quanto
