// SPDX-License-Identifier: Apache-2.0
// The kernels, written once for every instruction set. Included by isa_*.cpp, which define the vector `V`.
//
// All of them walk down panels of 16 output features with one register lane for each, and broadcast activations:
//
//     small      decodes a word, multiplies it with the 1 … 8 rows of a tile, adds a group's sum times its scale.
//                Bound by reading codes. 4 bits: shift, look up, fused multiply-add for 16 products.
//     exact      decodes 256 positions of two panels into a buffer once, then multiplies it with all tiles as sgemm
//                would. Bound by fused multiply-adds.
//     integer    as small, on int8 activations: four products per lane and instruction, exact in int32.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "problem.h"

namespace quanto {
namespace {

using F = V::F;
using I = V::I;

// -- decoding ---------------------------------------------------------------------------------------------------------

// Whether values of a code come with their offset taken off already.
template <Code C>
constexpr bool kFolded = C == Code::kInt8 || C >= Code::kTable4 || V::kLookup;

struct Tables {
  V::Table values;
  V::Bytes bytes;
};

Tables tables(const Format& f) {
  alignas(64) float values[16];
  alignas(64) uint8_t bytes[16] = {};
  for (int i = 0; i < 16; ++i) {
    values[i] = f.table ? f.table[i] : static_cast<float>((i & ((1 << f.bits) - 1)) - f.offset);
    if (f.bytes) bytes[i] = f.bytes[i];
  }
  return {V::table(values), V::bytes(bytes)};
}

// Whether bytes use all of their range, so that sums of two products do not fit 16 bits.
template <Code C>
constexpr bool kFull = C == Code::kInt8 || C == Code::kTable4;

template <Code C>
constexpr int kUnit = C == Code::kInt3 ? 32 : C == Code::kInt2 ? 16 : C == Code::kInt4 || C == Code::kTable4 ? 8 : 4;
template <Code C>
constexpr int kWords = C == Code::kInt3 ? 3 : 1;

// The value of code K of a unit, for 16 rows.
template <Code C, int K>
inline F value(const I* words, const Tables& t) {
  if constexpr (C == Code::kInt8) {
    return V::to_float(V::template sar<24>(V::template shl<24 - 8 * K>(words[0])));
  } else if constexpr (C == Code::kInt4 || C == Code::kTable4) {
    const I code = V::template shr<4 * K>(words[0]);
    if constexpr (C == Code::kTable4 || V::kLookup) return V::lookup(t.values, code);
    return V::to_float(V::band(code, 15));
  } else if constexpr (C == Code::kInt2) {
    const I code = V::template shr<2 * K>(words[0]);
    if constexpr (V::kLookup) return V::lookup(t.values, code);
    return V::to_float(V::band(code, 3));
  } else if constexpr (C == Code::kInt3) {
    constexpr int i = K % 16, at = 8 * (i / 4) + 4 * (K / 16) + i % 4;
    const I low = V::template shr<2 * i>(words[K / 16]);
    I high;
    if constexpr (at >= 2) {
      high = V::template shr<at - 2>(words[2]);
    } else {
      high = V::template shl<2 - at>(words[2]);
    }
    if constexpr (V::kLookup) return V::lookup(t.values, V::merge(low, high));  // bit 3 is arbitrary
    return V::to_float(V::bor(V::band(low, 3), V::band(high, 4)));
  } else {
    // Sign, exponent and mantissa move into a float, whose exponent is then corrected; subnormals come out right.
    constexpr bool four = C == Code::kE4M3 || C == Code::kE4M3Z;
    constexpr float shift = C == Code::kE4M3 ? 0x1p120f : C == Code::kE4M3Z ? 0x1p119f : C == Code::kE5M2 ? 0x1p112f : 0x1p111f;
    I byte;
    if constexpr (K == 3) {
      byte = V::template shr<24>(words[0]);
    } else {
      byte = V::template shr<8 * K>(words[0]);
    }
    const I sign = V::band(V::template shl<24>(byte), 0x80000000u);
    const I rest = V::template shl<four ? 20 : 21>(V::band(byte, 0x7f));
    return V::mul(V::as_float(V::bor(sign, rest)), V::set(shift));
  }
}

// Codes 4J … of a unit (in the order of `position`) as unsigned bytes, four to a lane.
template <Code C, int J>
inline I bytes(const I* words, const Tables& t) {
  if constexpr (C == Code::kInt8) {
    return V::bxor(words[0], 0x80808080u);
  } else if constexpr (C == Code::kInt4) {
    return V::band(V::template shr<4 * J>(words[0]), 0x0f0f0f0fu);
  } else if constexpr (C == Code::kTable4) {
    return V::shuffle(t.bytes, V::band(V::template shr<4 * J>(words[0]), 0x0f0f0f0fu));
  } else if constexpr (C == Code::kInt2) {
    return V::band(V::template shr<2 * J>(words[0]), 0x03030303u);
  } else {
    const I low = V::band(V::template shr<2 * (J % 4)>(words[J / 4]), 0x03030303u);
    if constexpr (J >= 2) {
      return V::bor(low, V::band(V::template shr<J - 2>(words[2]), 0x04040404u));
    } else {
      return V::bor(low, V::band(V::template shl<2 - J>(words[2]), 0x04040404u));
    }
  }
}

// The position, within a unit, of byte b of the J-th quad.
int position(Code c, int j, int b) {
  switch (c) {
    case Code::kInt4:
    case Code::kTable4: return 2 * b + j;
    case Code::kInt2: return 4 * b + j;
    case Code::kInt3: return 16 * (j / 4) + 4 * b + j % 4;
    default: return b;
  }
}

template <class Body, int... K>
inline void unrolled(std::integer_sequence<int, K...>, Body body) {
  (body(std::integral_constant<int, K>{}), ...);
}

// -- panels -----------------------------------------------------------------------------------------------------------

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
      auto& own = own_[slot];
      const int64_t padded = (bytes + 63) / 64 * 64;
      if (!own) own.reset(new (std::align_val_t(64)) uint8_t[padded + g * (s + z) + 64]);
      uint8_t* p = own.get();
      pack_panel(w_, panel, p, p + padded, p + padded + g * s);
      codes = p, scale = p + padded, zero = scale + g * s;
    }
    const float* poison = w_.poisoned() ? reinterpret_cast<const float*>(codes + bytes - kRows * 4) : nullptr;
    return {codes, scale, zero, poison};
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  const Weight& w_;
  std::unique_ptr<uint8_t[], Free> own_[4];
};

F scale_of(const Weight& w, const Panel& p, int64_t group) {
  return V::load_as(p.scale + group * kRows * size_of(w.scale_type), w.scale_type);
}

// The zero point of a group plus the offset that codes still have.
F zero_of(const Weight& w, const Panel& p, int64_t group, float offset) {
  const F zero = w.zero_type == Type::kNone ? V::zero() : V::load_as(p.zero + group * kRows * size_of(w.zero_type), w.zero_type);
  return V::add(zero, V::set(offset));
}

void store_row(const Weight& w, const Output& out, const Panel& p, int64_t panel, int64_t row, F y, float factor) {
  alignas(64) float values[kRows];
  y = V::mul(y, V::set(factor));
  if (p.poison) y = V::add(y, V::load(p.poison));
  const int64_t first = panel * kRows;
  const int count = static_cast<int>(std::min<int64_t>(kRows, w.n - first));
  if (out.bias && count == kRows) y = V::add(y, V::load(out.bias + first));
  if (count == kRows && V::store_as(out.data, row * w.n + first, out.type, y, out.scale)) return;
  V::store(values, y);
  if (out.bias && count < kRows) {
    for (int i = 0; i < count; ++i) values[i] += out.bias[first + i];
  }
  for (int i = 0; i < count; ++i) V::store_one(out.data, row * w.n + first + i, out.type, values[i], out.scale);
}

// -- kernels ----------------------------------------------------------------------------------------------------------

template <Code C, int T, int P>
void small_tile(const Weight& w, const Panel* panels, int64_t first, const Activations& a, int64_t tile, const Output& out) {
  constexpr int U = kUnit<C>, N = kWords<C>, S = T * P >= 8 ? 1 : T * P >= 4 ? 2 : 4;  // sums that do not wait for another
  const Tables t = tables(*w.format);
  const float* x = a.values + tile * w.padded() * T;
  const float* sums = a.sums + tile * w.groups * a.blocks * T;
  const float offset = kFolded<C> ? 0.f : static_cast<float>(w.format->offset);
  const bool shifted = !kFolded<C> || w.zero_type != Type::kNone;
  const uint8_t* codes[P];
  F y[T][P];
  for (int i = 0; i < P; ++i) codes[i] = panels[i].codes;
  for (auto& row : y) for (auto& v : row) v = V::zero();
  for (int64_t q = 0; q < w.groups; ++q) {
    F sum[T][P][S];
    for (auto& row : sum) for (auto& v : row) for (auto& part : v) part = V::zero();
    for (int64_t u = 0; u < w.units; ++u) {
      for (int i = 0; i < P; ++i) {
        I words[N];
        for (int j = 0; j < N; ++j) words[j] = V::load_words(codes[i] + j * 64);
        V::prefetch(codes[i] + 1024);
        codes[i] += N * 64;
        unrolled(std::make_integer_sequence<int, U>{}, [&](auto k) {
          const F v = value<C, k>(words, t);
          for (int m = 0; m < T; ++m) sum[m][i][k % S] = V::fmadd(v, V::set(x[k * T + m]), sum[m][i][k % S]);
        });
      }
      x += U * T;
    }
    for (int i = 0; i < P; ++i) {
      const F s = scale_of(w, panels[i], q);
      const F z = zero_of(w, panels[i], q, offset);
      for (int m = 0; m < T; ++m) {
        F total = sum[m][i][0];
        for (int part = 1; part < S; ++part) total = V::add(total, sum[m][i][part]);
        if (shifted) total = V::fnmadd(z, V::set(sums[q * a.blocks * T + m]), total);
        y[m][i] = V::fmadd(s, total, y[m][i]);
      }
    }
  }
  for (int m = 0; m < T && tile * T + m < a.rows; ++m) {
    for (int i = 0; i < P; ++i) store_row(w, out, panels[i], first + i, tile * T + m, y[m][i], w.global);
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
  F y[T][P];
  for (int i = 0; i < P; ++i) codes[i] = panels[i].codes;
  for (auto& row : y) for (auto& v : row) v = V::zero();
  for (int64_t q = 0; q < w.groups; ++q) {
    F s[P], z[P];
    for (int i = 0; i < P; ++i) {
      s[i] = scale_of(w, panels[i], q);
      z[i] = zero_of(w, panels[i], q, static_cast<float>(w.format->byte_offset));
    }
    for (int64_t b = 0; b < a.blocks; ++b) {
      I sum[T][P];
      for (auto& row : sum) for (auto& v : row) v = V::izero();
      const int64_t end = std::min(a.block, w.units - b * a.block);
      for (int64_t u = 0; u < end; ++u) {
        I words[P][N];
        for (int i = 0; i < P; ++i) {
          for (int j = 0; j < N; ++j) words[i][j] = V::load_words(codes[i] + j * 64);
          if (T <= 2) V::prefetch(codes[i] + 1024);
          codes[i] += N * 64;
        }
        unrolled(std::make_integer_sequence<int, U / 4>{}, [&](auto j) {
          decltype(V::template quads<kFull<C>>(I{})) quads[P];
          for (int i = 0; i < P; ++i) quads[i] = V::template quads<kFull<C>>(bytes<C, j>(words[i], t));
          for (int m = 0; m < T; ++m) {
            const auto xs = V::template spread<kFull<C>>(x[j * T + m]);
            for (int i = 0; i < P; ++i) sum[m][i] = V::dot(sum[m][i], quads[i], xs);
          }
        });
        x += U / 4 * T;
      }
      for (int m = 0; m < T; ++m) {
        const F xs = V::set(scales[m]), total = V::set(sums[m]);
        for (int i = 0; i < P; ++i) {
          y[m][i] = V::fmadd(V::fnmadd(z[i], total, V::to_float(sum[m][i])), V::mul(s[i], xs), y[m][i]);
        }
      }
      scales += T, sums += T;
    }
  }
  for (int m = 0; m < T && tile * T + m < a.rows; ++m) {
    for (int i = 0; i < P; ++i) store_row(w, out, panels[i], first + i, tile * T + m, y[m][i], w.global * w.format->byte_scale);
  }
}

// Values of units begin … end of a panel: out[position * stride], 16 rows each.
template <Code C>
void decode_units(const Weight& w, const Panel& p, int64_t begin, int64_t end, float* out, int stride) {
  constexpr int U = kUnit<C>, N = kWords<C>;
  const Tables t = tables(*w.format);
  const float offset = kFolded<C> ? 0.f : static_cast<float>(w.format->offset);
  const bool shifted = !kFolded<C> || w.zero_type != Type::kNone;
  int64_t group = -1;
  F s = V::zero(), z = V::zero();
  for (int64_t u = begin; u < end; ++u, out += U * stride) {
    if (u / w.units != group) {
      group = u / w.units;
      s = scale_of(w, p, group);
      z = zero_of(w, p, group, offset);
    }
    I words[N];
    for (int j = 0; j < N; ++j) words[j] = V::load_words(p.codes + (u * N + j) * 64);
    unrolled(std::make_integer_sequence<int, U>{}, [&](auto k) {
      const F v = value<C, k>(words, t);
      V::store(out + k * stride, V::mul(shifted ? V::sub(v, z) : v, s));
    });
  }
}

// sums[T, 16 P] += x[count, T]^T · values[count, 16 P]
template <int T, int P>
void multiply(const float* x, const float* values, int64_t count, float* sums) {
  F sum[T][P];
  for (int m = 0; m < T; ++m) for (int i = 0; i < P; ++i) sum[m][i] = V::load(sums + (m * P + i) * kRows);
  for (int64_t k = 0; k < count; ++k, x += T, values += kRows * P) {
    F v[P];
    for (int i = 0; i < P; ++i) v[i] = V::load(values + i * kRows);
    for (int m = 0; m < T; ++m) {
      const F xs = V::set(x[m]);
      for (int i = 0; i < P; ++i) sum[m][i] = V::fmadd(v[i], xs, sum[m][i]);
    }
  }
  for (int m = 0; m < T; ++m) for (int i = 0; i < P; ++i) V::store(sums + (m * P + i) * kRows, sum[m][i]);
}

constexpr int kChunk = 256;  // positions decoded at once; with two panels 32 KB, the size of a first-level cache

using Multiply = void (*)(const float*, const float*, int64_t, float*);
template <int P, int... T>
constexpr std::array<Multiply, sizeof...(T)> multiply_table(std::integer_sequence<int, T...>) {
  return {multiply<T + 1, P>...};
}

template <Code C>
void exact_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  constexpr int P = V::kWidth, U = kUnit<C>, step = kChunk / U;
  static constexpr auto table = multiply_table<P>(std::make_integer_sequence<int, V::kExactTile>{});
  const Multiply kernel = table[a.tile - 1];
  const int64_t tiles = (a.rows + a.tile - 1) / a.tile, units = w.groups * w.units;
  alignas(64) float values[kChunk * kRows * P];
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  std::unique_ptr<float[], Free> sums(new (std::align_val_t(64)) float[tiles * a.tile * kRows * P]);
  Panels source(w);
  for (int64_t first = begin; first < end; first += P) {
    const int count = static_cast<int>(std::min<int64_t>(P, end - first));
    Panel panels[P];
    for (int i = 0; i < P; ++i) panels[i] = i < count ? source.get(first + i, i) : panels[0];
    std::fill_n(sums.get(), tiles * a.tile * kRows * P, 0.f);
    for (int64_t u = 0; u < units; u += step) {
      const int64_t last = std::min(units, u + step);
      for (int i = 0; i < count; ++i) decode_units<C>(w, panels[i], u, last, values + i * kRows, kRows * P);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        kernel(a.values + (tile * w.padded() + u * U) * a.tile, values, (last - u) * U, sums.get() + tile * a.tile * kRows * P);
      }
    }
    for (int64_t row = 0; row < a.rows; ++row) {
      for (int i = 0; i < count; ++i) {
        store_row(w, out, panels[i], first + i, row, V::load(sums.get() + (row * P + i) * kRows), w.global);
      }
    }
  }
}

// -- choosing among the templates -------------------------------------------------------------------------------------

using Tile = void (*)(const Weight&, const Panel*, int64_t, const Activations&, int64_t, const Output&);

// Runs a kernel over panels begin … end, two at a time where it can.
void walk(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end, Tile wide, Tile narrow) {
  Panels source(w);
  const int64_t tiles = (a.rows + a.tile - 1) / a.tile;
  for (int64_t first = begin; first < end;) {
    const int count = end - first >= V::kWidth ? V::kWidth : 1;
    Panel panels[V::kWidth];
    for (int i = 0; i < count; ++i) panels[i] = source.get(first + i, i);
    const Tile kernel = count > 1 ? wide : narrow;
    for (int64_t tile = 0; tile < tiles; ++tile) kernel(w, panels, first, a, tile, out);
    first += count;
  }
}

template <Code C, int T>
void small_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  walk(w, a, out, begin, end, small_tile<C, T, V::kWidth>, small_tile<C, T, 1>);
}

template <Code C, int T>
void integer_panels(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end) {
  walk(w, a, out, begin, end, integer_tile<C, T, V::kWidth>, integer_tile<C, T, 1>);
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

template <Code C>
Run integer_for(int tile) {
  switch (tile) {
    case 1: return integer_panels<C, 1>;
    case 2: return integer_panels<C, 2>;
    case 4: return integer_panels<C, 4>;
    case 8: return integer_panels<C, V::kIntegerTile >= 8 ? 8 : V::kIntegerTile>;
    default: return integer_panels<C, V::kIntegerTile>;
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
    case Code::kInt8: run = integer_for<Code::kInt8>(a.tile); break;
    case Code::kInt4: run = integer_for<Code::kInt4>(a.tile); break;
    case Code::kInt3: run = integer_for<Code::kInt3>(a.tile); break;
    case Code::kInt2: run = integer_for<Code::kInt2>(a.tile); break;
    default: run = integer_for<Code::kTable4>(a.tile); break;
  }
  run(w, a, out, begin, end);
}

// -- activations ------------------------------------------------------------------------------------------------------

// Row `row` of x as floats at their padded positions; what pads groups is zero.
void load_row(const Weight& w, const void* x, Type type, int64_t stride, int64_t row, float* out) {
  const int64_t length = w.units * w.format->unit;
  for (int64_t q = 0; q < w.groups; ++q) {
    const int64_t first = q * w.group, count = std::min(w.group, w.k - first);
    V::load_many(x, row * stride + first, type, count, out + q * length);
    std::fill(out + q * length + count, out + (q + 1) * length, 0.f);
  }
}

bool prepare_exact(const Weight& w, const void* x, Type type, int64_t stride, Activations& a, int64_t begin, int64_t end) {
  const int64_t padded = w.padded(), length = w.units * w.format->unit;
  std::unique_ptr<float[]> buffer(new float[padded * a.tile]);
  bool finite = true;
  for (int64_t tile = begin; tile < end; ++tile) {
    float* to = a.values + tile * padded * a.tile;
    for (int m = 0; m < a.tile; ++m) {
      const int64_t row = tile * a.tile + m;
      float* values = a.tile == 1 ? to : buffer.get() + m * padded;
      if (row < a.rows) {
        load_row(w, x, type, stride, row, values);
      } else {
        std::fill_n(values, padded, 0.f);
      }
      if (!a.sums) continue;
      for (int64_t q = 0; q < w.groups; ++q) {
        const float sum = V::sum(values + q * length, length);
        a.sums[(tile * w.groups + q) * a.tile + m] = sum;
        finite &= std::isfinite(sum);
      }
    }
    if (a.tile == 1) continue;
    for (int64_t k = 0; k < padded; ++k) {
      for (int m = 0; m < a.tile; ++m) to[k * a.tile + m] = buffer[m * padded + k];
    }
  }
  return finite;
}

bool prepare_integer(const Weight& w, const void* x, Type type, int64_t stride, Activations& a, int64_t begin, int64_t end) {
  const Format& f = *w.format;
  const int64_t padded = w.padded(), blocks = w.groups * a.blocks;
  std::unique_ptr<float[]> buffer(new float[padded]);
  std::unique_ptr<int8_t[]> codes(new int8_t[padded]());
  int order[32];
  for (int j = 0; j < f.unit / 4; ++j) for (int b = 0; b < 4; ++b) order[4 * j + b] = position(f.code, j, b);
  for (int64_t tile = begin; tile < end; ++tile) {
    int32_t* quads = a.quads + tile * padded / 4 * a.tile;
    for (int m = 0; m < a.tile; ++m) {
      const int64_t row = tile * a.tile + m;
      if (row >= a.rows) {
        std::fill_n(codes.get(), padded, int8_t{0});
        for (int64_t i = 0; i < blocks; ++i) {
          const int64_t at = (tile * blocks + i) * a.tile + m;
          a.sums[at] = 0;
          if (type != Type::kInt8) a.scales[at] = 0;
        }
      } else {
        if (type == Type::kInt8) {
          const int64_t length = w.units * f.unit;
          for (int64_t q = 0; q < w.groups; ++q) {
            const int64_t first = q * w.group, count = std::min(w.group, w.k - first);
            std::memcpy(codes.get() + q * length, static_cast<const int8_t*>(x) + row * stride + first, count);
          }
        } else {
          load_row(w, x, type, stride, row, buffer.get());
        }
        for (int64_t q = 0; q < w.groups; ++q) {
          for (int64_t b = 0; b < a.blocks; ++b) {
            const int64_t first = (q * w.units + b * a.block) * f.unit;
            const int64_t count = std::min(a.block, w.units - b * a.block) * f.unit;
            const int64_t at = ((tile * w.groups + q) * a.blocks + b) * a.tile + m;
            if (type != Type::kInt8) {
              const float peak = V::peak(buffer.get() + first, count);
              if (!std::isfinite(peak)) return false;
              a.scales[at] = peak / 127.f;
              V::quantize(buffer.get() + first, peak == 0 ? 0.f : 127.f / peak, count, codes.get() + first);
            }
            int32_t sum = 0;
            for (int64_t i = first; i < first + count; ++i) sum += codes[i];
            a.sums[at] = static_cast<float>(sum);
          }
        }
      }
      const int8_t* c = codes.get();
      for (int64_t i = 0; i < padded / 4; i += f.unit / 4, c += f.unit) {
        for (int j = 0; j < f.unit / 4; ++j) {
          const int* o = order + 4 * j;
          const uint32_t quad = uint32_t(uint8_t(c[o[0]])) | uint32_t(uint8_t(c[o[1]])) << 8 |
                                uint32_t(uint8_t(c[o[2]])) << 16 | uint32_t(uint8_t(c[o[3]])) << 24;
          quads[(i + j) * a.tile + m] = static_cast<int32_t>(quad);
        }
      }
    }
  }
  return true;
}

void tokens(const void* x, Type type, int64_t k, int8_t* codes, float* scales, int64_t begin, int64_t end) {
  std::unique_ptr<float[]> buffer(new float[k]);
  for (int64_t row = begin; row < end; ++row) {
    V::load_many(x, row * k, type, k, buffer.get());
    const float peak = V::peak(buffer.get(), k);
    const float scale = peak == 0 ? 1.f : peak == peak ? std::max(peak / 127.5f, 0x1p-126f) : peak;
    scales[row] = scale;
    V::quantize(buffer.get(), 1 / scale, k, codes + row * k);
  }
}

// -- dequantize -------------------------------------------------------------------------------------------------------

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
    case Code::kE4M3: return dequantize_panels<Code::kE4M3>(w, begin, end, out, type);
    case Code::kE5M2: return dequantize_panels<Code::kE5M2>(w, begin, end, out, type);
    case Code::kE4M3Z: return dequantize_panels<Code::kE4M3Z>(w, begin, end, out, type);
    case Code::kE5M2Z: return dequantize_panels<Code::kE5M2Z>(w, begin, end, out, type);
  }
}

}  // namespace
}  // namespace quanto
