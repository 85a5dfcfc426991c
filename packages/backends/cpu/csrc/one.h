// SPDX-License-Identifier: Apache-2.0
// For one token: walks down one panel, which AMD's processors fetch ahead by themselves, or, of digits on AVX-512, four, which
// Intel's read sooner. What matters then is that few instructions lie between two loads, since a core holds on to some
// hundreds of them while memory answers: units come in steps of a constant length, without a loop.
#pragma once

#include "few.h"

namespace quanto {
namespace {

// Products of one row of integers, or of T that are the digits of one, with P panels.
template <Code C, int T, int P, Asks A>
void one_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, N = kWords<C>, R = T * P * V::kRegisters;
  constexpr bool narrow = V::kNarrowSums && kQuads<C> != 0;
  constexpr int kStep = narrow ? 4 * kQuads<C> / U : 4;
  constexpr int S = V::kNarrowSums || R >= 8 ? 1 : R >= 4 ? 2 : 4;  // sums that do not wait for another
  const Tables t = tables<C>(*w.format);
  const int32_t* x = a.quads + tile * w.padded() / 4 * T;
  const float* scales = a.scales + tile * w.groups * a.blocks * T;
  const float* sums = a.sums + tile * w.groups * a.blocks * T;
  const F offset = V::set(byte_offset<C>(*w.format));
  const bool zeros = w.zero_type != Type::kNone;
  const Ahead<P, A> ahead(w);
  const uint8_t* codes[P];
  F y[P];
  for (int i = 0; i < P; ++i) codes[i] = panels[i].codes, y[i] = V::zero();
  for (int64_t q = 0; q < w.groups; ++q) {
    ahead.scales(panels, q);
    for (int64_t b = 0; b < a.blocks; ++b) {
      I sum[P * T * S];
      each<P * T * S>([&](auto j) QUANTO_INLINE { sum[j] = V::izero(); });
      const auto step = [&](auto count, int64_t far) QUANTO_INLINE {
        I part[P * T];
        if (narrow) each<P * T>([&](auto m) QUANTO_INLINE { part[m] = V::izero(); });
        each<count>([&](auto n) QUANTO_INLINE {
          I words[P][N];
          each<P>([&](auto i) QUANTO_INLINE {
            each<N>([&](auto j) QUANTO_INLINE {
              words[i][j] = V::load_words(codes[i] + (n * N + j) * 64);
              ahead.line(codes[i] + (n * N + j) * 64 + far);
            });
          });
          each<U / 4>([&](auto j) QUANTO_INLINE {
            constexpr int quad = n * U / 4 + j;
            each<P>([&](auto i) QUANTO_INLINE {
              const I quads = bytes<C, j>(words[i], t);
              each<T>([&](auto m) QUANTO_INLINE {
                if constexpr (narrow) {
                  Of<C>::dot16(part[i * T + m], quads, x + quad * T + m);
                } else {
                  I& to = sum[(i * T + m) * S + quad % S];
                  to = Of<C>::dot(to, quads, V::spread(x[quad * T + m]));
                }
              });
            });
          });
        });
        for (int i = 0; i < P; ++i) codes[i] += count * N * 64;
        x += count * U / 4 * T;
        if constexpr (narrow) each<P * T>([&](auto m) QUANTO_INLINE { sum[m] = Of<C>::widen(sum[m], part[m]); });
      };
      const int64_t units = std::min(a.block, w.units - b * a.block);
      const auto far = [&](int64_t u) { return ahead.codes((q * w.units + b * a.block + u) * N * 64); };
      int64_t u = 0;
      for (; u + kStep <= units; u += kStep) step(std::integral_constant<int, kStep>{}, far(u));
      for (; u < units; ++u) step(std::integral_constant<int, 1>{}, far(u));
      if constexpr (kPairs<C> && C == Code::kInt8) {
        static_assert(T * S == 1 || P * S == 1, "sums lie as `add_rest` takes them");
        if (a.rests) add_rest<T, P>(a, (tile * w.groups + q) * a.blocks + b, codes, units, x, t, sum);
      }
      each<P>([&](auto i) QUANTO_INLINE {
        const F s = scale_of(w, panels[i], q), z = zero_of(w, panels[i], q, 0);
        F product = V::zero();
        each<T>([&](auto n) QUANTO_INLINE {
          constexpr int m = T - 1 - n;  // the highest digit first
          I total = sum[(i * T + m) * S];
          each<S - 1>([&](auto part) QUANTO_INLINE { total = V::iadd(total, sum[(i * T + m) * S + 1 + part]); });
          const F count = V::set(sums[m]);
          F digit = V::fnmadd(offset, count, V::to_float(total));  // without error; zero points, which need be no integers, later
          if (zeros) digit = V::fnmadd(z, count, digit);
          product = n == 0 ? digit : V::fmadd(product, V::set(256), digit);
        });
        // Of digits one scale after the other: their product may be no normal float where the result is. Of integers it is
        // the sum that may be too large beside one of them.
        const F scale = V::set(*scales);
        y[i] = T == 1 ? V::fmadd(product, V::mul(scale, s), y[i]) : V::fmadd(V::mul(product, scale), s, y[i]);
      });
      scales += T, sums += T;
    }
  }
  for (int i = 0; i < P; ++i) store_row(w, out, panels[i], first + i, tile, y[i], w.global * w.format->byte_scale);
}

}  // namespace
}  // namespace quanto
