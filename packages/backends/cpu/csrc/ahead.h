// SPDX-License-Identifier: Apache-2.0
// Asking for memory ahead of reading it. A core fetches ahead on its own, but within a page of 4 KB only, and a panel of
// int2 is not much longer; without this, one token reads four fifths of what memory gives, or less.
#pragma once

#include "source.h"

namespace quanto {
namespace {

// Where lines are asked for: into one of the caches, or nowhere.
enum class Asks { kNever, kFirst, kSecond };

// Bytes from what is read to what is asked for: in kernels that decode as they go (of 2 to 8 KB, 3 reads fastest), and in
// those that decode a block at a time.
constexpr int kAhead = 3072, kFarAhead = 8192;

// Asks for the line at p, into the first-level cache, or into the second. Not _mm_prefetch: GCC 12 takes a function that
// does no more than that for one without effects, and leaves out its calls.
#if defined(__x86_64__)
QUANTO_INLINE inline void ask(const uint8_t* p) { asm volatile("prefetcht0 %0" : : "m"(*p)); }
QUANTO_INLINE inline void ask_early(const uint8_t* p) { asm volatile("prefetcht1 %0" : : "m"(*p)); }
#else
QUANTO_INLINE inline void ask(const uint8_t*) {}
QUANTO_INLINE inline void ask_early(const uint8_t*) {}
#endif

// What kernels that walk down P panels side by side ask for. Behind the end of a panel comes the one that is read next in
// its place, P panels on; not its neighbour, which another part of the walk reads.
template <int P, Asks A = Asks::kFirst>
class Ahead {
 public:
  explicit Ahead(const Weight& w)
      : size_(w.groups * w.units * w.format->words * 64), jump_((P - 1) * kRows * w.stride), groups_(w.groups),
        scale_(kRows * size_of(w.scale_type)), zero_(kRows * size_of(w.zero_type)),
        distance_(std::max<int64_t>(1, kAhead * groups_ / std::max<int64_t>(size_, 1))) {}

  // Asks for the line at p.
  QUANTO_INLINE void line(const uint8_t* p) const {
    if constexpr (A == Asks::kFirst) ask(p);
    if constexpr (A == Asks::kSecond) ask_early(p);
  }

  // Bytes from codes at a place of a panel, of which few are read now, to those to ask for.
  int64_t codes(int64_t at) const { return P == 1 ? kAhead : kAhead + (at + kAhead < size_ ? 0 : jump_); }

  void scales(const Panel* panels, int64_t group) const {
    if constexpr (A == Asks::kNever) return;
    const int64_t ahead = group + distance_ + (group + distance_ < groups_ ? 0 : (P - 1) * groups_);
    for (int i = 0; i < P; ++i) {
      line(panels[i].scale + ahead * scale_);
      if (zero_) line(panels[i].zero + ahead * zero_);
    }
  }

 private:
  int64_t size_, jump_, groups_, scale_, zero_, distance_;
};

// Units that are read for one question of where to ask: of one word, a kilobyte.
constexpr int kRun = 16;

}  // namespace
}  // namespace quanto
