// SPDX-License-Identifier: Apache-2.0
// For many rows of int8: decodes a block of positions of the panels into bytes once, then multiplies it with all tiles.
// A block of 256 positions and two panels takes 8 KB, and stays in the first-level cache with a tile of activations.
// Bound by dot products: 12 to 28 for each 5 to 16 loads.
#pragma once

#include "ahead.h"
#include "matrix.h"

namespace quanto {
namespace {

// Products of one quad of T rows and P panels, into sums of 32 bits, or of 16 where `narrow`.
template <Code C, int T, int P, bool narrow>
QUANTO_INLINE inline void multiply_quad(const int32_t* x, const uint8_t* quads, I* sum) {
  I w[P];
  each<P>([&](auto i) QUANTO_INLINE { w[i] = V::load_words(quads + i * 64); });
  each<T>([&](auto m) QUANTO_INLINE {
    const auto xs = V::spread(x[m]);
    each<P>([&](auto i) QUANTO_INLINE {
      constexpr int at = m * P + i;
      if constexpr (narrow) {
        sum[at] = Of<C>::dot16(sum[at], w[i], xs);
      } else {
        sum[at] = Of<C>::dot(sum[at], w[i], xs);
      }
    });
  });
}

// How often loops over quads are unrolled: twice takes 6 % less time for int4 and 1 to 3 % less for int8 on AVX2, but half as
// much again on AVX-512, where sums leave no register free.
constexpr int kUnrolled = V::kRegisters == 2 ? 2 : 1;

// A block of activations: quads with their scales and sums, and the quads that come a second time.
struct Block {
  const int32_t* x;
  const float *scales, *sums;
  const int32_t *rest, *places;
  int64_t rests;
};

// sums[T, 16 P] += (products of count quads - zero · x_sums) · scale · x_scales
template <Code C, int T, int P>
void multiply_quads(const Block& b, const uint8_t* quads, int64_t count, const F* scale, const F* zero, float* sums) {
  constexpr bool narrow = V::kNarrowSums && kQuads<C> != 0;
  const int32_t* x = b.x;
  const uint8_t* w = quads;
  I sum[T * P];
  each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = V::izero(); });
  if constexpr (kMatrix) {
    static_assert(P == 1, "panels one by one");
    matrix_sums<T>(x, quads, count, 64, sum);
  } else if constexpr (narrow) {
    for (int64_t k = 0; k < count;) {
      I part[T * P];
      each<T * P>([&](auto j) QUANTO_INLINE { part[j] = V::izero(); });
#pragma GCC unroll kUnrolled
      for (const int64_t stop = std::min<int64_t>(count, k + kQuads<C>); k < stop; ++k, x += T, w += 64 * P) {
        multiply_quad<C, T, P, true>(x, w, part);
      }
      each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = Of<C>::widen(sum[j], part[j]); });
    }
  } else {
#pragma GCC unroll kUnrolled
    for (int64_t k = 0; k < count; ++k, x += T, w += 64 * P) {
      multiply_quad<C, T, P, false>(x, w, sum);
    }
    if constexpr (kPairs<C>) {
      for (int64_t k = 0; k < b.rests; ++k) multiply_quad<C, T, P, false>(b.rest + k * T, quads + b.places[k] * 64 * P, sum);
    }
  }
  each<T>([&](auto m) QUANTO_INLINE {
    const F xs = V::set(b.scales[m]), total = V::set(b.sums[m]);
    each<P>([&](auto i) QUANTO_INLINE {
      float* to = sums + (m * P + i) * kRows;
      const F y = V::fnmadd(zero[i], total, V::to_float(sum[m * P + i]));
      V::store(to, V::fmadd(y, V::mul(scale[i], xs), V::load(to)));
    });
  });
}

using MultiplyQuads = void (*)(const Block&, const uint8_t*, int64_t, const F*, const F*, float*);
struct QuadsTable {
  MultiplyQuads of[V::kIntegerTile];
};
template <Code C, int P, int... T>
constexpr QuadsTable quads_table(std::integer_sequence<int, T...>) {
  return {{multiply_quads<C, T + 1, P>...}};
}

// Bytes of units begin … end of a panel: out[quad * stride], 16 rows each.
template <Code C>
void decode_bytes(const Panel& p, const Tables& t, int64_t begin, int64_t end, uint8_t* out, int stride) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  for (int64_t u = begin; u < end; ++u, out += U / 4 * stride) {
    I words[N];
    for (int j = 0; j < N; ++j) {
      words[j] = V::load_words(p.codes + (u * N + j) * 64);
      ask_early(p.codes + (u * N + j) * 64 + kFarAhead);
    }
    each<U / 4>([&](auto j) QUANTO_INLINE { V::store_words(out + j * stride, bytes<C, j>(words, t)); });
  }
}

template <Code C>
void integer_blocks(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = V::kWidth, U = kUnit<C>;
  static constexpr auto table = quads_table<C, P>(std::make_integer_sequence<int, V::kIntegerTile>{});
  const MultiplyQuads kernel = table.of[a.tile - 1];
  const Tables t = tables<C>(*w.format);
  const int64_t tiles = (a.rows + a.tile - 1) / a.tile;
  alignas(64) uint8_t quads[kDecodedAtOnce / 4 * 64 * P];
  const Scratch<float> sums(tiles * a.tile * kRows * P);
  Panels source(w);
  for (int64_t first = begin; first < end; first += P) {
    Panel panels[P];
    const int count = source.fill(panels, first, end);
    std::fill_n(sums.get(), tiles * a.tile * kRows * P, 0.f);
    for (int64_t q = 0; q < w.groups; ++q) {
      F s[P], z[P];
      for (int i = 0; i < P; ++i) {
        s[i] = scale_of(w, panels[i], q);
        z[i] = zero_of(w, panels[i], q, byte_offset<C>(*w.format));
      }
      for (int64_t b = 0; b < a.blocks; ++b) {
        const int64_t unit = q * w.units + b * a.block, last = unit + std::min(a.block, w.units - b * a.block);
        const int64_t length = (last - unit) * U / 4;
        for (int i = 0; i < P; ++i) decode_bytes<C>(panels[i], t, unit, last, quads + i * 64, 64 * P);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t block = (tile * w.groups + q) * a.blocks + b, quad = (tile * w.padded() + unit * U) / 4;
          Block x{a.quads + quad * a.tile, a.scales + block * a.tile, a.sums + block * a.tile, nullptr, nullptr, 0};
          if (a.rests) x.rest = a.rest + quad * a.tile, x.places = a.rest_places + quad, x.rests = a.rests[block];
          kernel(x, quads, length, s, z, sums.get() + tile * a.tile * kRows * P);
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
