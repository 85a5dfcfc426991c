// SPDX-License-Identifier: Apache-2.0
#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "scalar.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
// Compiled once for each of these, chosen by the loader.
#define QUANTO_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define QUANTO_CLONES
#endif

namespace quanto {
namespace {

QUANTO_CLONES void encode_integers(const float* values, int64_t count, float scale, float zero, bool whole, float low, float high,
                                   float shift, uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i) {
    float v = values[i] / scale;
    v = whole ? std::nearbyint(v) + zero : std::nearbyint(v + zero);
    v = v == v ? v : 0.f;
    v = v < low ? low : v > high ? high : v;
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(v + shift));
  }
}

// A float8 with `mantissa` bits and an exponent bias, saturated at `largest`.
struct Float8 {
  int mantissa, bias;
  float largest;
  bool unsigned_zero;  // "fnuz": no negative zero, NaN in its place
};

uint8_t encode_float8(float v, const Float8& f) {
  const uint32_t bits = float_to_bits(v);
  const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  if (v != v) return f.unsigned_zero ? 0x80 : static_cast<uint8_t>(sign | 0x7f);
  const float magnitude = std::min(std::fabs(v), f.largest);
  const int drop = 23 - f.mantissa;
  uint32_t code;
  if (magnitude < std::ldexp(1.f, 1 - f.bias)) {
    code = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, f.bias - 1 + f.mantissa)));  // subnormal
  } else {
    uint32_t rest = float_to_bits(magnitude);
    rest += (1u << (drop - 1)) - 1 + (rest >> drop & 1);
    code = (rest >> drop) - (static_cast<uint32_t>(127 - f.bias) << f.mantissa);
  }
  return static_cast<uint8_t>(code | (f.unsigned_zero && code == 0 ? 0 : sign));
}

Float8 float8_of(Code code) {
  switch (code) {
    case Code::kE4M3: return {3, 7, 448, false};
    case Code::kE4M3Z: return {3, 8, 240, true};
    case Code::kE5M2: return {2, 15, 57344, false};
    default: return {2, 16, 57344, true};
  }
}

}  // namespace

Encoder::Encoder(const Format& format) : format_(format) {
  if (!format.table) return;
  uint8_t order[16];
  std::iota(order, order + 16, uint8_t{0});
  std::stable_sort(order, order + 16, [&](uint8_t a, uint8_t b) { return format.table[a] < format.table[b]; });
  for (const uint8_t code : order) {
    if (format.table[code] == 0 && std::signbit(format.table[code])) continue;  // the code of +0 stands for both
    if (format.table[code] == 0) zero_ = code;
    sorted_[entries_] = format.table[code];
    order_[entries_++] = code;
  }
}

void Encoder::operator()(const float* values, int64_t count, float scale, float zero, bool whole, uint8_t* codes) const {
  const Format& f = format_;
  if (f.code <= Code::kInt2) {
    const float high = static_cast<float>((1 << (f.bits - 1)) - 1);
    encode_integers(values, count, scale, zero, whole, -high - 1, high, static_cast<float>(f.offset), codes);
    return;
  }
  if (f.table) {
    for (int64_t i = 0; i < count; ++i) {
      const float v = values[i] / scale;
      int at = 0;
      while (at + 1 < entries_) {
        const float middle = (sorted_[at] + sorted_[at + 1]) / 2;
        if (v < middle || (v == middle && order_[at] % 2 == 0)) break;
        ++at;
      }
      codes[i] = v == v ? order_[at] : zero_;
    }
    return;
  }
  const Float8 kind = float8_of(f.code);
  for (int64_t i = 0; i < count; ++i) codes[i] = encode_float8(values[i] / scale, kind);
}

QUANTO_CLONES void pack_row(const uint8_t* codes, int64_t count, int bits, uint8_t* out) {
  if (bits == 4) {
    for (int64_t i = 0; i < count / 2; ++i) out[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    if (count % 2) out[count / 2] = codes[count - 1];
    return;
  }
  std::memset(out, 0, (count * bits + 7) / 8);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = i * bits;
    out[at / 8] = static_cast<uint8_t>(out[at / 8] | codes[i] << (at % 8));
    if (at % 8 + bits > 8) out[at / 8 + 1] = static_cast<uint8_t>(codes[i] >> (8 - at % 8));
  }
}

QUANTO_CLONES void unpack_row(const uint8_t* packed, int64_t count, int bits, uint8_t* out) {
  if (bits == 4) {
    for (int64_t i = 0; i < count / 2; ++i) out[2 * i] = packed[i] & 15, out[2 * i + 1] = packed[i] >> 4;
    if (count % 2) out[count - 1] = packed[count / 2] & 15;
    return;
  }
  const int mask = (1 << bits) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = i * bits;
    int two = packed[at / 8];
    if (at % 8 + bits > 8) two |= packed[at / 8 + 1] << 8;
    out[i] = static_cast<uint8_t>(two >> (at % 8) & mask);
  }
}

}  // namespace quanto
