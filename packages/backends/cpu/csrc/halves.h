// SPDX-License-Identifier: Apache-2.0
// For six or eight rows of small tables and of short groups: half of a block, then the other half, as in `halves_tile`, but
// sums of 16 bits begin at the offset of bytes and become floats after each run of quads, so that a group ends with three
// instructions for each row; the scale of activations is that of a block of several groups. Without zero points.
#pragma once

#include "ahead.h"

namespace quanto {
namespace {

template <Code C, int T>
void run_halves_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  using Half = decltype(Of<C>::load_half(nullptr));
  using Floats = decltype(Of<C>::to_float(Half{}));
  const Tables t = tables<C>(*w.format);
  const int64_t runs = runs_of(w, a), run = a.run * 4 / U;  // units
  const Ahead<1> ahead(w);
  const uint8_t* codes = panels[0].codes;
  const int32_t *x = a.quads + quads_at(w, a, tile, 0, 0), *starts = a.starts + starts_at(w, a, tile, 0, 0, runs);
  F y[T];
  each<T>([&](auto m) QUANTO_INLINE { y[m] = V::zero(); });
  for (int64_t q = 0; q < w.groups; q += a.span) {
    const int64_t groups = std::min(a.span, w.groups - q);
    F s[kRoundedAtOnce / U];
    for (int64_t g = 0; g < groups; ++g) {
      ahead.scales(panels, q + g);
      s[g] = scale_of(w, panels[0], q + g);
    }
    for (int64_t b = 0; b < a.blocks; ++b) {
      const int64_t units = std::min(a.block, w.units - b * a.block), block = groups * units;
      const int64_t far = ahead.codes((q * w.units + b * a.block) * N * 64);
      const float* scales = a.scales + scales_at(w, a, tile, q, b);
      const int32_t* xs = nullptr;
      for (int h = 0; h < 2; ++h) {
        xs = x;
        const int32_t* start = starts;
        const uint8_t *from = codes + 32 * h, *asked = codes + far + h * block * N * 32;
        Floats total[T];
        each<T>([&](auto m) QUANTO_INLINE { total[m] = Of<C>::floats(0); });
        for (int64_t g = 0; g < groups; ++g) {
          const Floats scale = Of<C>::half(s[g], h);
          const auto sum_run = [&](int64_t count) QUANTO_INLINE {
            Half part[T];
            each<T>([&](auto m) QUANTO_INLINE { part[m] = V::spread(start[m]); });
            start += T;
            for (int64_t u = 0; u < count; ++u) {
              Half words[N];
              each<N>([&](auto j) QUANTO_INLINE {
                words[j] = Of<C>::load_half(from + j * 64);
                ask(asked + j * 32);
              });
              each<U / 4>([&](auto j) QUANTO_INLINE { Of<C>::template dot16_rows<T>(part, bytes<C, j>(words, t), xs + j * T); });
              from += N * 64, asked += N * 32, xs += U / 4 * T;
            }
            each<T>([&](auto m) QUANTO_INLINE {
              total[m] = Of<C>::fmadd(Of<C>::to_float(Of<C>::widen(part[m])), scale, total[m]);
            });
          };
          int64_t u = 0;
          for (; u + run < units; u += run) sum_run(run);
          sum_run(units - u);
        }
        each<T>([&](auto m) QUANTO_INLINE {
          Floats& to = Of<C>::half(y[m], h);
          to = Of<C>::fmadd(total[m], Of<C>::floats(scales[m]), to);
        });
      }
      codes += block * N * 64, x = xs;
      starts += groups * runs * T;  // of a block that is shorter than others, too
    }
  }
  for (int m = 0; m < T && tile * T + m < a.rows; ++m) {
    store_row(w, out, panels[0], first, tile * T + m, y[m], w.global * w.format->byte_scale);
  }
}

}  // namespace
}  // namespace quanto
