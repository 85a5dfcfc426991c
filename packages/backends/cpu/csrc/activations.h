// SPDX-License-Identifier: Apache-2.0
// Rows of activations into the tiles that kernels read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "decode.h"

namespace quanto {
namespace {

// Row `row` of x as floats at their padded positions; what pads groups is zero.
void load_row(const Weight& w, const void* x, Type type, int64_t stride, int64_t row, float* out) {
  const int64_t length = w.units * w.format->unit;
  for (int64_t q = 0; q < w.groups; ++q) {
    const int64_t first = q * w.group, count = std::min(w.group, w.k - first);
    V::load_many(x, row * stride + first, type, count, out + q * length);
    std::fill(out + q * length + count, out + (q + 1) * length, 0.f);
  }
}

bool prepare_exact(const Weight& w, const void* x, Type type, int64_t stride, Activations& a, int64_t begin, int64_t end) {
  const int64_t padded = w.padded(), length = w.units * w.format->unit;
  std::unique_ptr<float[]> buffer(new float[padded * a.tile]);
  bool finite = true;
  for (int64_t tile = begin; tile < end; ++tile) {
    float* to = a.values + tile * padded * a.tile;
    for (int m = 0; m < a.tile; ++m) {
      const int64_t row = tile * a.tile + m;
      float* values = a.tile == 1 ? to : buffer.get() + m * padded;
      if (row < a.rows) {
        load_row(w, x, type, stride, row, values);
      } else {
        std::fill_n(values, padded, 0.f);
      }
      if (!a.sums) continue;
      for (int64_t q = 0; q < w.groups; ++q) {
        a.sums[(tile * w.groups + q) * a.tile + m] = V::sum(values + q * length, length);
        finite &= V::peak(values + q * length, length) < 0x1p60f;  // infinity, NaN, and what factors would make infinite
      }
    }
    if (a.tile == 1) continue;
    for (int64_t k = 0; k < padded; ++k) {
      for (int m = 0; m < a.tile; ++m) to[k * a.tile + m] = buffer[m * padded + k];
    }
  }
  return finite;
}

// Puts the bytes of each unit in the order of `position`: those of a quad side by side.
void reorder(Code code, int8_t* codes, int64_t count) {
  if (code == Code::kInt8) return;
#if defined(__clang__)
  int8_t order[16];
#else
  typedef int8_t Bytes __attribute__((vector_size(16)));
  Bytes order{};
#endif
  const int unit = code == Code::kInt2 || code == Code::kInt3 ? 16 : 8;
  for (int i = 0; i < 16; ++i) order[i] = static_cast<int8_t>(i / unit * unit + position(code, i % unit / 4, i % 4));
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
#if defined(__clang__)
    int8_t bytes[16];
    for (int j = 0; j < 16; ++j) bytes[j] = codes[i + order[j]];
#else
    Bytes bytes;
    std::memcpy(&bytes, codes + i, 16);
    bytes = __builtin_shuffle(bytes, order);
#endif
    std::memcpy(codes + i, &bytes, 16);
  }
  if (i < count) {  // half a register: one unit of four bits
    int8_t last[8];
    std::memcpy(last, codes + i, 8);
    for (int j = 0; j < 8; ++j) codes[i + j] = last[order[j]];
  }
}

bool prepare_integer(const Weight& w, const void* x, Type type, int64_t stride, Activations& a, int64_t begin, int64_t end) {
  const Format& f = *w.format;
  const int64_t padded = w.padded(), length = w.units * f.unit;
  std::unique_ptr<float[]> values(new float[padded]);
  std::unique_ptr<int8_t[]> rows(new int8_t[padded * a.tile]);
  for (int64_t tile = begin; tile < end; ++tile) {
    for (int m = 0; m < a.tile; ++m) {
      int8_t* codes = rows.get() + m * padded;
      const int64_t row = tile * a.tile + m;
      if (row >= a.rows || type == Type::kInt8) std::fill_n(codes, padded, int8_t{0});
      if (row < a.rows && type == Type::kInt8) {
        for (int64_t q = 0; q < w.groups; ++q) {
          const int64_t first = q * w.group, count = std::min(w.group, w.k - first);
          std::memcpy(codes + q * length, static_cast<const int8_t*>(x) + row * stride + first, count);
        }
      } else if (row < a.rows) {
        load_row(w, x, type, stride, row, values.get());
      }
      for (int64_t q = 0; q < w.groups; ++q) {
        for (int64_t b = 0; b < a.blocks; ++b) {
          const int64_t first = (q * w.units + b * a.block) * f.unit, count = std::min(a.block, w.units - b * a.block) * f.unit;
          const int64_t at = ((tile * w.groups + q) * a.blocks + b) * a.tile + m;
          if (type != Type::kInt8) {
            const float peak = row < a.rows ? V::peak(values.get() + first, count) : 0.f;
            if (!std::isfinite(peak)) return false;
            a.scales[at] = peak / 127.f;
            if (row < a.rows) V::quantize(values.get() + first, peak == 0 ? 0.f : 127.f / peak, count, codes + first);
          }
          int32_t sum = 0;
          for (int64_t i = first; i < first + count; ++i) sum += codes[i];
          a.sums[at] = static_cast<float>(sum);
        }
      }
      reorder(f.code, codes, padded);
    }
    if (a.wide) {
      auto* to = reinterpret_cast<int16_t*>(a.quads + tile * padded / 2 * a.tile);
      for (int64_t i = 0; i < padded; i += 4) {
        for (int m = 0; m < a.tile; ++m, to += 4) {
          const int8_t* from = rows.get() + m * padded + i;
          to[0] = from[0], to[1] = from[2], to[2] = from[1], to[3] = from[3];
        }
      }
      continue;
    }
    int32_t* to = a.quads + tile * padded / 4 * a.tile;
    for (int64_t i = 0; i < padded / 4; ++i, to += a.tile) {
      for (int m = 0; m < a.tile; ++m) std::memcpy(to + m, rows.get() + m * padded + 4 * i, 4);
    }
  }
  return true;
}

void tokens(const void* x, Type type, int64_t k, int8_t* codes, float* scales, int64_t begin, int64_t end) {
  std::unique_ptr<float[]> buffer(new float[k]);
  for (int64_t row = begin; row < end; ++row) {
    V::load_many(x, row * k, type, k, buffer.get());
    const float peak = V::peak(buffer.get(), k);
    const float scale = peak == 0 ? 1.f : peak == peak ? std::max(peak / 127.5f, 0x1p-126f) : peak;
    scales[row] = scale;
    V::quantize(buffer.get(), 1 / scale, k, codes + row * k);
  }
}

}  // namespace
}  // namespace quanto
