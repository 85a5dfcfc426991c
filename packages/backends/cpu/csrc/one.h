// SPDX-License-Identifier: Apache-2.0
// For one token: walks down one panel, which processors fetch ahead by themselves. What matters then is that few
// instructions lie between two loads, since a core holds on to some hundreds of them while memory answers: units come in
// steps of a constant length, without a loop.
#pragma once

#include "few.h"

namespace quanto {
namespace {

// Products of one row of integers, or of T that are the digits of one.
template <Code C, int T, Asks A>
void one_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, N = kWords<C>, R = T * V::kRegisters;
  constexpr bool narrow = V::kNarrowSums && kQuads<C> != 0;
  constexpr int kStep = narrow ? 4 * kQuads<C> / U : 4;
  constexpr int S = V::kNarrowSums || R >= 8 ? 1 : R >= 4 ? 2 : 4;  // sums that do not wait for another
  const Tables t = tables<C>(*w.format);
  const int32_t* x = a.quads + tile * w.padded() / 4 * T;
  const float* scales = a.scales + tile * w.groups * a.blocks * T;
  const float* sums = a.sums + tile * w.groups * a.blocks * T;
  const F offset = V::set(byte_offset<C>(*w.format));
  const bool zeros = w.zero_type != Type::kNone;
  const Ahead<1, A> ahead(w);
  const uint8_t* codes = panels->codes;
  F y = V::zero();
  for (int64_t q = 0; q < w.groups; ++q) {
    ahead.scales(panels, q);
    const F s = scale_of(w, *panels, q), z = zero_of(w, *panels, q, 0);
    for (int64_t b = 0; b < a.blocks; ++b) {
      I sum[T * S];
      each<T * S>([&](auto j) QUANTO_INLINE { sum[j] = V::izero(); });
      const auto step = [&](auto count) QUANTO_INLINE {
        I part[T];
        if (narrow) each<T>([&](auto m) QUANTO_INLINE { part[m] = V::izero(); });
        each<count>([&](auto n) QUANTO_INLINE {
          I words[N];
          each<N>([&](auto j) QUANTO_INLINE {
            words[j] = V::load_words(codes + (n * N + j) * 64);
            ahead.line(codes + (n * N + j) * 64 + ahead.codes(0));
          });
          each<U / 4>([&](auto j) QUANTO_INLINE {
            constexpr int quad = n * U / 4 + j;
            const I quads = bytes<C, j>(words, t);
            each<T>([&](auto m) QUANTO_INLINE {
              if constexpr (narrow) {
                Of<C>::dot16(part[m], quads, x + quad * T + m);
              } else {
                I& to = sum[m * S + quad % S];
                to = Of<C>::dot(to, quads, V::spread(x[quad * T + m]));
              }
            });
          });
        });
        codes += count * N * 64, x += count * U / 4 * T;
        if constexpr (narrow) each<T>([&](auto m) QUANTO_INLINE { sum[m] = Of<C>::widen(sum[m], part[m]); });
      };
      const int64_t units = std::min(a.block, w.units - b * a.block);
      int64_t u = 0;
      for (; u + kStep <= units; u += kStep) step(std::integral_constant<int, kStep>{});
      for (; u < units; ++u) step(std::integral_constant<int, 1>{});
      if constexpr (kPairs<C> && C == Code::kInt8) {
        if (a.rests) add_rest<T, 1>(a, (tile * w.groups + q) * a.blocks + b, &codes, units, x, t, sum);
      }
      F product = V::zero();
      each<T>([&](auto n) QUANTO_INLINE {
        constexpr int m = T - 1 - n;  // the highest digit first
        I total = sum[m * S];
        each<S - 1>([&](auto part) QUANTO_INLINE { total = V::iadd(total, sum[m * S + 1 + part]); });
        const F count = V::set(sums[m]);
        F digit = V::fnmadd(offset, count, V::to_float(total));  // without error; zero points, which need be no integers, later
        if (zeros) digit = V::fnmadd(z, count, digit);
        product = n == 0 ? digit : V::fmadd(product, V::set(256), digit);
      });
      // One scale after the other: their product may be no normal float where the result is.
      y = V::fmadd(V::mul(product, V::set(*scales)), s, y);
      scales += T, sums += T;
    }
  }
  store_row(w, out, *panels, first, tile, y, w.global * w.format->byte_scale);
}

}  // namespace
}  // namespace quanto
