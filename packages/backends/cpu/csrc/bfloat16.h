// SPDX-License-Identifier: Apache-2.0
// For bfloat16 activations where an instruction adds up products of two pairs of them: codes become bfloat16, which holds
// them exactly, and scales and zero points join after the products of a group. The first and the second half of a unit lie
// side by side; two codes of 4 or 2 bits are looked up at once. Included by isa_*.cpp, which define the vector `V`.
//
// The instruction takes subnormal bfloat16 for zero (below 2^-126), and rounds each sum to float32.
#pragma once

#include <memory>

#include "ahead.h"
#include "walk.h"

namespace quanto {
namespace {

template <Code C>
constexpr bool kTable16 = C == Code::kInt4 || C == Code::kInt2 || C == Code::kSmallTable;

// 32 times a bfloat16: what the lowest five bits of 16 say, of which the code takes four or two.
template <Code C>
I table16(const Format& f) {
  alignas(64) uint16_t values[32];
  for (int i = 0; i < 32; ++i) {
    const int code = i & ((1 << f.bits) - 1);
    values[i] = float_to_bfloat16(f.table ? f.table[code] : static_cast<float>(code - f.offset));
  }
  return V::load_words(values);
}

// Codes J and J + half of a unit as bfloat16, but for the factor that `remainder_of` says.
template <Code C, int J>
inline I two(I word, const Tables& t, I table) {
  if constexpr (kTable16<C>) {
    return V::lookup16(table, V::template shr<J * 32 / kUnit<C>>(word));
  } else {
    return V::join16(value<C, 0, J>(&word, t), value<C, 0, J + 2>(&word, t));
  }
}

// Rows of bfloat16 into tiles of pairs; false where a sum of a block is not finite.
bool prepare_bfloat16(const Weight& w, const void* x, Type type, int64_t stride, Activations& a, int64_t begin, int64_t end) {
  const int U = w.format->unit;
  const int64_t padded = w.padded(), length = w.units * U;
  std::unique_ptr<uint16_t[]> row(new uint16_t[padded]());
  std::unique_ptr<float[]> values(new float[length]);
  bool finite = true;
  for (int64_t tile = begin; tile < end; ++tile) {
    int32_t* to = a.quads + tile * padded / 2 * a.tile;
    for (int m = 0; m < a.tile; ++m) {
      const int64_t at = tile * a.tile + m;
      for (int64_t q = 0; q < w.groups; ++q) {
        const int64_t count = std::min(w.group, w.k - q * w.group);
        std::fill_n(values.get(), length, 0.f);
        if (at < a.rows) {
          const int64_t from = at * stride + q * w.group;
          std::memcpy(row.get() + q * length, static_cast<const uint16_t*>(x) + from, count * 2);
          V::load_many(x, from, type, count, values.get());
        } else {
          std::fill_n(row.get() + q * length, count, uint16_t{0});
        }
        for (int64_t b = 0; b < a.blocks; ++b) {
          const int64_t first = b * a.block * U, codes = std::min(a.block, w.units - b * a.block) * U;
          a.sums[((tile * w.groups + q) * a.blocks + b) * a.tile + m] = V::sum(values.get() + first, codes);
          finite &= V::peak(values.get() + first, codes) < 0x1p60f;  // infinity, NaN, and what factors would make infinite
        }
      }
      for (int64_t u = 0, i = m; u < padded; u += U) {
        for (int j = 0; j < U / 2; ++j, i += a.tile) {
          to[i] = static_cast<int32_t>(row[u + j] | uint32_t{row[u + j + U / 2]} << 16);
        }
      }
    }
  }
  return finite;
}

// For few rows: decodes as it goes.
template <Code C, int T, int P>
void bfloat16_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, R = T * P, S = R >= 8 ? 1 : R >= 4 ? 2 : 4;  // sums that do not wait for another
  const Tables t = tables<C>(*w.format);
  const I table = kTable16<C> ? table16<C>(*w.format) : V::izero();
  const F inverse = V::set(1 / remainder_of<C>(*w.format).factor);
  const int32_t* x = a.quads + tile * w.padded() / 2 * T;
  const float* sums = a.sums + tile * w.groups * a.blocks * T;
  const Ahead<P> ahead(w);
  const uint8_t* codes[P];
  F y[R];
  for (int i = 0; i < P; ++i) codes[i] = panels[i].codes;
  each<R>([&](auto j) QUANTO_INLINE { y[j] = V::zero(); });
  for (int64_t q = 0; q < w.groups; ++q) {
    F sum[R * S];
    each<R * S>([&](auto j) QUANTO_INLINE { sum[j] = V::zero(); });
    ahead.scales(panels, q);
    for (int64_t u = 0; u < w.units;) {
      const int64_t far = ahead.codes((q * w.units + u) * 64);
      for (const int64_t stop = std::min(w.units, u + kRun); u < stop; ++u, x += U / 2 * T) {
        each<P>([&](auto i) QUANTO_INLINE {
          const I word = V::load_words(codes[i]);
          ask(codes[i] + far);
          codes[i] += 64;
          each<U / 2>([&](auto j) QUANTO_INLINE {
            const I v = two<C, j>(word, t, table);
            each<T>([&](auto m) QUANTO_INLINE {
              constexpr int at = (m * P + i) * S + j % S;
              sum[at] = V::dot16x2(sum[at], v, V::spread(x[j * T + m]));
            });
          });
        });
      }
    }
    each<P>([&](auto i) QUANTO_INLINE {
      const F s = V::mul(scale_of(w, panels[i], q), inverse), z = zero_of(w, panels[i], q, 0);
      each<T>([&](auto m) QUANTO_INLINE {
        constexpr int at = (m * P + i) * S;
        F total = sum[at];
        each<S - 1>([&](auto part) QUANTO_INLINE { total = V::add(total, sum[at + 1 + part]); });
        for (int64_t b = 0; w.zero_type != Type::kNone && b < a.blocks; ++b) {
          const F factor = V::set(remainder_of<C>(*w.format).factor * sums[(q * a.blocks + b) * T + m]);
          total = V::fnmadd(z, factor, total);
        }
        y[m * P + i] = V::fmadd(s, total, y[m * P + i]);
      });
    });
  }
  for (int m = 0; m < T && tile * T + m < a.rows; ++m) {
    for (int i = 0; i < P; ++i) store_row(w, out, panels[i], first + i, tile * T + m, y[m * P + i], w.global);
  }
}

// sums[T, 16 P] += (products of count pairs - zero · x_sums) · scale
template <int T, int P>
void multiply_twos(const int32_t* x, const uint8_t* pairs, int64_t count, const F* scale, const F* zero, const float* x_sums,
                    float* sums) {
  F sum[T * P];
  each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = V::zero(); });
  for (int64_t k = 0; k < count; ++k, x += T, pairs += 64 * P) {
    I w[P];
    each<P>([&](auto i) QUANTO_INLINE { w[i] = V::load_words(pairs + i * 64); });
    each<T>([&](auto m) QUANTO_INLINE {
      const I xs = V::spread(x[m]);
      each<P>([&](auto i) QUANTO_INLINE { sum[m * P + i] = V::dot16x2(sum[m * P + i], w[i], xs); });
    });
  }
  each<T>([&](auto m) QUANTO_INLINE {
    const F total = V::set(x_sums[m]);
    each<P>([&](auto i) QUANTO_INLINE {
      float* to = sums + (m * P + i) * kRows;
      V::store(to, V::fmadd(V::fnmadd(zero[i], total, sum[m * P + i]), scale[i], V::load(to)));
    });
  });
}

using MultiplyTwos = void (*)(const int32_t*, const uint8_t*, int64_t, const F*, const F*, const float*, float*);
struct TwosTable {
  MultiplyTwos of[V::kIntegerTile];
};
template <int P, int... T>
constexpr TwosTable twos_table(std::integer_sequence<int, T...>) {
  return {{multiply_twos<T + 1, P>...}};
}

// For many rows: decodes a block of positions once, then multiplies it with all tiles.
template <Code C>
void bfloat16_blocks(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = V::kWidth, U = kUnit<C>;
  static constexpr auto all = twos_table<P>(std::make_integer_sequence<int, V::kIntegerTile>{});
  const MultiplyTwos kernel = all.of[a.tile - 1];
  const Tables t = tables<C>(*w.format);
  const I table = kTable16<C> ? table16<C>(*w.format) : V::izero();
  const float factor = remainder_of<C>(*w.format).factor;
  const int64_t tiles = (a.rows + a.tile - 1) / a.tile;
  alignas(64) uint8_t pairs[kDecodedAtOnce / 2 * 64 * P];
  const Buffer<float> sums = allocate<float>(tiles * a.tile * kRows * P);
  Panels source(w);
  for (int64_t first = begin; first < end; first += P) {
    Panel panels[P];
    const int count = source.fill(panels, first, end);
    std::fill_n(sums.get(), tiles * a.tile * kRows * P, 0.f);
    const Results results{w, out, panels, first, a.rows, count, P, w.global};
    for (int64_t q = 0; q < w.groups; ++q) {
      F s[P], z[P];
      for (int i = 0; i < P; ++i) {
        s[i] = V::mul(scale_of(w, panels[i], q), V::set(1 / factor));
        z[i] = V::mul(zero_of(w, panels[i], q, 0), V::set(factor));
      }
      for (int64_t b = 0; b < a.blocks; ++b) {
        const int64_t unit = q * w.units + b * a.block, units = std::min(a.block, w.units - b * a.block);
        for (int i = 0; i < P; ++i) {
          for (int64_t u = 0; u < units; ++u) {
            const I word = V::load_words(panels[i].codes + (unit + u) * 64);
            ask_early(panels[i].codes + (unit + u) * 64 + kFarAhead);
            each<U / 2>([&](auto j) QUANTO_INLINE {
              V::store_words(pairs + ((u * U / 2 + j) * P + i) * 64, two<C, j>(word, t, table));
            });
          }
        }
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t block = (tile * w.groups + q) * a.blocks + b;
          float* to = sums.get() + tile * a.tile * kRows * P;
          kernel(a.quads + (tile * w.padded() + unit * U) / 2 * a.tile, pairs, units * U / 2, s, z, a.sums + block * a.tile, to);
          if (unit + units == w.groups * w.units) store_tile(results, tile, a.tile, to);
        }
      }
    }
  }
}

template <Code C, int T>
void bfloat16_few(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = kPanels<T>;
  walk(w, a, out, begin, end, P, bfloat16_tile<C, T, P>, bfloat16_tile<C, T, 1>);
}

template <Code C>
void bfloat16_for(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  if (!a.few) return bfloat16_blocks<C>(w, a, out, begin, end);
  switch (a.tile) {
    case 1:
      if constexpr (kTable16<C>) bfloat16_few<C, 1>(w, a, out, begin, end);
      return;  // one row of bytes takes longer to decode so than as floats: `run` gives it to them
    case 2: return bfloat16_few<C, 2>(w, a, out, begin, end);
    case 4: return bfloat16_few<C, 4>(w, a, out, begin, end);
    default: return bfloat16_few<C, V::kFewTile>(w, a, out, begin, end);
  }
}

void bfloat16(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  with_code(w.format->code, [&](auto code) {
    constexpr Code C = decltype(code)::value;
    // 3 bits and nf4 are given to floats by `run`.
    if constexpr (C != Code::kInt3 && C != Code::kTable4) bfloat16_for<C>(w, a, out, begin, end);
  });
}

}  // namespace
}  // namespace quanto
