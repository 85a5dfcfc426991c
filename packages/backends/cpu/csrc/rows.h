// SPDX-License-Identifier: Apache-2.0
// One row of a weight at a time, as embeddings look it up.
#pragma once

#include <vector>

#include "problem.h"

namespace quanto {

float load_number(const void* data, int64_t index, Type type);

// Decodes rows, wherever they lie.
class RowDecoder {
 public:
  explicit RowDecoder(const Weight& w);
  // Writes k values of a row.
  void operator()(int64_t row, void* out, Type type) const;

 private:
  const Weight& w_;
  std::vector<float> values_;  // of every code
};

}  // namespace quanto
