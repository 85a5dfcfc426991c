// SPDX-License-Identifier: Apache-2.0
#include "format.h"

#include <cstring>

namespace quanto {
namespace {

// OCP Microscaling Formats (MX) v1.0, table 5; twice the values are small integers.
constexpr float kE2M1[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
constexpr uint8_t kE2M1Bytes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// QLoRA, arXiv:2305.14314, appendix E. The bytes are round(127 * value) + 127, off by at most 0.4 % of the largest.
constexpr float kNF4[16] = {
    -1.f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.f,
};
constexpr uint8_t kNF4Bytes[16] = {0, 39, 60, 77, 91, 104, 115, 127, 137, 147, 158, 170, 183, 198, 219, 254};

struct Named {
  const char* name;
  Format format;
};

constexpr Named kFormats[] = {
    {"int8", {Code::kInt8, 8, 4, 1, 0, nullptr, nullptr, 128, 1}},
    {"int4", {Code::kInt4, 4, 8, 1, 8, nullptr, nullptr, 8, 1}},
    {"int3", {Code::kInt3, 3, 32, 3, 4, nullptr, nullptr, 4, 1}},
    {"int2", {Code::kInt2, 2, 16, 1, 2, nullptr, nullptr, 2, 1}},
    {"nf4", {Code::kTable4, 4, 8, 1, 0, kNF4, kNF4Bytes, 127, 1 / 127.f}},
    {"fp4", {Code::kSmallTable, 4, 8, 1, 0, kE2M1, kE2M1Bytes, 12, .5f}},
    {"mxfp4", {Code::kSmallTable, 4, 8, 1, 0, kE2M1, kE2M1Bytes, 12, .5f}},
    {"nvfp4", {Code::kSmallTable, 4, 8, 1, 0, kE2M1, kE2M1Bytes, 12, .5f}},
    {"float8_e4m3fn", {Code::kE4M3, 8, 4, 1, 0, nullptr, nullptr, 0, 0}},
    {"mxfp8", {Code::kE4M3, 8, 4, 1, 0, nullptr, nullptr, 0, 0}},
    {"float8_e5m2", {Code::kE5M2, 8, 4, 1, 0, nullptr, nullptr, 0, 0}},
    {"float8_e4m3fnuz", {Code::kE4M3Z, 8, 4, 1, 0, nullptr, nullptr, 0, 0}},
    {"float8_e5m2fnuz", {Code::kE5M2Z, 8, 4, 1, 0, nullptr, nullptr, 0, 0}},
};

}  // namespace

const Format* find_format(const char* name) {
  for (const Named& known : kFormats) {
    if (std::strcmp(known.name, name) == 0) return &known.format;
  }
  return nullptr;
}

}  // namespace quanto
