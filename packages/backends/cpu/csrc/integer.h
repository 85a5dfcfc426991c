// SPDX-License-Identifier: Apache-2.0
// For many rows of int8: decodes a block of positions of the panels into bytes once, then multiplies it with all tiles.
// A block of 256 positions and two panels takes 8 KB, and stays in the first-level cache with a tile of activations.
// Bound by dot products: 24 to 28 for each 14 to 16 loads. Without an instruction for them, bytes of the full range are
// widened to 16 bits while they are decoded.
#pragma once

#include <array>

#include "source.h"

namespace quanto {
namespace {

template <Code C>
constexpr bool kWide = V::kWideBytes && kFull<C>;

// sums[T, 16 P] += (products of count quads - zero · x_sums) · scale · x_scales
template <Code C, int T, int P>
void multiply_quads(const int32_t* x, const uint8_t* quads, int64_t count, const F* scale, const F* zero, const float* x_scales,
                    const float* x_sums, float* sums) {
  I sum[T * P];
  each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = V::izero(); });
  if constexpr (kWide<C>) {
    for (int64_t k = 0; k < count; ++k, x += 2 * T, quads += 128 * P) {
      typename Of<C>::Wide w[P];
      each<P>([&](auto i) QUANTO_INLINE { w[i] = {V::load_words(quads + i * 128), V::load_words(quads + i * 128 + 64)}; });
      each<T>([&](auto m) QUANTO_INLINE {
        const auto even = V::spread(x[2 * m]), odd = V::spread(x[2 * m + 1]);
        each<P>([&](auto i) QUANTO_INLINE { sum[m * P + i] = Of<C>::dot(sum[m * P + i], w[i], even, odd); });
      });
    }
  } else {
    constexpr bool narrow = V::kNarrowSums && kQuads<C> != 0;
    for (int64_t k = 0; k < count;) {
      const int64_t stop = narrow ? std::min<int64_t>(count, k + kQuads<C>) : count;
      I part[T * P];
      each<T * P>([&](auto j) QUANTO_INLINE { part[j] = narrow ? V::izero() : sum[j]; });
      for (; k < stop; ++k, x += T, quads += 64 * P) {
        decltype(V::template quads<kFull<C>>(I{})) w[P];
        each<P>([&](auto i) QUANTO_INLINE { w[i] = V::template quads<kFull<C>>(V::load_words(quads + i * 64)); });
        each<T>([&](auto m) QUANTO_INLINE {
          const auto xs = V::spread(x[m]);
          each<P>([&](auto i) QUANTO_INLINE {
            constexpr int at = m * P + i;
            if constexpr (narrow) {
              part[at] = Of<C>::dot16(part[at], w[i], xs);
            } else {
              part[at] = Of<C>::dot(part[at], w[i], xs);
            }
          });
        });
      }
      each<T * P>([&](auto j) QUANTO_INLINE {
        if constexpr (narrow) {
          sum[j] = Of<C>::widen(sum[j], part[j]);
        } else {
          sum[j] = part[j];
        }
      });
    }
  }
  each<T>([&](auto m) QUANTO_INLINE {
    const F xs = V::set(x_scales[m]), total = V::set(x_sums[m]);
    each<P>([&](auto i) QUANTO_INLINE {
      float* to = sums + (m * P + i) * kRows;
      const F y = V::fnmadd(zero[i], total, V::to_float(sum[m * P + i]));
      V::store(to, V::fmadd(y, V::mul(scale[i], xs), V::load(to)));
    });
  });
}

using MultiplyQuads = void (*)(const int32_t*, const uint8_t*, int64_t, const F*, const F*, const float*, const float*, float*);
template <Code C, int P, int... T>
constexpr std::array<MultiplyQuads, sizeof...(T)> quads_table(std::integer_sequence<int, T...>) {
  return {multiply_quads<C, T + 1, P>...};
}

// Bytes of units begin … end of a panel: out[quad * stride], 16 rows each.
template <Code C>
void decode_bytes(const Panel& p, const Tables& t, int64_t begin, int64_t end, uint8_t* out, int stride) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  for (int64_t u = begin; u < end; ++u, out += U / 4 * stride) {
    I words[N];
    for (int j = 0; j < N; ++j) {
      words[j] = V::load_words(p.codes + (u * N + j) * 64);
      V::prefetch(p.codes + (u * N + j) * 64 + kAhead);
    }
    each<U / 4>([&](auto j) QUANTO_INLINE {
      uint8_t* to = out + j * stride;
      const I made = bytes<C, j>(words, t);
      if constexpr (kWide<C>) {
        const auto wide = Of<C>::wide(made);
        V::store_words(to, wide.even);
        V::store_words(to + 64, wide.odd);
      } else {
        V::store_words(to, made);
      }
    });
  }
}

template <Code C>
void integer_blocks(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = V::kWidth, U = kUnit<C>, E = kWide<C> ? 128 : 64;
  static constexpr auto table = quads_table<C, P>(std::make_integer_sequence<int, V::kIntegerTile>{});
  const MultiplyQuads kernel = table[a.tile - 1];
  const Tables t = tables<C>(*w.format);
  const int64_t tiles = (a.rows + a.tile - 1) / a.tile;
  alignas(64) uint8_t quads[kDecodedAtOnce / 4 * E * P];
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
        z[i] = zero_of(w, panels[i], q, byte_offset<C>(*w.format));
      }
      for (int64_t b = 0; b < a.blocks; ++b) {
        const int64_t unit = q * w.units + b * a.block, last = unit + std::min(a.block, w.units - b * a.block);
        for (int i = 0; i < P; ++i) decode_bytes<C>(panels[i], t, unit, last, quads + i * E, E * P);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t at = ((tile * w.groups + q) * a.blocks + b) * a.tile;
          kernel(a.quads + (tile * w.padded() + unit * U) / 4 * a.tile * (E / 64), quads, (last - unit) * U / 4, s, z, a.scales + at, a.sums + at,
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
