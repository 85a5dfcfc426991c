// SPDX-License-Identifier: Apache-2.0
// For few rows: walks down the words of a panel once and multiplies as it decodes. Bound by reading codes.
//
//     floats     4 bits on AVX-512: shift, look up, fused multiply-add for 16 products
//     integers   four products per lane and instruction, exact in int32
#pragma once

#include "source.h"

namespace quanto {
namespace {

template <Code C, int T, int P>
void small_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, N = kWords<C>, S = T * P >= 8 ? 1 : T * P >= 4 ? 2 : 4;  // sums that do not wait for another
  const Tables t = tables(*w.format);
  const float* x = a.values + tile * w.padded() * T;
  const float* sums = a.sums + tile * w.groups * a.blocks * T;
  const float offset = kFolded<C> ? 0.f : static_cast<float>(w.format->offset);
  const bool shifted = !kFolded<C> || w.zero_type != Type::kNone;
  const uint8_t* codes[P];
  F y[T * P];
  for (int i = 0; i < P; ++i) codes[i] = panels[i].codes;
  each<T * P>([&](auto j) QUANTO_INLINE { y[j] = V::zero(); });
  for (int64_t q = 0; q < w.groups; ++q) {
    F sum[T * P * S];
    each<T * P * S>([&](auto j) QUANTO_INLINE { sum[j] = V::zero(); });
    for (int64_t u = 0; u < w.units; ++u) {
      each<P>([&](auto i) QUANTO_INLINE {
        I words[N];
        each<N>([&](auto j) QUANTO_INLINE { words[j] = V::load_words(codes[i] + j * 64); });
        V::prefetch(codes[i] + 1024);
        codes[i] += N * 64;
        each<U>([&](auto k) QUANTO_INLINE {
          const F v = value<C, k>(words, t);
          each<T>([&](auto m) QUANTO_INLINE {
            constexpr int at = (m * P + i) * S + k % S;
            sum[at] = V::fmadd(v, V::set(x[k * T + m]), sum[at]);
          });
        });
      });
      x += U * T;
    }
    each<P>([&](auto i) QUANTO_INLINE {
      const F s = scale_of(w, panels[i], q);
      const F z = zero_of(w, panels[i], q, offset);
      each<T>([&](auto m) QUANTO_INLINE {
        constexpr int at = (m * P + i) * S;
        F total = sum[at];
        each<S - 1>([&](auto part) QUANTO_INLINE { total = V::add(total, sum[at + 1 + part]); });
        if (shifted) total = V::fnmadd(z, V::set(sums[q * a.blocks * T + m]), total);
        y[m * P + i] = V::fmadd(s, total, y[m * P + i]);
      });
    });
  }
  for (int m = 0; m < T && tile * T + m < a.rows; ++m) {
    for (int i = 0; i < P; ++i) store_row(w, out, panels[i], first + i, tile * T + m, y[m * P + i], w.global);
  }
}

template <Code C, int T, int P>
void integer_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  const Tables t = tables(*w.format);
  const int32_t* x = a.quads + tile * w.padded() / 4 * T;
  const float* scales = a.scales + tile * w.groups * a.blocks * T;
  const float* sums = a.sums + tile * w.groups * a.blocks * T;
  const uint8_t* codes[P];
  F y[T * P];
  for (int i = 0; i < P; ++i) codes[i] = panels[i].codes;
  each<T * P>([&](auto j) QUANTO_INLINE { y[j] = V::zero(); });
  for (int64_t q = 0; q < w.groups; ++q) {
    F s[P], z[P];
    for (int i = 0; i < P; ++i) {
      s[i] = scale_of(w, panels[i], q);
      z[i] = zero_of(w, panels[i], q, static_cast<float>(w.format->byte_offset));
    }
    for (int64_t b = 0; b < a.blocks; ++b) {
      I sum[T * P];
      each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = V::izero(); });
      const int64_t end = std::min(a.block, w.units - b * a.block);
      for (int64_t u = 0; u < end; ++u) {
        I words[P][N];
        each<P>([&](auto i) QUANTO_INLINE {
          each<N>([&](auto j) QUANTO_INLINE { words[i][j] = V::load_words(codes[i] + j * 64); });
          V::prefetch(codes[i] + 1024);
          codes[i] += N * 64;
        });
        each<U / 4>([&](auto j) QUANTO_INLINE {
          decltype(V::template quads<kFull<C>>(I{})) quads[P];
          each<P>([&](auto i) QUANTO_INLINE { quads[i] = V::template quads<kFull<C>>(bytes<C, j>(words[i], t)); });
          each<T>([&](auto m) QUANTO_INLINE {
            const auto xs = V::template spread<kFull<C>>(x[j * T + m]);
            each<P>([&](auto i) QUANTO_INLINE { sum[m * P + i] = V::dot(sum[m * P + i], quads[i], xs); });
          });
        });
        x += U / 4 * T;
      }
      each<T>([&](auto m) QUANTO_INLINE {
        const F xs = V::set(scales[m]), total = V::set(sums[m]);
        each<P>([&](auto i) QUANTO_INLINE {
          const F product = V::fnmadd(z[i], total, V::to_float(sum[m * P + i]));
          y[m * P + i] = V::fmadd(product, V::mul(s[i], xs), y[m * P + i]);
        });
      });
      scales += T, sums += T;
    }
  }
  for (int m = 0; m < T && tile * T + m < a.rows; ++m) {
    for (int i = 0; i < P; ++i) store_row(w, out, panels[i], first + i, tile * T + m, y[m * P + i], w.global * w.format->byte_scale);
  }
}

}  // namespace
}  // namespace quanto
