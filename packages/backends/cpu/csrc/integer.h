// SPDX-License-Identifier: Apache-2.0
// For many rows of int8: decodes a block of positions of the panels into bytes once, then multiplies it with all tiles.
// A block of 256 positions and two panels takes 8 KB, and stays in the first-level cache with a tile of activations.
// Bound by dot products: 24 to 28 for each 14 to 16 loads.
#pragma once

#include <array>

#include "source.h"

namespace quanto {
namespace {

// sums[T, 16 P] += (products of count quads - zero · x_sums) · scale · x_scales
template <bool Full, int T, int P>
void multiply_quads(const int32_t* x, const uint8_t* quads, int64_t count, const F* scale, const F* zero, const float* x_scales,
                    const float* x_sums, float* sums) {
  I sum[T * P];
  each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = V::izero(); });
  for (int64_t k = 0; k < count; ++k, x += T, quads += 64 * P) {
    decltype(V::template quads<Full>(I{})) w[P];
    each<P>([&](auto i) QUANTO_INLINE { w[i] = V::template quads<Full>(V::load_words(quads + i * 64)); });
    each<T>([&](auto m) QUANTO_INLINE {
      const auto xs = V::template spread<Full>(x[m]);
      each<P>([&](auto i) QUANTO_INLINE { sum[m * P + i] = V::dot(sum[m * P + i], w[i], xs); });
    });
  }
  each<T>([&](auto m) QUANTO_INLINE {
    const F xs = V::set(x_scales[m]), total = V::set(x_sums[m]);
    each<P>([&](auto i) QUANTO_INLINE {
      float* to = sums + (m * P + i) * kRows;
      const F y = V::mul(V::fnmadd(zero[i], total, V::to_float(sum[m * P + i])), V::mul(scale[i], xs));
      V::store(to, V::add(V::load(to), y));
    });
  });
}

using MultiplyQuads = void (*)(const int32_t*, const uint8_t*, int64_t, const F*, const F*, const float*, const float*, float*);
template <bool Full, int P, int... T>
constexpr std::array<MultiplyQuads, sizeof...(T)> quads_table(std::integer_sequence<int, T...>) {
  return {multiply_quads<Full, T + 1, P>...};
}

// Bytes of units begin … end of a panel: out[quad * stride], 16 rows each.
template <Code C>
void decode_bytes(const Panel& p, const Tables& t, int64_t begin, int64_t end, uint8_t* out, int stride) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  for (int64_t u = begin; u < end; ++u, out += U / 4 * stride) {
    I words[N];
    for (int j = 0; j < N; ++j) words[j] = V::load_words(p.codes + (u * N + j) * 64);
    each<U / 4>([&](auto j) QUANTO_INLINE { V::store_words(out + j * stride, bytes<C, j>(words, t)); });
  }
}

template <Code C>
void integer_blocks(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = V::kWidth, U = kUnit<C>, kMost = 1024;  // positions decoded at once
  static constexpr auto table = quads_table<kFull<C>, P>(std::make_integer_sequence<int, V::kIntegerTile>{});
  const MultiplyQuads kernel = table[a.tile - 1];
  const Tables t = tables(*w.format);
  const int64_t tiles = (a.rows + a.tile - 1) / a.tile;
  alignas(64) uint8_t quads[kMost / 4 * 64 * P];
  const Scratch<float> sums(tiles * a.tile * kRows * P);
  Panels source(w);
  for (int64_t first = begin; first < end; first += P) {
    const int count = static_cast<int>(std::min<int64_t>(P, end - first));
    Panel panels[P];
    for (int i = 0; i < P; ++i) panels[i] = i < count ? source.get(first + i, i) : panels[0];
    std::fill_n(sums.get(), tiles * a.tile * kRows * P, 0.f);
    for (int64_t q = 0; q < w.groups; ++q) {
      F s[P], z[P];
      for (int i = 0; i < P; ++i) {
        s[i] = scale_of(w, panels[i], q);
        z[i] = zero_of(w, panels[i], q, static_cast<float>(w.format->byte_offset));
      }
      for (int64_t b = 0; b < a.blocks; ++b) {
        const int64_t unit = q * w.units + b * a.block, last = unit + std::min(a.block, w.units - b * a.block);
        for (int i = 0; i < P; ++i) decode_bytes<C>(panels[i], t, unit, last, quads + i * 64, 64 * P);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t at = ((tile * w.groups + q) * a.blocks + b) * a.tile;
          kernel(a.quads + (tile * w.padded() + unit * U) / 4 * a.tile, quads, (last - unit) * U / 4, s, z, a.scales + at, a.sums + at,
                 sums.get() + tile * a.tile * kRows * P);
        }
      }
    }
    for (int64_t row = 0; row < a.rows; ++row) {
      for (int i = 0; i < count; ++i) {
        const F y = V::load(sums.get() + (row * P + i) * kRows);
        store_row(w, out, panels[i], first + i, row, y, w.global * w.format->byte_scale);
      }
    }
  }
}

}  // namespace
}  // namespace quanto
