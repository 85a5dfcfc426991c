// SPDX-License-Identifier: Apache-2.0
// For few rows: walks down the words of a panel once and multiplies as it decodes. Bound by reading codes.
//
//     floats     4 bits on AVX-512: shift, look up, fused multiply-add for 16 products
//     integers   four products per lane and instruction, exact in int32
//
// One token reads as fast as memory gives from several places at once, asked for ahead: four panels next to each other.
#pragma once

#include "ahead.h"

namespace quanto {
namespace {

template <Code C, int T, int P>
void small_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, N = kWords<C>, R = T * P * V::kRegisters;
  constexpr int S = R >= 8 ? 1 : R >= 4 ? 2 : 4;  // sums that do not wait for another
  const Tables t = tables<C>(*w.format);
  const float* x = a.values + tile * w.padded() * T;
  const float* sums = a.sums + tile * w.groups * a.blocks * T;
  const auto [offset, factor] = remainder_of<C>(*w.format);
  const F f = V::set(factor), inverse = V::set(1 / factor), shift = V::set(offset);
  const bool shifted = offset != 0 || w.zero_type != Type::kNone;
  const Ahead<P> ahead(w);
  const uint8_t* codes[P];
  F y[T * P];
  for (int i = 0; i < P; ++i) codes[i] = panels[i].codes;
  each<T * P>([&](auto j) QUANTO_INLINE { y[j] = V::zero(); });
  for (int64_t q = 0; q < w.groups; ++q) {
    F sum[T * P * S];
    each<T * P * S>([&](auto j) QUANTO_INLINE { sum[j] = V::zero(); });
    ahead.scales(panels, q);
    for (int64_t u = 0; u < w.units;) {
      const int64_t far = ahead.codes((q * w.units + u) * N * 64);
      for (const int64_t stop = std::min(w.units, u + kRun); u < stop; ++u, x += U * T) {
        each<P>([&](auto i) QUANTO_INLINE {
          I words[N];
          each<N>([&](auto j) QUANTO_INLINE {
            words[j] = V::load_words(codes[i] + j * 64);
            ask(codes[i] + far + j * 64);
          });
          codes[i] += N * 64;
          each<U / 4>([&](auto j) QUANTO_INLINE {
            F v[4];
            values<C, j>(words, t, v);
            each<4>([&](auto b) QUANTO_INLINE {
              constexpr int k = position(C, j, b);
              each<T>([&](auto m) QUANTO_INLINE {
                constexpr int at = (m * P + i) * S + k % S;
                if constexpr (T == 2 && C < Code::kE4M3) {  // a quarter less time for int8 on AVX2, 2 to 10 % for others
                  V::add_product(sum[at], v[b], x + k * T + m);
                } else {
                  sum[at] = V::fmadd(v[b], V::set(x[k * T + m]), sum[at]);
                }
              });
            });
          });
        });
      }
    }
    each<P>([&](auto i) QUANTO_INLINE {
      const F s = V::mul(scale_of(w, panels[i], q), inverse);
      const F z = V::add(V::mul(zero_of(w, panels[i], q, 0), f), shift);
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

// Adds products of the quads that come a second time, of a block of int8 that ends at x and at `codes`.
template <int T, int P>
void add_rest(const Activations& a, int64_t block, const uint8_t* const* codes, int64_t length, const int32_t* x,
              const Tables& t, I* sum) {
  const int64_t first = (x - a.quads) / T - length;
  for (int64_t k = first; k < first + a.rests[block]; ++k) {
    const int64_t place = (a.rest_places[k] - length) * 64;
    each<P>([&](auto i) QUANTO_INLINE {
      const I word = V::load_words(codes[i] + place), quad = bytes<Code::kInt8, 0>(&word, t);
      each<T>([&](auto m) QUANTO_INLINE {
        sum[m * P + i] = Of<Code::kInt8>::dot(sum[m * P + i], quad, V::spread(a.rest[k * T + m]));
      });
    });
  }
}

template <Code C, int T, int P, Asks A = Asks::kFirst>
void integer_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  constexpr bool narrow = V::kNarrowSums && kQuads<C> != 0;
  constexpr int run = narrow ? 4 * kQuads<C> / U : kRun;
  constexpr int G = V::kRegisters == 1 ? P : 1;  // panels at once; with more, 16 registers do not do
  const Tables t = tables<C>(*w.format);
  const int32_t* x = a.quads + tile * w.padded() / 4 * T;
  const float* scales = a.scales + tile * w.groups * a.blocks * T;
  const float* sums = a.sums + tile * w.groups * a.blocks * T;
  const Ahead<P, A> ahead(w);
  const uint8_t* codes[P];
  F y[T * P];
  for (int i = 0; i < P; ++i) codes[i] = panels[i].codes;
  each<T * P>([&](auto j) QUANTO_INLINE { y[j] = V::zero(); });
  for (int64_t q = 0; q < w.groups; ++q) {
    F s[P], z[P];
    ahead.scales(panels, q);
    for (int i = 0; i < P; ++i) {
      s[i] = scale_of(w, panels[i], q);
      z[i] = zero_of(w, panels[i], q, byte_offset<C>(*w.format));
    }
    for (int64_t b = 0; b < a.blocks; ++b) {
      I sum[T * P];
      each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = V::izero(); });
      const int64_t end = std::min(a.block, w.units - b * a.block);
      for (int64_t u = 0; u < end;) {
        const int64_t stop = std::min(end, u + run), far = ahead.codes((q * w.units + b * a.block + u) * N * 64);
        I part[T * P];
        if (narrow) each<T * P>([&](auto j) QUANTO_INLINE { part[j] = V::izero(); });
        for (; u < stop; ++u) {
          each<P / G>([&](auto g) QUANTO_INLINE {
            I words[G][N];
            each<G>([&](auto i) QUANTO_INLINE {
              each<N>([&](auto j) QUANTO_INLINE {
                words[i][j] = V::load_words(codes[g * G + i] + j * 64);
                ahead.line(codes[g * G + i] + far + j * 64);
              });
              codes[g * G + i] += N * 64;
            });
            each<U / 4>([&](auto j) QUANTO_INLINE {
              I quads[G];
              each<G>([&](auto i) QUANTO_INLINE { quads[i] = bytes<C, j>(words[i], t); });
              each<T>([&](auto m) QUANTO_INLINE {
                const auto xs = V::spread(x[j * T + m]);
                each<G>([&](auto i) QUANTO_INLINE {
                  constexpr int at = m * P + g * G + i;
                  if constexpr (narrow) {
                    part[at] = Of<C>::dot16(part[at], quads[i], xs);
                  } else {
                    sum[at] = Of<C>::dot(sum[at], quads[i], xs);
                  }
                });
              });
            });
          });
          x += U / 4 * T;
        }
        if constexpr (narrow) each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = Of<C>::widen(sum[j], part[j]); });
      }
      if constexpr (kPairs<C> && C == Code::kInt8) {
        if (a.rests) add_rest<T, P>(a, (tile * w.groups + q) * a.blocks + b, codes, end, x, t, sum);
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

// The same for more rows of one panel than all of its sums would fit into registers for: a block of one half, then of the
// other, which the first-level cache still holds. Saves what blocks of decoded bytes cost to write. Each of the two asks for
// half of a block that comes later, or memory would rest while the second is computed.
template <Code C, int T>
void halves_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  constexpr bool narrow = V::kNarrowSums && kQuads<C> != 0;
  constexpr int run = narrow ? 4 * kQuads<C> / U : 1;  // units whose products share sums of 16 bits
  using Half = decltype(Of<C>::load_half(nullptr));
  const Tables t = tables<C>(*w.format);
  const int32_t* x = a.quads + tile * w.padded() / 4 * T;
  const Ahead<1> ahead(w);
  const uint8_t* codes = panels[0].codes;
  F y[T];
  each<T>([&](auto m) QUANTO_INLINE { y[m] = V::zero(); });
  for (int64_t q = 0; q < w.groups; ++q) {
    ahead.scales(panels, q);
    const F s = scale_of(w, panels[0], q), z = zero_of(w, panels[0], q, byte_offset<C>(*w.format));
    for (int64_t b = 0; b < a.blocks; ++b) {
      const int64_t units = std::min(a.block, w.units - b * a.block), block = (tile * w.groups + q) * a.blocks + b;
      const int64_t far = ahead.codes((q * w.units + b * a.block) * N * 64);
      I sum[T];
      for (int h = 0; h < 2; ++h) {
        Half total[T];
        each<T>([&](auto m) QUANTO_INLINE { total[m] = V::spread(0); });
        const int32_t* xs = x;
        const uint8_t *from = codes + 32 * h, *asked = codes + far + h * units * N * 32;
        const auto step = [&](auto count) QUANTO_INLINE {
          Half part[T];
          each<count>([&](auto i) QUANTO_INLINE {
            Half words[N];
            each<N>([&](auto j) QUANTO_INLINE {
              words[j] = Of<C>::load_half(from + (i * N + j) * 64);
              ask(asked + (i * N + j) * 32);
            });
            each<U / 4>([&](auto j) QUANTO_INLINE {
              const Half quads = bytes<C, j>(words, t);
              const int32_t* at = xs + (i * U / 4 + j) * T;
              if constexpr (!narrow) {
                Of<C>::template dot_rows<T>(total, quads, at);
              } else if constexpr (i + j == 0) {
                each<T>([&](auto m) QUANTO_INLINE { Of<C>::mul16(part[m], quads, at + m); });
              } else {
                each<T>([&](auto m) QUANTO_INLINE { Of<C>::dot16(part[m], quads, at + m); });
              }
            });
          });
          from += count * N * 64, asked += count * N * 32, xs += count * U / 4 * T;
          if constexpr (narrow) each<T>([&](auto m) QUANTO_INLINE { total[m] = Of<C>::widen(total[m], part[m]); });
        };
        int64_t u = 0;
        for (; u + run <= units; u += run) step(std::integral_constant<int, run>{});
        for (; u < units; ++u) step(std::integral_constant<int, 1>{});
        each<T>([&](auto m) QUANTO_INLINE { Of<C>::half(sum[m], h) = total[m]; });
      }
      codes += units * N * 64, x += units * U / 4 * T;
      if constexpr (kPairs<C> && C == Code::kInt8) {
        if (a.rests) add_rest<T, 1>(a, block, &codes, units, x, t, sum);
      }
      each<T>([&](auto m) QUANTO_INLINE {
        const F product = V::fnmadd(z, V::set(a.sums[block * T + m]), V::to_float(sum[m]));
        y[m] = V::fmadd(product, V::mul(s, V::set(a.scales[block * T + m])), y[m]);
      });
    }
  }
  for (int m = 0; m < T && tile * T + m < a.rows; ++m) {
    store_row(w, out, panels[0], first, tile * T + m, y[m], w.global * w.format->byte_scale);
  }
}

}  // namespace
}  // namespace quanto
