// SPDX-License-Identifier: Apache-2.0
// Takes a kernel that decodes as it goes over panels and tiles.
#pragma once

#include "source.h"

namespace quanto {
namespace {

using Tile = void (*)(const Weight&, const Panel*, int64_t, const Activations&, int64_t, const Output&);

// Panels side by side, by the rows of a tile: memory is read fastest in four places, if registers hold the sums.
template <int T>
constexpr int kPanels = T == 1 ? V::kStreams : std::max(V::kWidth, V::kStreams / T);

// Runs a kernel over panels begin … end, `width` at a time where it can.
void walk(const Weight& w, const Activations& a, const Output& out, int64_t begin, int64_t end, int width, Tile wide, Tile narrow) {
  Panels source(w);
  const int64_t tiles = (a.rows + a.tile - 1) / a.tile;
  for (int64_t first = begin; first < end;) {
    const int count = end - first >= width ? width : 1;
    Panel panels[4];
    for (int i = 0; i < count; ++i) panels[i] = source.get(first + i, i);
    const Tile kernel = count > 1 ? wide : narrow;
    for (int64_t tile = 0; tile < tiles; ++tile) kernel(w, panels, first, a, tile, out);
    first += count;
  }
}

}  // namespace
}  // namespace quanto
