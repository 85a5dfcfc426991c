// SPDX-License-Identifier: Apache-2.0
// Canonical rows to panels and back; format.h has the picture.
#include <algorithm>
#include <cstring>
#include <limits>

#include "problem.h"

namespace quanto {
namespace {

uint32_t load(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

void store(uint8_t* p, uint32_t word) { std::memcpy(p, &word, 4); }

// Code i of a canonical row.
uint32_t get(const uint8_t* row, int64_t i, int bits) {
  const int64_t at = i * bits;
  uint32_t two = row[at / 8];
  if (at % 8 + bits > 8) two |= uint32_t{row[at / 8 + 1]} << 8;
  return two >> (at % 8) & ((1u << bits) - 1);
}

void put(uint8_t* row, int64_t i, int bits, uint32_t code) {
  const int64_t at = i * bits;
  row[at / 8] |= static_cast<uint8_t>(code << (at % 8));
  if (at % 8 + bits > 8) row[at / 8 + 1] |= static_cast<uint8_t>(code >> (8 - at % 8));
}

// Every third bit pair of a 48-bit run of 16 codes.
void split3(uint64_t run, uint32_t& low, uint32_t& high, int half) {
  low = high = 0;
  for (int i = 0; i < 16; ++i) {
    const uint32_t code = run >> (3 * i) & 7;
    low |= (code & 3) << (2 * i);
    high |= (code >> 2) << (8 * (i / 4) + 4 * half + i % 4);
  }
}

uint64_t join3(uint32_t low, uint32_t high, int half) {
  uint64_t run = 0;
  for (int i = 0; i < 16; ++i) {
    const uint64_t code = (low >> (2 * i) & 3) | (high >> (8 * (i / 4) + 4 * half + i % 4) & 1) << 2;
    run |= code << (3 * i);
  }
  return run;
}

// The words of a unit out of canonical bytes that begin with it.
void pack_words(const Format& f, const uint8_t* bytes, uint32_t* words) {
  if (f.words == 1) {
    words[0] = load(bytes);
    return;
  }
  uint64_t run[2];
  run[0] = uint64_t{load(bytes)} | uint64_t{bytes[4]} << 32 | uint64_t{bytes[5]} << 40;
  run[1] = uint64_t{load(bytes + 6)} | uint64_t{bytes[10]} << 32 | uint64_t{bytes[11]} << 40;
  uint32_t high[2];
  split3(run[0], words[0], high[0], 0);
  split3(run[1], words[1], high[1], 1);
  words[2] = high[0] | high[1];
}

void unpack_words(const Format& f, const uint32_t* words, uint8_t* bytes) {
  if (f.words == 1) {
    store(bytes, words[0]);
    return;
  }
  const uint64_t run[2] = {join3(words[0], words[2], 0), join3(words[1], words[2], 1)};
  std::memcpy(bytes, &run[0], 6);
  std::memcpy(bytes + 6, &run[1], 6);
}

bool is_nan(Code code, uint8_t byte) {
  switch (code) {
    case Code::kE4M3: return (byte & 0x7f) == 0x7f;
    case Code::kE5M2: return (byte & 0x7c) == 0x7c;  // infinity too: no quantizer writes it
    case Code::kE4M3Z:
    case Code::kE5M2Z: return byte == 0x80;
    default: return false;
  }
}

// Whether a panel is its rows' words side by side and nothing else: no word is shared by groups or filled up.
bool interleaves(const Weight& w, int64_t panel) {
  const bool aligned = w.group % w.format->unit == 0 || w.groups == 1;
  const int64_t row_bytes = (w.k * w.format->bits + 7) / 8;
  return w.format->words == 1 && aligned && row_bytes == w.groups * w.units * 4 && (panel + 1) * kRows <= w.n;
}

// Calls f(offset in a row, offset in a panel) for each word, 16 words of a row in a row: a line of the cache.
template <class F>
void each_word(int64_t words, int64_t stride, F f) {
  for (int64_t first = 0; first < words; first += 16) {
    const int64_t end = std::min(first + 16, words);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = first; i < end; ++i) f(r * stride + i * 4, (i * kRows + r) * 4);
    }
  }
}

// Copies one element of `size` bytes.
void copy(uint8_t* to, const void* from, int64_t index, int size) {
  std::memcpy(to, static_cast<const uint8_t*>(from) + index * size, size);
}

}  // namespace

int size_of(Type type) {
  switch (type) {
    case Type::kFloat: return 4;
    case Type::kBFloat16:
    case Type::kHalf: return 2;
    case Type::kInt8: return 1;
    default: return 0;
  }
}

int64_t panel_bytes(const Weight& w) {
  return w.groups * w.units * w.format->words * kRows * 4 + (w.poisoned() ? kRows * 4 : 0);
}

void pack_panel(const Weight& w, int64_t panel, uint8_t* codes, uint8_t* scale, uint8_t* zero) {
  const Format& f = *w.format;
  const int64_t unit_bytes = f.unit * f.bits / 8, row_bytes = (w.k * f.bits + 7) / 8;
  const bool aligned = w.group % f.unit == 0 || w.groups == 1;
  const bool whole = interleaves(w, panel);
  if (whole) {
    const uint8_t* rows = w.codes + panel * kRows * w.stride;
    each_word(w.groups * w.units, w.stride, [&](int64_t from, int64_t to) { store(codes + to, load(rows + from)); });
  }
  float poison[kRows] = {};
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = panel * kRows + r;
    const uint8_t* source = w.codes + row * w.stride;
    uint8_t* to = codes + r * 4;
    for (int64_t q = 0; !whole && q < w.groups; ++q) {
      for (int64_t u = 0; u < w.units; ++u, to += f.words * kRows * 4) {
        const int64_t first = q * w.group + u * f.unit, byte = first * f.bits / 8;
        uint32_t words[3] = {};
        if (row < w.n && first < w.k) {
          if (aligned && byte + unit_bytes <= row_bytes) {
            pack_words(f, source + byte, words);
          } else {
            uint8_t bytes[16] = {};
            const int64_t end = std::min({w.k, (q + 1) * w.group, first + f.unit});
            for (int64_t i = first; i < end; ++i) put(bytes, i - first, f.bits, get(source, i, f.bits));
            pack_words(f, bytes, words);
          }
        }
        for (int i = 0; i < f.words; ++i) store(to + i * kRows * 4, words[i]);
      }
    }
    if (w.poisoned() && row < w.n) {
      for (int64_t i = 0; i < w.k; ++i) {
        if (is_nan(f.code, source[i])) poison[r] = std::numeric_limits<float>::quiet_NaN();
      }
    }
    const int scale_size = size_of(w.scale_type), zero_size = size_of(w.zero_type);
    for (int64_t q = 0; q < w.groups; ++q) {
      const int64_t from = row / w.scale_rows * w.scale_stride + (w.scale_stride ? q : 0), at = q * kRows + r;
      if (row < w.n) {
        copy(scale + at * scale_size, w.scale, from, scale_size);
        if (zero_size) copy(zero + at * zero_size, w.zero, from, zero_size);
      } else {
        std::memset(scale + at * scale_size, 0, scale_size);
        if (zero_size) std::memset(zero + at * zero_size, 0, zero_size);
      }
    }
  }
  if (w.poisoned()) std::memcpy(codes + panel_bytes(w) - sizeof poison, poison, sizeof poison);
}

void unpack_panel(const Weight& w, int64_t panel, uint8_t* rows, int64_t stride) {
  const Format& f = *w.format;
  const int64_t unit_bytes = f.unit * f.bits / 8, row_bytes = (w.k * f.bits + 7) / 8;
  const bool aligned = w.group % f.unit == 0 || w.groups == 1;
  if (interleaves(w, panel)) {
    const uint8_t* panels = w.codes + panel * kRows * w.stride;
    uint8_t* to = rows + panel * kRows * stride;
    each_word(w.groups * w.units, stride, [&](int64_t at, int64_t from) { store(to + at, load(panels + from)); });
    return;
  }
  for (int r = 0; r < kRows && panel * kRows + r < w.n; ++r) {
    const uint8_t* from = w.codes + panel * kRows * w.stride + r * 4;
    uint8_t* row = rows + (panel * kRows + r) * stride;
    std::memset(row, 0, row_bytes);
    for (int64_t q = 0; q < w.groups; ++q) {
      for (int64_t u = 0; u < w.units; ++u, from += f.words * kRows * 4) {
        const int64_t first = q * w.group + u * f.unit, byte = first * f.bits / 8;
        if (first >= w.k) continue;
        uint32_t words[3];
        for (int i = 0; i < f.words; ++i) words[i] = load(from + i * kRows * 4);
        if (aligned && byte + unit_bytes <= row_bytes) {
          unpack_words(f, words, row + byte);
        } else {
          uint8_t bytes[16] = {};
          unpack_words(f, words, bytes);
          const int64_t end = std::min({w.k, (q + 1) * w.group, first + f.unit});
          for (int64_t i = first; i < end; ++i) put(row, i, f.bits, get(bytes, i - first, f.bits));
        }
      }
    }
  }
}

}  // namespace quanto
