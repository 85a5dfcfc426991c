// SPDX-License-Identifier: Apache-2.0
// The kernels, written once for every instruction set and chosen by format and tile. Included by isa_*.cpp, which define
// the vector `V`. One lane of a register is one output feature; activations are broadcast.
#pragma once

#include "activations.h"
#include "exact.h"
#include "few.h"
#include "integer.h"
#include "walk.h"

namespace quanto {
namespace {

template <Code C, int T>
void small_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = kPanels<T>;
  walk(w, a, out, begin, end, P, small_tile<C, T, P>, small_tile<C, T, 1>);
}

template <Code C, int T>
void integer_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = kPanels<T>;
  walk(w, a, out, begin, end, P, integer_tile<C, T, P>, integer_tile<C, T, 1>);
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
  walk(w, a, out, begin, end, 1, halves_tile<C, T>, halves_tile<C, T>);
}

template <Code C>
Run integer_for(const Activations& a) {
  if (!a.few) return integer_blocks<C>;
  switch (a.tile) {
    case 1: return integer_panels<C, 1>;
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
  Run run = nullptr;
  switch (w.format->code) {
    case Code::kInt8: run = small_for<Code::kInt8>(a.tile); break;
    case Code::kInt4: run = small_for<Code::kInt4>(a.tile); break;
    case Code::kInt3: run = small_for<Code::kInt3>(a.tile); break;
    case Code::kInt2: run = small_for<Code::kInt2>(a.tile); break;
    case Code::kTable4: run = small_for<Code::kTable4>(a.tile); break;
    case Code::kSmallTable: run = small_for<Code::kSmallTable>(a.tile); break;
    case Code::kE4M3: run = small_for<Code::kE4M3>(a.tile); break;
    case Code::kE5M2: run = small_for<Code::kE5M2>(a.tile); break;
    case Code::kE4M3Z: run = small_for<Code::kE4M3Z>(a.tile); break;
    case Code::kE5M2Z: run = small_for<Code::kE5M2Z>(a.tile); break;
  }
  run(w, a, out, begin, end);
}

void exact(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  Run run = nullptr;
  switch (w.format->code) {
    case Code::kInt8: run = exact_panels<Code::kInt8>; break;
    case Code::kInt4: run = exact_panels<Code::kInt4>; break;
    case Code::kInt3: run = exact_panels<Code::kInt3>; break;
    case Code::kInt2: run = exact_panels<Code::kInt2>; break;
    case Code::kTable4: run = exact_panels<Code::kTable4>; break;
    case Code::kSmallTable: run = exact_panels<Code::kSmallTable>; break;
    case Code::kE4M3: run = exact_panels<Code::kE4M3>; break;
    case Code::kE5M2: run = exact_panels<Code::kE5M2>; break;
    case Code::kE4M3Z: run = exact_panels<Code::kE4M3Z>; break;
    case Code::kE5M2Z: run = exact_panels<Code::kE5M2Z>; break;
  }
  run(w, a, out, begin, end);
}

void integer(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  Run run = nullptr;
  switch (w.format->code) {
    case Code::kInt8: run = integer_for<Code::kInt8>(a); break;
    case Code::kInt4: run = integer_for<Code::kInt4>(a); break;
    case Code::kInt3: run = integer_for<Code::kInt3>(a); break;
    case Code::kInt2: run = integer_for<Code::kInt2>(a); break;
    case Code::kSmallTable: run = integer_for<Code::kSmallTable>(a); break;
    default: run = integer_for<Code::kTable4>(a); break;
  }
  run(w, a, out, begin, end);
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
  switch (w.format->code) {
    case Code::kInt8: return dequantize_panels<Code::kInt8>(w, begin, end, out, type);
    case Code::kInt4: return dequantize_panels<Code::kInt4>(w, begin, end, out, type);
    case Code::kInt3: return dequantize_panels<Code::kInt3>(w, begin, end, out, type);
    case Code::kInt2: return dequantize_panels<Code::kInt2>(w, begin, end, out, type);
    case Code::kTable4: return dequantize_panels<Code::kTable4>(w, begin, end, out, type);
    case Code::kSmallTable: return dequantize_panels<Code::kSmallTable>(w, begin, end, out, type);
    case Code::kE4M3: return dequantize_panels<Code::kE4M3>(w, begin, end, out, type);
    case Code::kE5M2: return dequantize_panels<Code::kE5M2>(w, begin, end, out, type);
    case Code::kE4M3Z: return dequantize_panels<Code::kE4M3Z>(w, begin, end, out, type);
    case Code::kE5M2Z: return dequantize_panels<Code::kE5M2Z>(w, begin, end, out, type);
  }
}

}  // namespace
}  // namespace quanto
