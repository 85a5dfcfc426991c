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
  std::unique_ptr<float[]> buffer(a.tile == 1 ? nullptr : new float[padded * a.tile]);
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

// What a block of floats is rounded by: the largest is 127 steps, and neighbours within a quad add up to 128 at the most
// where kernels ask for that.
template <class Vector>
float top_of(Code code, const float* values, int64_t count) {
  const float peak = Vector::peak(values, count);
  if constexpr (Vector::kPairs) {
    constexpr float steps = 127 / 127.9f;  // not 128: each of the two may be rounded up
    if (code == Code::kInt8) return std::max(peak, Vector::template pair_peak<1>(values, count) * steps);
    if (code == Code::kTable4) return std::max(peak, Vector::template pair_peak<2>(values, count) * steps);
  }
  return peak;
}

// Bytes from row to row of a tile, before they lie side by side: at multiples of 4 KB all would share one set of the cache.
inline int64_t rows_apart(const Weight& w) { return w.padded() + 64; }

// Takes the second of each two int8 that add up to too much out of a block of the rows of a tile, into quads that come a
// second time.
void split_pairs(const Weight& w, int8_t* rows, int64_t first, int64_t last, int64_t at, int32_t& rests, Activations& a) {
  const int64_t apart = rows_apart(w);
  const auto heavy = [](const int8_t* pair) { return std::abs(pair[0] + pair[1]) > 128; };
  int32_t count = 0;
  for (int64_t i = first; i < last; ++i) {
    bool any = false;
    for (int m = 0; m < a.tile; ++m) any |= heavy(rows + m * apart + 4 * i) || heavy(rows + m * apart + 4 * i + 2);
    if (!any) continue;
    for (int m = 0; m < a.tile; ++m) {
      int8_t *from = rows + m * apart + 4 * i, rest[4] = {};
      for (int pair = 0; pair < 4; pair += 2) {
        if (heavy(from + pair)) std::swap(from[pair + 1], rest[pair + 1]);
      }
      std::memcpy(a.rest + at + count * a.tile + m, rest, 4);
    }
    a.rest_places[at / a.tile + count++] = static_cast<int32_t>(i - first);
  }
  rests = count;
}

// Where sums of products of quads first … last of a row begin, each `run` of them in 16 bits.
void start_runs(const Format& f, const int8_t* codes, int64_t first, int64_t last, const Activations& a, int32_t* starts) {
  for (; first < last; first += a.run, starts += a.tile) {
    int32_t two[2] = {};
    for (int64_t i = first; i < std::min(last, first + a.run); ++i) {
      two[0] += codes[4 * i] + codes[4 * i + 1], two[1] += codes[4 * i + 2] + codes[4 * i + 3];
    }
    const auto low = static_cast<uint32_t>(-f.byte_offset * two[0]), high = static_cast<uint32_t>(-f.byte_offset * two[1]);
    *starts = static_cast<int32_t>((low & 0xffff) | high << 16);
  }
}

bool prepare_integer(const Weight& w, const void* x, Type type, int64_t stride, Activations& a, int64_t begin, int64_t end) {
  const Format& f = *w.format;
  const int64_t padded = w.padded(), length = w.units * f.unit, runs = runs_of(w, a), apart = rows_apart(w);
  std::unique_ptr<float[]> values(new float[padded]);
  std::unique_ptr<int8_t[]> rows(new int8_t[apart * a.tile]);
  for (int64_t tile = begin; tile < end; ++tile) {
    for (int m = 0; m < a.tile; ++m) {
      int8_t* codes = rows.get() + m * apart;
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
      float scale = 0;
      for (int64_t q = 0; q < w.groups; ++q) {
        for (int64_t b = 0; b < a.blocks; ++b) {
          const int64_t first = (q * w.units + b * a.block) * f.unit, count = std::min(a.block, w.units - b * a.block) * f.unit;
          const int64_t at = scales_at(w, a, tile, q, b) + m;
          const Part part = part_of(w, a, q, b);
          if (type != Type::kInt8 && part.within == 0) {
            const float top = row < a.rows ? top_of<V>(f.code, values.get() + first, part.size * 4) : 0.f;
            // 127 / top would be infinite; or sums that lack the scale of a feature.
            if (!(top < 0x1p100f) || (top != 0 && top < 0x1p-100f)) return false;
            scale = top / 127.f;
            if (row < a.rows) V::quantize(values.get() + first, top == 0 ? 0.f : 127.f / top, part.size * 4, codes + first);
          }
          if (type != Type::kInt8) a.scales[at] = scale;
          int32_t sum = 0;
          for (int64_t i = first; i < first + count; ++i) sum += codes[i];
          a.sums[at] = static_cast<float>(sum);
          if (a.starts && !a.run) a.starts[starts_at(w, a, tile, q, b, 1) + m] = -f.byte_offset * sum;
        }
      }
      reorder(f.code, codes, padded);
      for (int64_t q = 0; a.run && q < w.groups; ++q) {
        for (int64_t b = 0; b < a.blocks; ++b) {
          const int64_t first = (q * w.units + b * a.block) * f.unit / 4;
          const int64_t count = std::min(a.block, w.units - b * a.block) * f.unit / 4;
          start_runs(f, codes, first, first + count, a, a.starts + starts_at(w, a, tile, q, b, runs) + m);
        }
      }
    }
    for (int64_t q = 0; q < w.groups; ++q) {
      for (int64_t b = 0; b < a.blocks; ++b) {
        const Part part = part_of(w, a, q, b);
        if (part.within != 0) continue;
        const int64_t at = quads_at(w, a, tile, q, b);
        if (a.rests) {
          int32_t& rests = a.rests[scales_at(w, a, tile, q, b) / a.tile];
          split_pairs(w, rows.get(), part.first, part.first + part.size, at, rests, a);
        }
        int32_t* to = a.quads + at;
        for (int64_t i = part.first; i < part.first + part.size; ++i, to += a.tile) {
          for (int m = 0; m < a.tile; ++m) std::memcpy(to + m, rows.get() + m * apart + 4 * i, 4);
        }
      }
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
