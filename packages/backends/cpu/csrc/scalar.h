// SPDX-License-Identifier: Apache-2.0
// Conversions of single numbers, for tails and for processors without an instruction.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "format.h"

namespace quanto {
namespace {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float bfloat16_to_float(uint16_t bits) { return bits_to_float(uint32_t{bits} << 16); }

// To the nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if (value != value) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, rest = half & 0x7fffu;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Exponent and mantissa moved into a float, then multiplied by 2**112: subnormals come out right.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * 0x1p112f));
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000;
  uint32_t rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (rest >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and more round to infinity
  if (rest < 0x38800000) {  // subnormal: adding 0.5 lets the hardware round to a multiple of 2**-24
    const float shifted = bits_to_float(rest) + 0.5f;
    return static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000));
  }
  rest += 0xfff + (rest >> 13 & 1);
  return static_cast<uint16_t>(sign | (rest - 0x38000000) >> 13);
}

inline float load_scalar(const void* data, int64_t index, Type type) {
  switch (type) {
    case Type::kFloat: return static_cast<const float*>(data)[index];
    case Type::kBFloat16: return bfloat16_to_float(static_cast<const uint16_t*>(data)[index]);
    case Type::kHalf: return half_to_float(static_cast<const uint16_t*>(data)[index]);
    case Type::kInt8: return static_cast<const int8_t*>(data)[index];
    default: return 0;
  }
}

inline int8_t nearest_int8(float v) {
  v = std::nearbyint(v);
  return v != v ? 0 : static_cast<int8_t>(v < -128 ? -128 : v > 127 ? 127 : v);
}

// int8: rounded to a multiple of `scale`, as codes; NaN becomes 0.
inline void store_scalar(void* data, int64_t index, Type type, float value, float scale) {
  switch (type) {
    case Type::kFloat: static_cast<float*>(data)[index] = value; break;
    case Type::kBFloat16: static_cast<uint16_t*>(data)[index] = float_to_bfloat16(value); break;
    case Type::kHalf: static_cast<uint16_t*>(data)[index] = float_to_half(value); break;
    case Type::kInt8: static_cast<int8_t*>(data)[index] = nearest_int8(value / scale); break;
    default: break;
  }
}

}  // namespace
}  // namespace quanto
