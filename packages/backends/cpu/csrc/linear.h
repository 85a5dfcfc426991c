// SPDX-License-Identifier: Apache-2.0
// The kernels, written once for every instruction set and chosen by format and tile. Included by isa_*.cpp, which define
// the vector `V`. One lane of a register is one output feature; activations are broadcast.
#pragma once

#include "digits.h"
#include "exact.h"
#include "few.h"
#include "halves.h"
#include "integer.h"
#include "one.h"
#include "walk.h"

namespace quanto {
namespace {

template <Code C, int T>
void small_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = kPanels<T>;
  walk(w, a, out, begin, end, P, small_tile<C, T, P>, small_tile<C, T, 1>);
}

// The digits of one row.
template <Code C, int T>
void digit_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = V::kRegisters == 1 ? V::kStreams : 1;  // the sums of more panels would not fit into 16 registers
  constexpr Tile one = one_tile<C, T, 1, C == Code::kInt8 ? Asks::kNever : Asks::kFirst>;
  if (P > 1 && !is_amd()) {
    walk(w, a, out, begin, end, P, one_tile<C, T, P, Asks::kFirst>, one);
  } else {
    walk(w, a, out, begin, end, 1, one, one);
  }
}

// One row of integers, where a processor reads faster from one place than from several. It fetches bytes ahead by itself.
template <Code C>
void one_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr Tile tile = one_tile<C, 1, 1, C == Code::kInt8 ? Asks::kNever : Asks::kFirst>;
  walk(w, a, out, begin, end, 1, tile, tile);
}

template <Code C, int T>
void integer_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = kPanels<T>;
  if (V::kRegisters == 1 && is_amd()) {
    constexpr Asks A = V::kRegisters == 1 ? Asks::kSecond : Asks::kFirst;  // what is not taken is not made twice
    walk(w, a, out, begin, end, P, integer_tile<C, T, P, A>, integer_tile<C, T, 1, A>);
  } else {
    walk(w, a, out, begin, end, P, integer_tile<C, T, P>, integer_tile<C, T, 1>);
  }
}

using Run = void (*)(const Weight&, const Activations&, const Output&, int64_t, int64_t);

template <Code C>
Run small_for(int tile) {
  switch (tile) {
    case 1: return small_panels<C, 1>;
    case 2: return small_panels<C, 2>;
    case 4: return small_panels<C, 4>;
    default: return small_panels<C, V::kSmallTile>;
  }
}

template <Code C, int T>
void integer_halves(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  Tile tile = halves_tile<C, T>;
  if constexpr (kNarrow<C>) {
    if (a.run) tile = run_halves_tile<C, T>;
  }
  walk(w, a, out, begin, end, 1, tile, tile);
}

template <Code C>
Run integer_for(const Activations& a) {
  if (!a.few) return integer_blocks<C>;
  if constexpr (kDigitCode<C>) {
    if (a.digits) return a.tile == kUsualDigits ? digit_panels<C, kUsualDigits> : digit_panels<C, kMostDigits>;
  }
  switch (a.tile) {
    case 1: return is_amd() && !(V::kRegisters == 1 && C == Code::kSmallTable) ? one_panels<C> : integer_panels<C, 1>;
    case 2: return integer_panels<C, 2>;
    case 4: return integer_panels<C, 4>;
    default: break;
  }
  if constexpr (V::kHalves) {
    return a.tile == 6 ? integer_halves<C, 6> : integer_halves<C, V::kFewTile>;
  } else {
    return integer_panels<C, V::kFewTile>;
  }
}

void small(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  with_code(w.format->code, [&](auto code) { return small_for<decltype(code)::value>(a.tile); })(w, a, out, begin, end);
}

void exact(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  with_code(w.format->code, [&](auto code) { exact_panels<decltype(code)::value>(w, a, out, begin, end); });
}

void integer(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  with_code(w.format->code, [&](auto code) {
    constexpr Code C = decltype(code)::value;
    if constexpr (C < Code::kE4M3) integer_for<C>(a)(w, a, out, begin, end);  // float8 are no integers
  });
}

template <Code C>
void dequantize_panels(const Weight& w, int64_t begin, int64_t end, void* out, Type type) {
  constexpr int U = kUnit<C>, step = kChunk / U;
  alignas(64) float values[kChunk * kRows];
  alignas(64) float row_values[kChunk];
  Panels source(w);
  const int64_t units = w.groups * w.units, length = w.units * U;
  for (int64_t panel = begin; panel < end; ++panel) {
    const Panel p = source.get(panel, 0);
    for (int64_t u = 0; u < units; u += step) {
      const int64_t last = std::min(units, u + step);
      decode_units<C>(w, p, u, last, values, kRows);
      for (int r = 0; r < kRows && panel * kRows + r < w.n; ++r) {
        const float poison = p.poison ? p.poison[r] : 0.f;
        int64_t at = -1, count = 0;
        for (int64_t i = 0; i < (last - u) * U; ++i) {
          const int64_t pad = u * U + i, k = pad / length * w.group + pad % length;
          if (pad % length >= w.group || k >= w.k) continue;
          if (at < 0) at = k;
          row_values[count++] = values[i * kRows + r] * w.global + poison;
        }
        if (count) V::store_many(out, (panel * kRows + r) * w.k + at, type, count, row_values);
      }
    }
  }
}

void dequantize(const Weight& w, int64_t begin, int64_t end, void* out, Type type) {
  with_code(w.format->code, [&](auto code) { dequantize_panels<decltype(code)::value>(w, begin, end, out, type); });
}

}  // namespace
}  // namespace quanto
