// SPDX-License-Identifier: Apache-2.0
// Panels by number, and where results go.
#pragma once

#include <algorithm>

#include "decode.h"
#include "memory.h"
#include "nonlinearity.h"

namespace quanto {
namespace {

struct Panel {
  const uint8_t* codes;
  const uint8_t* scale;
  const uint8_t* zero;
  const float* poison;
};

// Gives panels by number; those that are canonical are made in memory of its own.
class Panels {
 public:
  explicit Panels(const Weight& w) : w_(w) {}

  Panel get(int64_t panel, int slot) {
    const int64_t bytes = panel_bytes(w_), s = size_of(w_.scale_type), z = size_of(w_.zero_type), g = w_.groups * kRows;
    const uint8_t *codes, *scale, *zero;
    if (panel < w_.ready) {
      codes = w_.codes + panel * kRows * w_.stride;
      scale = static_cast<const uint8_t*>(w_.scale) + panel * g * s;
      zero = static_cast<const uint8_t*>(w_.zero) + panel * g * z;
    } else {
      const int64_t padded = (bytes + 63) / 64 * 64;
      if (!own_[slot]) own_[slot] = allocate<uint8_t>(padded + g * (s + z) + 64);
      uint8_t* p = own_[slot].get();
      pack_panel(w_, panel, p, p + padded, p + padded + g * s);
      codes = p, scale = p + padded, zero = scale + g * s;
    }
    const float* poison = w_.poisoned() ? reinterpret_cast<const float*>(codes + bytes - kRows * 4) : nullptr;
    return {codes, scale, zero, poison};
  }

  // Panels first …, `P` of them, before `end`; the first stands for those that are missing. Returns how many are there.
  template <int P>
  int fill(Panel (&panels)[P], int64_t first, int64_t end) {
    const int count = static_cast<int>(std::min<int64_t>(P, end - first));
    for (int i = 0; i < P; ++i) panels[i] = i < count ? get(first + i, i) : panels[0];
    return count;
  }

 private:
  const Weight& w_;
  Buffer<uint8_t> own_[4];
};

// Sixteen numbers of a group; float32 ones without a call.
QUANTO_INLINE inline F of_group(const uint8_t* numbers, Type type, int64_t group) {
  if (type == Type::kFloat) return V::load(reinterpret_cast<const float*>(numbers) + group * kRows);
  return V::load_as(numbers + group * kRows * size_of(type), type);
}

QUANTO_INLINE inline F scale_of(const Weight& w, const Panel& p, int64_t group) { return of_group(p.scale, w.scale_type, group); }

// The zero point of a group plus the offset that codes still have.
QUANTO_INLINE inline F zero_of(const Weight& w, const Panel& p, int64_t group, float offset) {
  if (w.zero_type == Type::kNone) return V::set(offset);
  return V::add(of_group(p.zero, w.zero_type, group), V::set(offset));
}

void store_row(const Weight& w, const Output& out, const Panel& p, int64_t panel, int64_t row, F y, float factor) {
  alignas(64) float values[kRows];
  y = V::mul(y, V::set(factor));
  if (p.poison) y = V::add(y, V::load(p.poison));
  const int64_t first = panel * kRows;
  const int count = static_cast<int>(std::min<int64_t>(kRows, w.n - first));
  if (out.bias && count == kRows) y = V::add(y, V::load(out.bias + first));
  const bool late = out.bias && count < kRows;
  if (out.then != Nonlinearity::kNone && !late) {
    V::store(values, y);
    go_through(out.then, values);
    y = V::load(values);
  }
  if (count == kRows && V::store_as(out.data, row * w.n + first, out.type, y, out.scale)) return;
  V::store(values, y);
  if (late) {
    for (int i = 0; i < count; ++i) values[i] += out.bias[first + i];
    go_through(out.then, values);
  }
  for (int i = 0; i < count; ++i) V::store_one(out.data, row * w.n + first + i, out.type, values[i], out.scale);
}

// Where results of several panels go, and what their sums are multiplied by: `factor`, and the scale of each feature where
// sums are without it.
struct Results {
  const Weight& w;
  const Output& out;
  const Panel* panels;
  int64_t first, rows;
  int count, width;
  float factor;
  bool scaled = true;
};

// Stores a tile of `height` rows from its sums [height, 16 width]. To be called while there is more to compute: results of
// 16 features lie far apart, and one after the other they would wait for memory.
void store_tile(const Results& r, int64_t tile, int height, const float* sums) {
  const Weight& w = r.w;
  const Output& out = r.out;
  const int64_t begin = tile * height, end = std::min(r.rows, begin + height);
  F scales[V::kWidth]{}, bias[V::kWidth]{};
  const F factor = V::set(r.factor);
  const bool plain = out.then == Nonlinearity::kNone && (r.first + r.count) * kRows <= w.n && !r.panels[0].poison;
  for (int i = 0; i < r.count; ++i) {
    scales[i] = r.scaled ? V::set(1) : scale_of(w, r.panels[i], 0);
    bias[i] = plain && out.bias ? V::load(out.bias + (r.first + i) * kRows) : V::zero();
  }
  for (int64_t row = begin; row < end; ++row, sums += r.width * kRows) {
    for (int i = 0; i < r.count; ++i) {
      const F y = V::mul(V::mul(V::load(sums + i * kRows), scales[i]), factor);
      if (plain && V::store_as(out.data, row * w.n + (r.first + i) * kRows, out.type, V::add(y, bias[i]), out.scale)) continue;
      store_row(w, out, r.panels[i], r.first + i, row, y, 1);
    }
  }
}

}  // namespace
}  // namespace quanto
