// SPDX-License-Identifier: Apache-2.0
// From words of a panel to values, or to bytes for integer products. Needs the vector `V` of an instruction set.
#pragma once

#include <utility>

#include "problem.h"

namespace quanto {
namespace {

using F = V::F;
using I = V::I;

// Whether values of a code come with their offset taken off already.
template <Code C>
constexpr bool kFolded = C == Code::kInt8 || C >= Code::kTable4 || V::kLookup;

struct Tables {
  V::Table values;
  V::Bytes bytes;
};

Tables tables(const Format& f) {
  alignas(64) float values[16];
  alignas(64) uint8_t bytes[16] = {};
  for (int i = 0; i < 16; ++i) {
    values[i] = f.table ? f.table[i] : static_cast<float>((i & ((1 << f.bits) - 1)) - f.offset);
    if (f.bytes) bytes[i] = f.bytes[i];
  }
  return {V::table(values), V::bytes(bytes)};
}

// Whether bytes use all of their range, so that sums of two products do not fit 16 bits.
template <Code C>
constexpr bool kFull = C == Code::kInt8 || C == Code::kTable4;

template <Code C>
constexpr int kUnit = C == Code::kInt3 ? 32 : C == Code::kInt2 ? 16 : C == Code::kInt4 || C == Code::kTable4 ? 8 : 4;
template <Code C>
constexpr int kWords = C == Code::kInt3 ? 3 : 1;

// The value of code K of a unit, for 16 rows.
template <Code C, int K>
inline F value(const I* words, const Tables& t) {
  if constexpr (C == Code::kInt8) {
    return V::to_float(V::template sar<24>(V::template shl<24 - 8 * K>(words[0])));
  } else if constexpr (C == Code::kInt4 || C == Code::kTable4) {
    const I code = V::template shr<4 * K>(words[0]);
    if constexpr (C == Code::kTable4 || V::kLookup) return V::lookup(t.values, code);
    return V::to_float(V::band(code, 15));
  } else if constexpr (C == Code::kInt2) {
    const I code = V::template shr<2 * K>(words[0]);
    if constexpr (V::kLookup) return V::lookup(t.values, code);
    return V::to_float(V::band(code, 3));
  } else if constexpr (C == Code::kInt3) {
    constexpr int i = K % 16, at = 8 * (i / 4) + 4 * (K / 16) + i % 4;
    const I low = V::template shr<2 * i>(words[K / 16]);
    I high;
    if constexpr (at >= 2) {
      high = V::template shr<at - 2>(words[2]);
    } else {
      high = V::template shl<2 - at>(words[2]);
    }
    if constexpr (V::kLookup) return V::lookup(t.values, V::merge(low, high));  // bit 3 is arbitrary
    return V::to_float(V::bor(V::band(low, 3), V::band(high, 4)));
  } else {
    // Sign, exponent and mantissa move into a float, whose exponent is then corrected; subnormals come out right.
    constexpr bool four = C == Code::kE4M3 || C == Code::kE4M3Z;
    constexpr float shift = C == Code::kE4M3 ? 0x1p120f : C == Code::kE4M3Z ? 0x1p119f : C == Code::kE5M2 ? 0x1p112f : 0x1p111f;
    I byte;
    if constexpr (K == 3) {
      byte = V::template shr<24>(words[0]);
    } else {
      byte = V::template shr<8 * K>(words[0]);
    }
    const I sign = V::band(V::template shl<24>(byte), 0x80000000u);
    const I rest = V::template shl<four ? 20 : 21>(V::band(byte, 0x7f));
    return V::mul(V::as_float(V::bor(sign, rest)), V::set(shift));
  }
}

// Codes 4J … of a unit (in the order of `position`) as unsigned bytes, four to a lane.
template <Code C, int J>
inline I bytes(const I* words, const Tables& t) {
  if constexpr (C == Code::kInt8) {
    return V::bxor(words[0], 0x80808080u);
  } else if constexpr (C == Code::kInt4) {
    return V::band(V::template shr<4 * J>(words[0]), 0x0f0f0f0fu);
  } else if constexpr (C == Code::kTable4) {
    return V::shuffle(t.bytes, V::band(V::template shr<4 * J>(words[0]), 0x0f0f0f0fu));
  } else if constexpr (C == Code::kInt2) {
    return V::band(V::template shr<2 * J>(words[0]), 0x03030303u);
  } else {
    const I low = V::band(V::template shr<2 * (J % 4)>(words[J / 4]), 0x03030303u);
    if constexpr (J >= 2) {
      return V::bor(low, V::band(V::template shr<J - 2>(words[2]), 0x04040404u));
    } else {
      return V::bor(low, V::band(V::template shl<2 - J>(words[2]), 0x04040404u));
    }
  }
}

// The position, within a unit, of byte b of the J-th quad.
int position(Code c, int j, int b) {
  switch (c) {
    case Code::kInt4:
    case Code::kTable4: return 2 * b + j;
    case Code::kInt2: return 4 * b + j;
    case Code::kInt3: return 16 * (j / 4) + 4 * b + j % 4;
    default: return b;
  }
}

// Loops whose index is a constant, so that arrays of registers stay in registers.
#define QUANTO_INLINE __attribute__((always_inline))

template <class Body, int... K>
QUANTO_INLINE inline void unrolled(std::integer_sequence<int, K...>, Body body) {
  (body(std::integral_constant<int, K>{}), ...);
}

template <int N, class Body>
QUANTO_INLINE inline void each(Body body) {
  unrolled(std::make_integer_sequence<int, N>{}, body);
}

}  // namespace
}  // namespace quanto
