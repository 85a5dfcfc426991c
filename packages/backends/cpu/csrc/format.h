// SPDX-License-Identifier: Apache-2.0
// What a code means, and how a weight lies in memory: panels of 16 rows.
//
// A panel interleaves 16 rows of the canonical packing, 32 bits at a time, so that a 512-bit register holds the same
// few input positions of 16 output features, and a dot product needs no horizontal sum:
//
//     canonical row r   | word 0 | word 1 | word 2 | …        word = 4 bytes = 4, 8 or 16 codes of 8, 4 or 2 bits
//     panel             | word 0 of rows 0 … 15 | word 1 of rows 0 … 15 | …
//
// Words are those of the canonical packing, but for 3 bits, where 32 codes (three words) become two words of low bit
// pairs and one of high bits, so that four codes can be spread over the four bytes of a lane with one shift:
//
//     word 0, 1   bits 2i, 2i+1  = low bits of code i (word 0) and 16 + i (word 1), i = 0 … 15
//     word 2      bit 8b + j     = high bit of code 16 * (j / 4) + 4b + j % 4
//
// Each group of input positions begins at a unit of its own; what is left of a unit is zero. Scales and zero points are
// [panel, group, 16], in their own dtype. The last panel is padded with rows of zeros.
#pragma once

#include <cstdint>

namespace quanto {

constexpr int kRows = 16;  // output features of a panel

// kTable4 needs all of a byte for its values as integers, kSmallTable five bits.
enum class Code { kInt8, kInt4, kInt3, kInt2, kTable4, kSmallTable, kE4M3, kE5M2, kE4M3Z, kE5M2Z };

// Element types of scales, zero points, activations and results.
enum class Type { kNone, kFloat, kBFloat16, kHalf, kInt8 };

// What a result goes through at the end.
enum class Nonlinearity { kNone, kRelu, kGelu, kGeluTanh, kSilu };

struct Format {
  Code code;
  int bits;
  int unit;             // codes of a unit: the smallest number that begins and ends with a word
  int words;            // 32-bit words of a unit and row
  int offset;           // stored code minus value, for integers
  const float* table;   // values of the 16 codes, for tables
  const uint8_t* bytes; // the same as unsigned integers, for integer dot products
  int byte_offset;      // byte minus value / byte_scale
  float byte_scale;     // value of one integer step
};

// The format of a qtype by name; nullptr if it is not known.
const Format* find_format(const char* name);

}  // namespace quanto
