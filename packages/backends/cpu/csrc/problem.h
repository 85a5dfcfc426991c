// SPDX-License-Identifier: Apache-2.0
// What a linear layer is asked to compute, and the table of functions that each instruction set brings.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "format.h"

namespace quanto {

// A weight [n, k] in panels, or canonical rows that are turned into panels as they are met. Of a weight in panels, the
// last n % 16 rows are canonical: so its tensors have n rows, and any copy of them is complete.
struct Weight {
  const Format* format = nullptr;
  int64_t n = 0, k = 0;
  int64_t group = 0;   // input positions that share a scale
  int64_t groups = 0;  // per row
  int64_t units = 0;   // per group
  int64_t ready = 0;  // panels that lie there as such; the others are made of canonical rows
  const uint8_t* codes = nullptr;
  int64_t stride = 0;  // bytes from row to row; a panel has those of 16 rows
  const void* scale = nullptr;
  Type scale_type = Type::kFloat;
  const void* zero = nullptr;
  Type zero_type = Type::kNone;
  int64_t scale_stride = 0;  // elements from row to row; 0 for one scale for all
  int64_t scale_rows = 1;    // rows that share a scale, where no panel is ready
  float global = 1;          // multiplies everything

  int64_t panels() const { return (n + kRows - 1) / kRows; }
  int64_t padded() const { return groups * units * format->unit; }  // input positions with the padding of groups
  bool poisoned() const { return format->code >= Code::kE4M3; }     // 16 floats behind each panel: 0, or NaN for rows
                                                                    // that hold a NaN
};

// Rows of activations, prepared for a kernel: tiles of `tile` rows, position after position.
struct Activations {
  int64_t rows = 0;
  int tile = 1;
  bool few = false;           // for the kernels that decode as they go
  bool digits = false;        // the rows of the tile are digits of one row
  bool large = false;         // integers whose sums may not be floats without the scale of a feature
  int64_t block = 0;   // units that share a scale: those of a group, or some of them
  int64_t blocks = 0;  // per group
  int64_t span = 1;    // groups that share a scale, where they are of one block; scales are there for each of them
  float* values = nullptr;    // [tiles, padded k, tile], exact
  // Four int8 side by side, or two bfloat16: [tiles, padded k / 4 or 2, tile] for few rows and for bfloat16; for many rows
  // what lies side by side is what is read one after the other, all tiles of a block: [blocks, tiles, quads, tile].
  int32_t* quads = nullptr;
  float* scales = nullptr;    // [tiles, groups, blocks, tile], integer; for many rows [groups, blocks, tiles, tile]; of
                              // digits the first of a tile is for all
  float* sums = nullptr;      // the same: of the values, or of the int8
  // Where sums of products begin, so that the offset of bytes is off them at the end: -offset * sum of the int8 of a block;
  // or, where `run` quads are added up in 16 bits, two of such. [tiles, groups, blocks, runs, tile] for few rows; for many
  // [blocks, tiles, groups of a block, runs, tile].
  int32_t* starts = nullptr;
  int64_t run = 0;
  // What `pairs` kernels cannot take in one product: quads that come a second time, and where, block by block.
  int32_t* rest = nullptr;        // [tiles, padded k / 4, tile], as many of each block as `rests` says
  int32_t* rest_places = nullptr; // [tiles, padded k / 4]: quads from the beginning of the block
  int32_t* rests = nullptr;       // [tiles, groups, blocks]

  int64_t tiles() const { return (rows + tile - 1) / tile; }
};

// Of internal linkage, since every instruction set compiles them with flags of its own.
namespace {

// A block of activations among those of a weight: part of a group, or several of them.
struct Part {
  int64_t group, groups;       // the first, and how many
  int64_t first, size, within; // in quads: of the block, and from its beginning to the group asked for
};

// Where block b of group q lies in activations.
inline Part part_of(const Weight& w, const Activations& a, int64_t q, int64_t b) {
  const int64_t length = w.units * w.format->unit / 4, step = a.block * w.format->unit / 4, group = q / a.span * a.span;
  const int64_t groups = std::min(a.span, w.groups - group);
  if (a.blocks > 1) return {q, 1, q * length + b * step, std::min(step, length - b * step), 0};
  return {group, groups, group * length, groups * length, (q - group) * length};
}

// Where the quads of a tile begin, of block b of group q; and its scales and sums; and its starts.
inline int64_t quads_at(const Weight& w, const Activations& a, int64_t tile, int64_t q, int64_t b) {
  const Part p = part_of(w, a, q, b);
  const int64_t at = a.few ? tile * w.padded() / 4 + p.first : p.first * a.tiles() + tile * p.size;
  return (at + p.within) * a.tile;
}
inline int64_t scales_at(const Weight& w, const Activations& a, int64_t tile, int64_t q, int64_t b) {
  return (a.few ? (tile * w.groups + q) * a.blocks + b : (q * a.blocks + b) * a.tiles() + tile) * a.tile;
}
inline int64_t starts_at(const Weight& w, const Activations& a, int64_t tile, int64_t q, int64_t b, int64_t runs) {
  if (a.few) return ((tile * w.groups + q) * a.blocks + b) * runs * a.tile;
  const Part p = part_of(w, a, q, b);
  return ((p.group * a.blocks + b) * a.tiles() + tile * p.groups + q - p.group) * runs * a.tile;
}

// Quads whose products with int8 are added up in 16 bits at the most, where sums begin so that values, not bytes, count:
// 2^(bits - 1) * 127 * 2 * quads < 2^15; half as many where int8 may be -128. 0 where one product does not fit.
constexpr int quads_in_16_bits(Code c, bool lowest) {
  switch (c) {
    case Code::kSmallTable: return 8;  // 12 * 128 * 2 * 8
    case Code::kInt4: return lowest ? 8 : 16;
    case Code::kInt3: return lowest ? 16 : 32;
    case Code::kInt2: return lowest ? 32 : 64;
    default: return 0;
  }
}

// Runs of quads that are added up in 16 bits, of a block of a group; the last may be shorter.
inline int64_t runs_of(const Weight& w, const Activations& a) {
  return a.run ? (a.block * w.format->unit / 4 + a.run - 1) / a.run : 1;
}

}  // namespace

struct Output {
  void* data = nullptr;
  Type type = Type::kFloat;
  const float* bias = nullptr;
  float scale = 0;  // int8: of the result
  Nonlinearity then = Nonlinearity::kNone;
};

// Input positions whose integers are decoded at once, at the most; and activations that are rounded by one scale.
constexpr int kDecodedAtOnce = 512, kRoundedAtOnce = 256;

// Most digits of a row that is multiplied as integers.
constexpr int kMostDigits = 4;

// Functions of instructions that multiply bfloat16 activations as they are; for codes that bfloat16 holds exactly.
struct Bfloat16 {
  bool (*available)();
  // As `integer` and `prepare_integer` of Kernels; tiles are of the same sizes.
  void (*product)(const Weight&, const Activations&, const Output&, int64_t begin, int64_t end);
  bool (*prepare)(const Weight&, const void* x, Type type, int64_t stride, Activations&, int64_t begin, int64_t end);
};

// Functions of one instruction set.
struct Kernels {
  const char* name;
  int exact_tile, integer_tile;  // largest tile of rows of the kernels that decode blocks
  int small_tile, few_tile;      // most rows of those that decode as they go, for floats and for integers
  bool halves;                   // the kernels of few rows also take six
  bool pairs;                    // neighbours among int8 may add up to 128 at the most, with bytes of the full range
  bool byte_digits;              // exact compute of one row may take digits with int8, too
  int width;         // panels that a kernel takes at once
  bool (*available)();
  // Computes output features 16 * begin … 16 * end for all rows.
  void (*exact)(const Weight&, const Activations&, const Output&, int64_t begin, int64_t end);
  void (*small)(const Weight&, const Activations&, const Output&, int64_t begin, int64_t end);
  void (*integer)(const Weight&, const Activations&, const Output&, int64_t begin, int64_t end);
  // Prepares tiles begin … end from rows of `type` with a stride in elements; false where a sum of floats, or a float to
  // be rounded, is not finite.
  bool (*prepare_exact)(const Weight&, const void* x, Type type, int64_t stride, Activations&, int64_t begin, int64_t end);
  bool (*prepare_integer)(const Weight&, const void* x, Type type, int64_t stride, Activations&, int64_t begin, int64_t end);
  // int8 codes and one scale for each of rows begin … end of x [rows, k].
  void (*tokens)(const void* x, Type type, int64_t k, int8_t* codes, float* scales, int64_t begin, int64_t end);
  // Values of the rows of panels begin … end, out [n, k] of `type`.
  void (*dequantize)(const Weight&, int64_t begin, int64_t end, void* out, Type type);
  // The only row of x as digits of integers, of which a.tile is told; false where it has none. May be missing.
  bool (*prepare_digits)(const Weight&, const void* x, Type type, Activations&);
  const Bfloat16* bfloat16 = nullptr;
};

// The best table that this processor can run, or the one that QUANTO_CPU_ISA or `select_kernels` names.
const Kernels& kernels();
// The same, or another for few multiply-adds; the best one where it was named.
const Kernels& kernels_for(int64_t products);
void select_kernels(const char* name);  // "" lets `kernels` choose anew
// Names of those that this processor can run, best first, with commas between them.
std::string available_kernels();
// Whether the processor is AMD's (Zen 4), which other ways suit than Intel's (Sapphire Rapids): reading one place instead of
// four side by side (one token of 4096 x 4096, int4 on AVX2 0.27 ms instead of 0.36), asking for lines into the second-level
// cache sooner than into the first, and decoding words beside products, with a unit that those leave free.
bool is_amd();

// Canonical rows 16 * panel … of a weight as one panel, with scales and zero points of its rows side by side.
void pack_panel(const Weight& w, int64_t panel, uint8_t* codes, uint8_t* scale, uint8_t* zero);
// The inverse, of codes only, into canonical rows.
void unpack_panel(const Weight& w, int64_t panel, uint8_t* rows, int64_t stride);

int size_of(Type type);
int64_t panel_bytes(const Weight& w);

}  // namespace quanto
