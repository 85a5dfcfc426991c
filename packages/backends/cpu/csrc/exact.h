// SPDX-License-Identifier: Apache-2.0
// For many rows of floats: decodes 256 positions of the panels into a buffer once, then multiplies it with all tiles as
// sgemm would. Bound by fused multiply-adds.
#pragma once

#include <array>

#include "ahead.h"

namespace quanto {
namespace {

// Values of units begin … end of a panel: out[position * stride], 16 rows each.
template <Code C>
void decode_units(const Weight& w, const Panel& p, int64_t begin, int64_t end, float* out, int stride) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  const Tables t = tables<C>(*w.format);
  const auto [offset, factor] = remainder_of<C>(*w.format);
  const F f = V::set(factor), inverse = V::set(1 / factor);
  const bool shifted = offset != 0 || w.zero_type != Type::kNone;
  int64_t group = -1;
  F s = V::zero(), z = V::zero();
  for (int64_t u = begin; u < end; ++u, out += U * stride) {
    if (u / w.units != group) {
      group = u / w.units;
      s = V::mul(scale_of(w, p, group), inverse);
      z = V::add(V::mul(zero_of(w, p, group, 0), f), V::set(offset));
    }
    I words[N];
    for (int j = 0; j < N; ++j) {
      words[j] = V::load_words(p.codes + (u * N + j) * 64);
      ask_early(p.codes + (u * N + j) * 64 + kFarAhead);
    }
    each<U / 4>([&](auto j) QUANTO_INLINE {
      F v[4];
      values<C, j>(words, t, v);
      each<4>([&](auto b) QUANTO_INLINE {
        V::store(out + position(C, j, b) * stride, V::mul(shifted ? V::sub(v[b], z) : v[b], s));
      });
    });
  }
}

// sums[T, 16 P] += x[count, T]^T · values[count, 16 P]
template <int T, int P>
void multiply(const float* x, const float* values, int64_t count, float* sums) {
  F sum[T * P];
  each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = V::load(sums + j * kRows); });
  for (int64_t k = 0; k < count; ++k, x += T, values += kRows * P) {
    F v[P];
    each<P>([&](auto i) QUANTO_INLINE { v[i] = V::load(values + i * kRows); });
    each<T>([&](auto m) QUANTO_INLINE {
      const F xs = V::set(x[m]);
      each<P>([&](auto i) QUANTO_INLINE { sum[m * P + i] = V::fmadd(v[i], xs, sum[m * P + i]); });
    });
  }
  each<T * P>([&](auto j) QUANTO_INLINE { V::store(sums + j * kRows, sum[j]); });
}

constexpr int kChunk = 256;  // positions decoded at once; with two panels 32 KB, the size of a first-level cache

using Multiply = void (*)(const float*, const float*, int64_t, float*);
template <int P, int... T>
constexpr std::array<Multiply, sizeof...(T)> multiply_table(std::integer_sequence<int, T...>) {
  return {multiply<T + 1, P>...};
}

template <Code C>
void exact_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = V::kWidth, U = kUnit<C>, step = kChunk / U;
  static constexpr auto table = multiply_table<P>(std::make_integer_sequence<int, V::kExactTile>{});
  const Multiply kernel = table[a.tile - 1];
  const int64_t tiles = (a.rows + a.tile - 1) / a.tile, units = w.groups * w.units;
  alignas(64) float values[kChunk * kRows * P];
  const Buffer<float> sums = allocate<float>(tiles * a.tile * kRows * P);
  Panels source(w);
  for (int64_t first = begin; first < end; first += P) {
    Panel panels[P];
    const int count = source.fill(panels, first, end);
    std::fill_n(sums.get(), tiles * a.tile * kRows * P, 0.f);
    const Results results{w, out, panels, first, a.rows, count, P, w.global};
    for (int64_t u = 0; u < units; u += step) {
      const int64_t last = std::min(units, u + step);
      for (int i = 0; i < count; ++i) decode_units<C>(w, panels[i], u, last, values + i * kRows, kRows * P);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        float* to = sums.get() + tile * a.tile * kRows * P;
        kernel(a.values + (tile * w.padded() + u * U) * a.tile, values, (last - u) * U, to);
        if (last == units) store_tile(results, tile, a.tile, to);
      }
    }
  }
}

}  // namespace
}  // namespace quanto
