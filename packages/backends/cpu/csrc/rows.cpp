// SPDX-License-Identifier: Apache-2.0
#include "rows.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "scalar.h"

namespace quanto {
namespace {

float value_of(const Format& f, int code) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const float sign = code & 0x80 ? -1.f : 1.f;
  const uint32_t rest = code & 0x7f;
  switch (f.code) {
    case Code::kInt8: return static_cast<int8_t>(code);
    case Code::kTable4:
    case Code::kSmallTable: return f.table[code];
    case Code::kE4M3: return rest == 0x7f ? nan : sign * (bits_to_float(rest << 20) * 0x1p120f);
    case Code::kE4M3Z: return code == 0x80 ? nan : sign * (bits_to_float(rest << 20) * 0x1p119f);
    case Code::kE5M2: return rest >= 0x7c ? nan : sign * (bits_to_float(rest << 21) * 0x1p112f);
    case Code::kE5M2Z: return code == 0x80 ? nan : sign * (bits_to_float(rest << 21) * 0x1p111f);
    default: return static_cast<float>(code - f.offset);
  }
}

}  // namespace

float load_number(const void* data, int64_t index, Type type) { return load_scalar(data, index, type); }

RowDecoder::RowDecoder(const Weight& w) : w_(w), values_(size_t{1} << w.format->bits) {
  for (size_t code = 0; code < values_.size(); ++code) values_[code] = value_of(*w.format, static_cast<int>(code));
}

void RowDecoder::operator()(int64_t row, void* out, Type type) const {
  const Format& f = *w_.format;
  const int64_t panel = row / kRows, lane = row % kRows;
  const bool ready = panel < w_.ready;
  const uint8_t* words = w_.codes + (ready ? panel * kRows * w_.stride + lane * 4 : row * w_.stride);
  const int mask = (1 << f.bits) - 1;
  for (int64_t q = 0; q < w_.groups; ++q) {
    const int64_t at = ready ? (panel * w_.groups + q) * kRows + lane
                             : row / w_.scale_rows * w_.scale_stride + (w_.scale_stride ? q : 0);
    const float scale = load_scalar(w_.scale, at, w_.scale_type);
    const float zero = w_.zero_type == Type::kNone ? 0 : load_scalar(w_.zero, at, w_.zero_type);
    const int64_t first = q * w_.group, end = std::min(w_.k, first + w_.group);
    for (int64_t i = first; i < end; ++i) {
      int code;
      if (!ready) {
        const int64_t bit = i * f.bits;
        int two = words[bit / 8];
        if (bit % 8 + f.bits > 8) two |= words[bit / 8 + 1] << 8;
        code = two >> (bit % 8) & mask;
      } else {
        const int64_t unit = q * w_.units + (i - first) / f.unit;
        const int in = static_cast<int>((i - first) % f.unit);
        const auto word = [&](int j) {
          uint32_t out;
          std::memcpy(&out, words + (unit * f.words + j) * kRows * 4, 4);
          return out;
        };
        if (f.words == 1) {
          code = static_cast<int>(word(0) >> (in * f.bits)) & mask;
        } else {
          const int part = in % 16;
          const uint32_t high = word(2) >> (8 * (part / 4) + 4 * (in / 16) + part % 4) & 1;
          code = static_cast<int>((word(in / 16) >> (2 * part) & 3) | high << 2);
        }
      }
      store_scalar(out, i, type, (values_[code] - zero) * scale * w_.global, 0);
    }
  }
}

}  // namespace quanto
