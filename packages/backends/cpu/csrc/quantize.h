// SPDX-License-Identifier: Apache-2.0
// From values to codes.
#pragma once

#include <cstdint>

#include "format.h"

namespace quanto {

// One byte per code.
class Encoder {
 public:
  explicit Encoder(const Format& format);
  // Codes of values[i] / scale (+ zero, added after rounding if it is whole); NaN becomes the code of 0, or NaN.
  void operator()(const float* values, int64_t count, float scale, float zero, bool whole, uint8_t* codes) const;

 private:
  const Format& format_;
  int entries_ = 0;     // tables: values in rising order, without the second zero
  float sorted_[16];
  uint8_t order_[16];
  uint8_t zero_ = 0;
};

// The canonical packing: code i of a row at bits i * width ….
void pack_row(const uint8_t* codes, int64_t count, int bits, uint8_t* out);
void unpack_row(const uint8_t* packed, int64_t count, int bits, uint8_t* out);

}  // namespace quanto
