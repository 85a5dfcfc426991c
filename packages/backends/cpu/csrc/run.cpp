// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <atomic>
#include <cmath>
#include <vector>

namespace quanto {
namespace {

// Activations prepared at once: what half of a second-level cache holds, in whole tiles and about equal parts.
constexpr int64_t kBytesAtOnce = int64_t{1} << 20;
int64_t rows_at_once(const Weight& w, int64_t rows, bool integer, int tile) {
  const int64_t fit = kBytesAtOnce / std::max<int64_t>(1, w.padded() * (integer ? 1 : 4));
  const int64_t parts = divide_up(rows, std::clamp<int64_t>(fit, 64, 512));
  return divide_up(divide_up(rows, parts), tile) * tile;
}

// Tiles of even height, the fewest that do.
int even_tile(int64_t rows, int largest) { return static_cast<int>(divide_up(rows, divide_up(rows, largest))); }

int small_tile(int64_t rows, int largest, bool six) {
  for (const int tile : {1, 2, 4}) {
    if (rows <= tile) return tile;
  }
  return rows <= 6 && six ? 6 : largest;
}

// Whether codes are exact as bfloat16, and taken faster so: one row of bytes takes longer to decode than as floats.
bool takes_bfloat16(Code code, int64_t rows) {
  const bool bytes = code == Code::kInt8 || code >= Code::kE4M3;
  return bytes ? rows > 1 : code == Code::kInt4 || code == Code::kInt2 || code == Code::kSmallTable;
}

// Whether six or eight rows take less time where sums of 16 bits begin at the offset: a run of quads then takes one addition
// more, but twice as many quads make one, of small tables, and short groups end with fewer instructions.
bool begins_runs(const Weight& w) {
  return w.zero_type == Type::kNone && (w.format->code == Code::kSmallTable || w.units * w.format->unit <= 32);
}

// Memory for one call, given back at its end: of the stack as far as that goes, since aligned memory of the heap costs
// half a microsecond a piece.
class Scraps {
 public:
  template <class T>
  T* take(int64_t count) {
    const int64_t bytes = (static_cast<int64_t>(sizeof(T)) * count + 63) / 64 * 64;
    if (used_ + bytes > kHere) return reinterpret_cast<T*>(more_.emplace_back(allocate<uint8_t>(bytes)).get());
    used_ += bytes;
    return reinterpret_cast<T*>(here_ + used_ - bytes);
  }

 private:
  static constexpr int64_t kHere = 8192;
  alignas(64) uint8_t here_[kHere];
  int64_t used_ = 0;
  std::vector<Buffer<uint8_t>> more_;
};

// Output features, in panels, up to which making digits of a row takes longer than they save (6.5 us for 4096 positions).
constexpr int64_t kFewPanels = 5;

// Makes digits of the only row, where codes are multiples of a step that digits multiply sooner than floats do; false where
// it stays floats.
bool becomes_digits(const Kernels& kernels, const Weight& w, const uint8_t* row, Type type, Scraps& scraps, Activations& a) {
  const Format& f = *w.format;
  if (!kernels.prepare_digits || f.byte_scale == 0 || f.code == Code::kTable4) return false;
  if ((f.code == Code::kInt8 && !kernels.byte_digits) || w.panels() <= kFewPanels) return false;
  a.few = true;
  a.block = std::min<int64_t>(w.units, kRoundedAtOnce / f.unit);
  a.blocks = divide_up(w.units, a.block);
  a.quads = scraps.take<int32_t>(kMostDigits * w.padded() / 4);
  a.scales = scraps.take<float>(kMostDigits * w.groups * a.blocks);
  a.sums = scraps.take<float>(kMostDigits * w.groups * a.blocks);
  Subnormals guard;
  return a.digits = kernels.prepare_digits(w, row, type, a);
}

}  // namespace

void run(const Kernels& kernels, const Weight& w, const Rows& x, Way way, uint8_t* out, Type out_type, const float* bias,
         float out_scale, Nonlinearity then) {
  const int width = kernels.width;
  const bool integer = way == Way::kInteger;
  const auto of_rows = [&](int64_t rows) {
    const bool takes = way == Way::kFloat && x.type == Type::kBFloat16 && takes_bfloat16(w.format->code, rows);
    return takes ? kernels.bfloat16 : nullptr;
  };
  const bool small = integer || of_rows(x.count);
  const int64_t at_once = rows_at_once(w, x.count, small, small ? kernels.integer_tile : kernels.exact_tile);
  for (int64_t first = 0; first < x.count; first += at_once) {
    Activations a;
    a.rows = std::min(at_once, x.count - first);
    const Bfloat16* bfloat16 = of_rows(a.rows);
    const bool words = integer || bfloat16;  // activations as words of several numbers
    const uint8_t* rows = x.data + first * w.k * size_of(x.type);
    Scraps scraps;
    Output output{out + first * w.n * size_of(out_type), out_type, bias, out_scale, then};
    const auto multiply = [&](auto kernel) {
      parallel(divide_up(w.panels(), width), a.rows * w.padded() * kRows * width, [&](int64_t begin, int64_t end) {
        Subnormals guard;
        kernel(w, a, output, begin * width, std::min(end * width, w.panels()));
      });
    };
    if (way == Way::kFloat && a.rows == 1 && !bfloat16 && becomes_digits(kernels, w, rows, x.type, scraps, a)) {
      multiply(kernels.integer);
      continue;
    }
    // Of no features at all too: kernels for many rows store a tile with the last part of its products.
    const bool few = w.padded() == 0 || (words ? a.rows <= kernels.few_tile : way == Way::kFloat && a.rows <= kernels.small_tile);
    a.few = few;
    if (x.scales && !few) {
      const float* scales = x.scales + (x.many ? first : 0);
      a.large = std::any_of(scales, scales + (x.many ? a.rows : 1), [](float scale) { return !(std::fabs(scale) < 0x1p60f); });
    }
    a.tile = few ? small_tile(a.rows, words ? kernels.few_tile : kernels.small_tile, integer && kernels.halves)
                 : even_tile(a.rows, words ? kernels.integer_tile : kernels.exact_tile);
    const int64_t tiles = divide_up(a.rows, a.tile), padded = tiles * a.tile;
    // Integers: one scale for some positions at the most, and what is decoded at once; several small groups may share it.
    const int64_t positions = integer && x.type != Type::kInt8 ? kRoundedAtOnce : kDecodedAtOnce;
    const int64_t limit = words ? positions / w.format->unit : w.units;
    a.block = std::min(w.units, limit);
    a.blocks = divide_up(w.units, a.block);
    if (integer && a.blocks == 1) {
      a.span = std::clamp<int64_t>(kRoundedAtOnce / (w.units * w.format->unit), 1, std::max<int64_t>(1, w.groups));
    }
    const int64_t sums = padded * w.groups * a.blocks;
    if (integer) {
      a.quads = scraps.take<int32_t>(padded * w.padded() / 4);
      if (kernels.pairs && x.type == Type::kInt8 && w.format->code == Code::kInt8) {
        a.rest = scraps.take<int32_t>(padded * w.padded() / 4);
        a.rest_places = scraps.take<int32_t>(tiles * w.padded() / 4);
        a.rests = scraps.take<int32_t>(tiles * w.groups * a.blocks);
        a.span = 1;
      }
      if (kernels.pairs) {
        if (!few || (a.tile > 4 && begins_runs(w))) a.run = quads_in_16_bits(w.format->code, x.type == Type::kInt8);
        if (a.run || !few) a.starts = scraps.take<int32_t>(sums * runs_of(w, a));
      }
      a.scales = scraps.take<float>(sums);
    } else if (bfloat16) {
      a.quads = scraps.take<int32_t>(padded * w.padded() / 2);
    } else {
      a.values = scraps.take<float>(padded * w.padded());
    }
    if (words || few) a.sums = scraps.take<float>(sums);
    std::atomic<bool> finite{true};
    parallel(tiles, w.k * a.tile * 4, [&](int64_t begin, int64_t end) {
      Subnormals guard;
      if (!integer) {
        if (!(bfloat16 ? bfloat16->prepare : kernels.prepare_exact)(w, rows, x.type, w.k, a, begin, end)) finite = false;
        return;
      }
      if (!kernels.prepare_integer(w, rows, x.type, w.k, a, begin, end)) finite = false;
      if (x.type != Type::kInt8) return;
      for (int64_t i = begin * w.groups; i < end * w.groups; ++i) {
        const int64_t tile = i / w.groups;
        for (int64_t j = 0; j < a.blocks * a.tile; ++j) {
          const int64_t row = tile * a.tile + j % a.tile, at = scales_at(w, a, tile, i % w.groups, j / a.tile) + j % a.tile;
          a.scales[at] = row < a.rows ? x.scales[x.many ? first + row : 0] : 0;
        }
      }
    });
    if (!finite) {  // infinity and NaN have no int8, and infinite sums cannot be taken off again
      run(kernels, w, {rows, x.type, a.rows}, Way::kBlocks, static_cast<uint8_t*>(output.data), out_type, bias, out_scale, then);
      continue;
    }
    const auto kernel = integer ? kernels.integer : bfloat16 ? bfloat16->product : few ? kernels.small : kernels.exact;
    multiply(kernel);
  }
}

}  // namespace quanto
