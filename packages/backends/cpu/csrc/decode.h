// SPDX-License-Identifier: Apache-2.0
// From words of a panel to values, or to bytes for integer products. Needs the vector `V` of an instruction set.
#pragma once

#include <cstring>
#include <utility>

#include "problem.h"

namespace quanto {
namespace {

using F = V::F;
using I = V::I;

// V by another name, which a template looks into only when it is made: for what not every V has.
template <Code>
struct Late {
  using Vector = V;
};
template <Code C>
using Of = typename Late<C>::Vector;

template <Code C>
using Is = std::integral_constant<Code, C>;

// Calls body with the code as a constant, of one template for all of them.
template <class Body>
auto with_code(Code code, Body body) {
  switch (code) {
    case Code::kInt8: return body(Is<Code::kInt8>{});
    case Code::kInt4: return body(Is<Code::kInt4>{});
    case Code::kInt3: return body(Is<Code::kInt3>{});
    case Code::kInt2: return body(Is<Code::kInt2>{});
    case Code::kTable4: return body(Is<Code::kTable4>{});
    case Code::kSmallTable: return body(Is<Code::kSmallTable>{});
    case Code::kE4M3: return body(Is<Code::kE4M3>{});
    case Code::kE5M2: return body(Is<Code::kE5M2>{});
    case Code::kE4M3Z: return body(Is<Code::kE4M3Z>{});
    default: return body(Is<Code::kE5M2Z>{});
  }
}

// Whether bytes use all of their range, so that sums of two products do not fit 16 bits.
template <Code C>
constexpr bool kFull = C == Code::kInt8 || C == Code::kTable4;
// Whether vpmaddubsw multiplies them, which adds up two products of bytes below 256 and int8 in 16 bits: then two int8
// side by side may add up to 128 at the most, 255 * 128 < 2^15.
template <Code C>
constexpr bool kPairs = kFull<C> && V::kPairs;
// Whether bytes are signed values; elsewhere they are unsigned, the format's offset above them.
template <Code C>
constexpr bool kSigned = kFull<C> && V::kSignedBytes;

// Whether exact compute may multiply digits of one row by them. Not int8 where two registers hold a panel: vpmaddubsw has no
// room for products of two bytes of the full range, and with AVX-VNNI three of them take longer than a float does (1.0 ms
// instead of 0.85 on a Xeon, 4096 x 4096).
template <Code C>
constexpr bool kDigitCode = V::kDigits && C != Code::kTable4 && !(C == Code::kInt8 && V::kRegisters == 2);

template <Code C>
constexpr bool kNibbles = C == Code::kInt4 || C == Code::kTable4 || C == Code::kSmallTable;
template <Code C>
constexpr int kUnit = C == Code::kInt3 ? 32 : C == Code::kInt2 ? 16 : kNibbles<C> ? 8 : 4;
template <Code C>
constexpr int kWords = C == Code::kInt3 ? 3 : 1;
// Whether products of several quads are added up in 16 bits.
template <Code C>
constexpr bool kNarrow = V::kNarrowSums && quads_in_16_bits(C, false) != 0;
// Quads of bytes, offset and all, whose products with int8 fit 16 bits together: 128 * 2 * (2^bits - 1) * quads < 2^15.
template <Code C>
constexpr int kQuads = C == Code::kInt4 ? 8 : C == Code::kInt3 ? 16 : C == Code::kInt2 ? 32 : C == Code::kSmallTable ? 4 : 0;

// What `value` leaves to be done: value = (result - offset) / factor.
struct Remainder {
  float offset, factor;
};
template <Code C>
Remainder remainder_of(const Format& f) {
  if (C == Code::kInt8) return {0, 0x1p24f};
  if (C >= Code::kE4M3 || C == Code::kTable4 || V::kLookup) return {0, 1};
  if (C == Code::kSmallTable) return {static_cast<float>(f.byte_offset), 1 / f.byte_scale};
  return {static_cast<float>(f.offset), 1};
}

// The offset of bytes.
template <Code C>
float byte_offset(const Format& f) {
  return kSigned<C> ? 0.f : static_cast<float>(f.byte_offset);
}

struct Tables {
  V::Table values;
  V::Bytes bytes;
  V::Bytes parts[4];  // of values, of kTable4 where `kParts`
};

template <Code C>
Tables tables(const Format& f) {
  alignas(64) float values[16];
  alignas(64) uint8_t bytes[16] = {};
  for (int i = 0; i < 16; ++i) {
    values[i] = f.table ? f.table[i] : static_cast<float>((i & ((1 << f.bits) - 1)) - f.offset);
    if (f.bytes) bytes[i] = static_cast<uint8_t>(f.bytes[i] - (kSigned<C> ? f.byte_offset : 0));
  }
  Tables t{V::table(values), V::bytes(bytes), {}};
  if constexpr (C == Code::kTable4 && V::kParts) {
    for (int part = 0; part < 4; ++part) {
      for (int i = 0; i < 16; ++i) std::memcpy(bytes + i, reinterpret_cast<const uint8_t*>(values + i) + part, 1);
      t.parts[part] = V::bytes(bytes);
    }
  }
  return t;
}

// The position, within a unit, of byte b of the J-th quad.
constexpr int position(Code c, int j, int b) {
  switch (c) {
    case Code::kInt4:
    case Code::kTable4:
    case Code::kSmallTable: return 2 * b + j;
    case Code::kInt2: return 4 * b + j;
    case Code::kInt3: return 16 * (j / 4) + 4 * b + j % 4;
    default: return b;
  }
}

// Codes 4J … of a unit (in the order of `position`) as bytes, four to a lane.
template <Code C, int J, class Word>
inline Word bytes(const Word* words, const Tables& t) {
  if constexpr (C == Code::kInt8) {
    return kSigned<C> ? words[0] : V::bxor(words[0], 0x80808080u);
  } else if constexpr (C == Code::kInt4) {
    return V::band(V::template shr<4 * J>(words[0]), 0x0f0f0f0fu);
  } else if constexpr (kNibbles<C>) {
    return V::shuffle(t.bytes, V::band(V::template shr<4 * J>(words[0]), 0x0f0f0f0fu));
  } else if constexpr (C == Code::kInt2) {
    return V::band(V::template shr<2 * J>(words[0]), 0x03030303u);
  } else {
    const Word low = V::band(V::template shr<2 * (J % 4)>(words[J / 4]), 0x03030303u);
    if constexpr (J >= 2) {
      return V::bor(low, V::band(V::template shr<J - 2>(words[2]), 0x04040404u));
    } else {
      return V::bor(low, V::band(V::template shl<2 - J>(words[2]), 0x04040404u));
    }
  }
}

// The value of byte B of the J-th quad of a unit, for 16 rows, but for what `remainder_of` says.
template <Code C, int J, int B>
inline F value(const I* words, const Tables& t) {
  constexpr int K = position(C, J, B);
  if constexpr (C == Code::kInt8) {
    return V::to_float(B == 3 ? V::band(words[0], 0xff000000u) : V::template top<B>(words[0]));
  } else if constexpr (C >= Code::kE4M3) {
    // Sign, exponent and mantissa move into a float, whose exponent is then corrected; subnormals come out right.
    constexpr bool four = C == Code::kE4M3 || C == Code::kE4M3Z;
    constexpr float shift = C == Code::kE4M3 ? 0x1p120f : C == Code::kE4M3Z ? 0x1p119f : C == Code::kE5M2 ? 0x1p112f : 0x1p111f;
    const I high = B == 3 ? words[0] : V::template top<B>(words[0]);
    const I bits = V::band(V::template sar<four ? 4 : 3>(high), four ? 0x87f00000u : 0x8fe00000u);
    return V::mul(V::as_float(bits), V::set(shift));
  } else if constexpr (C == Code::kTable4 || (V::kLookup && kNibbles<C>)) {
    return V::lookup(t.values, V::template shr<4 * K>(words[0]));
  } else if constexpr (V::kLookup && C == Code::kInt2) {
    return V::lookup(t.values, V::template shr<2 * K>(words[0]));
  } else if constexpr (V::kLookup) {
    constexpr int i = K % 16, at = 8 * (i / 4) + 4 * (K / 16) + i % 4;
    const I low = V::template shr<2 * i>(words[K / 16]);
    I high;
    if constexpr (at >= 2) {
      high = V::template shr<at - 2>(words[2]);
    } else {
      high = V::template shl<2 - at>(words[2]);
    }
    return V::lookup(t.values, V::merge(low, high));  // bit 3 is arbitrary
  } else {
    return V::to_float(Of<C>::template byte<B>(bytes<C, J>(words, t)));
  }
}

// Loops whose index is a constant, so that arrays of registers stay in registers.
#define QUANTO_INLINE __attribute__((always_inline))

template <class Body, int... K>
QUANTO_INLINE inline void unrolled(std::integer_sequence<int, K...>, [[maybe_unused]] Body body) {
  (body(std::integral_constant<int, K>{}), ...);
}

template <int N, class Body>
QUANTO_INLINE inline void each(Body body) {
  unrolled(std::make_integer_sequence<int, N>{}, body);
}

// The values of all bytes of the J-th quad of a unit.
template <Code C, int J>
QUANTO_INLINE inline void values(const I* words, const Tables& t, F* out) {
  if constexpr (C == Code::kTable4 && V::kParts) {
    Of<C>::template look_up<J>(t.parts, words[0], out);
  } else {
    each<4>([&](auto b) QUANTO_INLINE { out[b] = value<C, J, b>(words, t); });
  }
}

}  // namespace
}  // namespace quanto
