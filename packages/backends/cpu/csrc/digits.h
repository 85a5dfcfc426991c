// SPDX-License-Identifier: Apache-2.0
// One row of floats as digits of integers, which multiply codes as integers do: exact compute without a fused multiply-add
// for each product, and without making floats of codes. 4 bits on AVX2: 18 instructions for 64 products instead of 32.
//
//     x ~ step * (d[0] + 256 d[1] + 65536 d[2] + ...),    step = 2^e of each block, d of -128 to 127
//
// Three digits leave a step of 2^-22 to 2^-23 of the largest value of a block of 256, which is 2e-7 of what is typical, root
// mean square; a sum of floats loses more. Where values lie far below the largest one, a fourth digit is taken, or none.
#pragma once

#include <cmath>
#include <vector>

#include "activations.h"

namespace quanto {
namespace {

constexpr int kUsualDigits = 3;

// Powers of two from the largest value down to the others, by their mean, that three and four digits span: one value far
// above all others must not take their digits, since weights may be zero where it is. 2 to 3 are what is usual. Floats that
// codes are made of with an offset lose more than four digits do, whatever the span.
constexpr int kFarBelow = 32;  // counts as so far, if not farther
constexpr int kSpan = 5;
constexpr int kLongSpan = V::kLookup ? 13 : kFarBelow;

// Digits that a block of values needs, of which the largest magnitude is `peak`; 0 where none do.
inline int digits_of(const float* values, int64_t count, float peak) {
  if (peak == 0) return kUsualDigits;
  if (!(peak < 0x1p60f) || peak < 0x1p-60f) return 0;
  const auto exponent = [](float v) {
    int32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits >> 23 & 255;
  };
  const int32_t top = exponent(peak);
  int32_t total = 0, some = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool there = values[i] != 0;
    total += there ? std::min(top - exponent(values[i]), kFarBelow) : 0, some += there;
  }
  return total <= kSpan * some ? kUsualDigits : total <= kLongSpan * some ? kMostDigits : 0;
}

// 2^e by which values up to `peak` become integers of `digits` digits.
inline float steps_of(float peak, int digits) {
  int exponent;
  const float mantissa = std::frexp(peak, &exponent);
  return std::ldexp(1.f, 8 * digits - 1 - exponent - (mantissa > 127 / 128.f));
}

// The digits of a block of values, out[m * stride + i].
inline void split_block(const float* values, int64_t count, float steps, int digits, int8_t* out, int64_t stride) {
  int32_t codes[kRoundedAtOnce];
  for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<int32_t>(__builtin_nearbyintf(values[i] * steps));
  for (int m = 0; m < digits; ++m) {
    for (int64_t i = 0; i < count; ++i) {
      const auto digit = static_cast<int8_t>(codes[i]);
      out[m * stride + i] = digit;
      codes[i] = (codes[i] - digit) >> 8;
    }
  }
}

// Calls body(first position, positions, where its scales lie) for each block of the row, while it returns true.
template <class Body>
bool each_block(const Weight& w, const Activations& a, Body body) {
  const int64_t unit = w.format->unit;
  for (int64_t q = 0; q < w.groups; ++q) {
    for (int64_t b = 0; b < a.blocks; ++b) {
      const int64_t first = (q * w.units + b * a.block) * unit, count = std::min(a.block, w.units - b * a.block) * unit;
      if (!body(first, count, scales_at(w, a, 0, q, b))) return false;
    }
  }
  return true;
}

// Prepares the only row of x as the digits of as many rows, of which a.tile is told; false where none are enough.
[[maybe_unused]] bool prepare_digits(const Weight& w, const void* x, Type type, Activations& a) {
  const int64_t padded = w.padded();
  const std::unique_ptr<float[]> values(new float[padded]);
  const std::unique_ptr<int8_t[]> rows(new int8_t[padded * kMostDigits]);
  load_row(w, x, type, 0, 0, values.get());
  a.tile = 1;
  int digits = kUsualDigits;
  const bool split = each_block(w, a, [&](int64_t first, int64_t count, int64_t block) {
    const float peak = a.sums[block] = V::peak(values.get() + first, count);
    const int own = digits_of(values.get() + first, count, peak);
    digits = std::max(digits, own);
    return own != 0;
  });
  if (!split) return false;
  const std::vector<float> peaks(a.sums, a.sums + w.groups * a.blocks);
  a.tile = digits;
  each_block(w, a, [&](int64_t first, int64_t count, int64_t at) {
    const float peak = peaks[at / digits], steps = peak == 0 ? 0 : steps_of(peak, digits);
    split_block(values.get() + first, count, steps, digits, rows.get() + first, padded);
    a.scales[at] = peak == 0 ? 0 : 1 / steps;
    for (int m = 0; m < digits; ++m) {
      int32_t sum = 0;
      for (int64_t i = first; i < first + count; ++i) sum += rows[m * padded + i];
      a.sums[at + m] = static_cast<float>(sum);
    }
    return true;
  });
  for (int m = 0; m < digits; ++m) {
    reorder(w.format->code, rows.get() + m * padded, padded);
    for (int64_t i = 0; i < padded / 4; ++i) std::memcpy(a.quads + i * digits + m, rows.get() + m * padded + 4 * i, 4);
  }
  return true;
}

}  // namespace
}  // namespace quanto
