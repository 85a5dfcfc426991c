// SPDX-License-Identifier: Apache-2.0
// For many rows of int8: decodes a block of positions of the panels into bytes once, then multiplies it with all tiles, or
// lets each tile decode it, on AMD's processors. A block of 256 positions and two panels takes 8 KB, and stays in the
// first-level cache with a tile of activations. Bound by dot products: 12 to 28 for each 5 to 16 loads.
#pragma once

#include "ahead.h"
#include "matrix.h"

namespace quanto {
namespace {

// Products of one quad of T rows with the bytes of P panels, into sums of 32 bits, or of 16 where `narrow`.
template <Code C, int T, int P, bool narrow>
QUANTO_INLINE inline void multiply_bytes(const int32_t* x, const I* quad, I* sum) {
  each<T>([&](auto m) QUANTO_INLINE {
    const auto xs = V::spread(x[m]);
    each<P>([&](auto i) QUANTO_INLINE {
      constexpr int at = m * P + i;
      if constexpr (narrow) {
        sum[at] = Of<C>::dot16(sum[at], quad[i], xs);
      } else {
        sum[at] = Of<C>::dot(sum[at], quad[i], xs);
      }
    });
  });
}

// The same with bytes that lie decoded.
template <Code C, int T, int P, bool narrow>
QUANTO_INLINE inline void multiply_quad(const int32_t* x, const uint8_t* quads, I* sum) {
  I quad[P];
  each<P>([&](auto i) QUANTO_INLINE { quad[i] = V::load_words(quads + i * 64); });
  multiply_bytes<C, T, P, narrow>(x, quad, sum);
}

// Whether each tile can decode words as it multiplies them, where one register holds a panel: one to three instructions beside
// 20 to 28 products, instead of bytes that take the place of activations in the first-level cache.
template <Code C>
constexpr bool kDirect = V::kRegisters == 1 && kWords<C> == 1;

// Products of `quads` quads of T rows with words of P panels, which lie `apart` bytes apart.
template <Code C, int T, int P>
QUANTO_INLINE inline void multiply_words(const int32_t* x, const uint8_t* codes, int64_t apart, int64_t quads, const Tables& t,
                                         I* sum) {
  constexpr int Q = kUnit<C> / 4;
  for (int64_t k = 0; k < quads; k += Q, x += Q * T, codes += 64) {
    I words[P];
    each<P>([&](auto i) QUANTO_INLINE { words[i] = V::load_words(codes + i * apart); });
    each<Q>([&](auto j) QUANTO_INLINE {
      I quad[P];
      each<P>([&](auto i) QUANTO_INLINE { quad[i] = bytes<C, j>(words + i, t); });
      multiply_bytes<C, T, P, false>(x + j * T, quad, sum);
    });
  }
}

// How often loops over quads are unrolled: twice takes 6 % less time for int4 and 1 to 3 % less for int8 on AVX2, but half as
// much again on AVX-512, where sums leave no register free.
constexpr int kUnrolled = V::kRegisters == 2 ? 2 : 1;

// A group of a block of activations, of all tiles: what of it belongs to the first, and how far on the next one's lies.
struct Strip {
  int64_t tiles, length;  // quads of the group
  const int32_t* x;
  const float *scales, *sums;  // step by rows
  const int32_t* starts;
  int64_t x_step, starts_step;
  const int32_t *rest, *places, *rests;  // the quads that come a second time, or nullptr
  int64_t groups, run;                   // of the block; quads that are added up in 16 bits
  const uint8_t* const* later;           // codes to ask for, of each panel, some with each tile: all at once would wait
  int64_t lines;
  const Tables* tables;    // of what each tile decodes,
  int64_t apart;           // and bytes from one panel to the other
  const Results* results;  // where they go, if this is the last part of them
};

// Asks for what belongs to a tile of the codes that are decoded later.
template <int P>
QUANTO_INLINE inline void ask_later(const Strip& s, int64_t tile) {
  for (int64_t line = tile * s.lines; line < (tile + 1) * s.lines; ++line) {
    for (int i = 0; i < P; ++i) ask_early(s.later[i] + line * 64);
  }
}

// Whether sums begin where `starts` says, so that the offset of bytes need not be taken off.
constexpr bool kStarts = V::kPairs;

// Of each tile: sums[T, 16 P] += (products of a group - zero · sums of x) · scale · scales of x. Without `scale` where a row has
// one, by which its result is multiplied.
template <Code C, int T, int P, bool direct>
void multiply_quads(const Strip& s, const uint8_t* quads, const F* scale, const F* zero, float* to) {
  for (int64_t tile = 0; tile < s.tiles; ++tile, to += T * P * kRows) {
    const int32_t* x = s.x + tile * s.x_step;
    const uint8_t* w = quads;
    ask_later<P>(s, tile);
    I sum[T * P];
    if constexpr (kStarts) {
      const int32_t* starts = s.starts + tile * s.starts_step;
      each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = Of<C>::both(V::spread(starts[j / P])); });
    } else {
      each<T * P>([&](auto j) QUANTO_INLINE { sum[j] = V::izero(); });
    }
    if constexpr (kMatrix) {
      static_assert(P == 1, "panels one by one");
      matrix_sums<T>(x, quads, s.length, 64, sum);
    } else if constexpr (direct) {
      multiply_words<C, T, P>(x, quads, s.apart, s.length, *s.tables, sum);
    } else {
#pragma GCC unroll kUnrolled
      for (int64_t k = 0; k < s.length; ++k, x += T, w += 64 * P) multiply_quad<C, T, P, false>(x, w, sum);
      if constexpr (kPairs<C>) {
        for (int64_t k = 0; s.rests && k < s.rests[tile]; ++k) {
          const int64_t at = tile * s.x_step / T + k;
          multiply_quad<C, T, P, false>(s.rest + at * T, quads + s.places[at] * 64 * P, sum);
        }
      }
    }
    each<T>([&](auto m) QUANTO_INLINE {
      const F xs = V::set(s.scales[tile * T + m]), total = V::set(s.sums[tile * T + m]);
      each<P>([&](auto i) QUANTO_INLINE {
        float* at = to + (m * P + i) * kRows;
        F y = V::to_float(sum[m * P + i]);
        if (zero) y = V::fnmadd(zero[i], total, y);
        V::store(at, V::fmadd(y, scale ? V::mul(scale[i], xs) : xs, V::load(at)));
      });
    });
    if (s.results) store_tile(*s.results, tile, T, to);
  }
}

// The same of all groups of a block, which have one scale of x: products are added up in 16 bits for `run` quads, in
// floats then. `zero` is multiplied by `scale`.
template <Code C, int T, int P>
void multiply_runs(const Strip& s, const uint8_t* quads, const F* scale, const F* zero, float* to) {
  const int32_t* x = s.x;
  for (int64_t tile = 0; tile < s.tiles; ++tile, to += T * P * kRows) {
    const int32_t* starts = s.starts + tile * s.starts_step;
    const uint8_t* w = quads;
    ask_later<P>(s, tile);
    F y[T * P];
    each<T * P>([&](auto j) QUANTO_INLINE { y[j] = V::zero(); });
    for (int64_t q = 0; q < s.groups; ++q) {
      for (int64_t k = 0; k < s.length;) {
        I part[T * P];
        each<T * P>([&](auto j) QUANTO_INLINE { part[j] = Of<C>::both(V::spread(starts[j / P])); });
        starts += T;
#pragma GCC unroll kUnrolled
        for (const int64_t stop = std::min(s.length, k + s.run); k < stop; ++k, x += T, w += 64 * P) {
          multiply_quad<C, T, P, true>(x, w, part);
        }
        each<T * P>([&](auto j) QUANTO_INLINE {
          y[j] = V::fmadd(V::to_float(Of<C>::widen(V::izero(), part[j])), scale[q * P + j % P], y[j]);
        });
      }
      if (!zero) continue;
      const float* total = s.sums + (q * s.tiles + tile) * T;
      each<T * P>([&](auto j) QUANTO_INLINE { y[j] = V::fnmadd(V::set(total[j / P]), zero[q * P + j % P], y[j]); });
    }
    each<T * P>([&](auto j) QUANTO_INLINE {
      float* at = to + j * kRows;
      V::store(at, V::fmadd(y[j], V::set(s.scales[tile * T + j / P]), V::load(at)));
    });
    if (s.results) store_tile(*s.results, tile, T, to);
  }
}

using MultiplyTiles = void (*)(const Strip&, const uint8_t*, const F*, const F*, float*);
struct ByTile {
  MultiplyTiles of[V::kIntegerTile];
};
template <Code C, int P, bool direct, int... T>
constexpr ByTile by_tile(std::integer_sequence<int, T...>) {
  if constexpr (kNarrow<C>) {
    return {{multiply_runs<C, T + 1, P>...}};
  } else {
    return {{multiply_quads<C, T + 1, P, direct>...}};
  }
}

// Bytes of units begin … end of a panel: out[quad * stride], 16 rows each.
template <Code C>
void decode_bytes(const Panel& p, const Tables& t, int64_t begin, int64_t end, uint8_t* out, int stride) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  for (int64_t u = begin; u < end; ++u, out += U / 4 * stride) {
    I words[N];
    for (int j = 0; j < N; ++j) {
      words[j] = V::load_words(p.codes + (u * N + j) * 64);
    }
    each<U / 4>([&](auto j) QUANTO_INLINE { V::store_words(out + j * stride, bytes<C, j>(words, t)); });
  }
}

// Most groups of a block: those of one unit.
template <Code C>
constexpr int kGroups = kRoundedAtOnce / kUnit<C>;

template <Code C>
void integer_blocks(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = V::kWidth, U = kUnit<C>;
  static_assert(P <= 2, "`apart` leads to one other panel");
  static constexpr auto heights = std::make_integer_sequence<int, V::kIntegerTile>{};
  static constexpr auto decoded = by_tile<C, P, false>(heights), words = by_tile<C, P, kDirect<C>>(heights);
  const bool direct = kDirect<C> && is_amd();
  const auto kernel = (direct ? words : decoded).of[a.tile - 1];
  const Tables t = tables<C>(*w.format);
  const int64_t tiles = a.tiles();
  const int64_t runs = runs_of(w, a);
  const bool zeros = !kStarts || w.zero_type != Type::kNone;
  const float offset = kStarts ? 0.f : byte_offset<C>(*w.format);
  alignas(64) uint8_t quads[kDecodedAtOnce / 4 * 64 * P];
  const bool scaled = kNarrow<C> || w.groups != 1 || a.large;  // or results are, once
  const Buffer<float> sums = allocate<float>(tiles * a.tile * kRows * P);
  Panels source(w);
  for (int64_t first = begin; first < end; first += P) {
    Panel panels[P];
    const int count = source.fill(panels, first, end);
    std::fill_n(sums.get(), tiles * a.tile * kRows * P, 0.f);
    const uint8_t* later[P];
    const Results results{w, out, panels, first, a.rows, count, P, w.global * w.format->byte_scale, scaled};
    for (int64_t q = 0; q < w.groups; q += a.span) {
      const int64_t groups = std::min(a.span, w.groups - q);
      F s[kGroups<C> * P], z[kGroups<C> * P];
      for (int64_t i = 0; i < groups * P; ++i) {
        s[i] = scale_of(w, panels[i % P], q + i / P);
        if (zeros) z[i] = zero_of(w, panels[i % P], q + i / P, offset);
        if (zeros && kNarrow<C>) z[i] = V::mul(z[i], s[i]);
      }
      for (int64_t b = 0; b < a.blocks; ++b) {
        const Part part = part_of(w, a, q, b);
        const int64_t unit = part.first * 4 / U, last = (part.first + part.size) * 4 / U;
        Strip strip{};
        const uint8_t* from = direct ? panels[0].codes + unit * 64 : quads;
        const int64_t step = direct ? w.units * 64 : part.size / groups * 64 * P;
        strip.tables = &t;
        strip.apart = reinterpret_cast<intptr_t>(panels[P - 1].codes) - reinterpret_cast<intptr_t>(panels[0].codes);
        for (int i = 0; !direct && i < P; ++i) decode_bytes<C>(panels[i], t, unit, last, quads + i * 64, 64 * P);
        strip.tiles = tiles, strip.length = part.size / groups, strip.groups = groups, strip.run = a.run;
        strip.x_step = part.size * a.tile, strip.starts_step = groups * runs * a.tile;
        for (int i = 0; i < P; ++i) later[i] = panels[i].codes + unit * kWords<C> * 64 + kFarAhead;
        strip.later = later, strip.lines = (part.size * 4 / U * kWords<C> + tiles - 1) / tiles;
        for (int64_t g = 0; g < groups; g += kNarrow<C> ? groups : 1, strip.lines = 0) {
          const int64_t at = quads_at(w, a, 0, q + g, b), scales = scales_at(w, a, 0, q + g, b);
          strip.x = a.quads + at, strip.scales = a.scales + scales, strip.sums = a.sums + scales;
          if (a.starts) strip.starts = a.starts + starts_at(w, a, 0, q + g, b, runs);
          if (a.rests) {
            strip.rest = a.rest + at, strip.places = a.rest_places + at / a.tile, strip.rests = a.rests + scales / a.tile;
          }
          if (q + groups == w.groups && b + 1 == a.blocks && (kNarrow<C> || g + 1 == groups)) strip.results = &results;
          const F* scale = scaled ? s + g * P : nullptr;
          kernel(strip, from + g * step, scale, zeros ? z + g * P : nullptr, sums.get());
        }
      }
    }
  }
}

}  // namespace
}  // namespace quanto
