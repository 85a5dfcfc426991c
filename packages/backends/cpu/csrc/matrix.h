// SPDX-License-Identifier: Apache-2.0
// Sums of products of int8 by smmla (i8mm of aarch64), for many rows: twice as many an instruction as sdot makes.
//
//     two tokens       a0 … a7 b0 … b7     one register each, eight positions of two rows
//     two features     p0 … p7 q0 … q7
//     their sums       a·p a·q b·p b·q     of 32 bits
//
// Decoded bytes lie in quads, four positions of 16 features side by side; two quads zipped are four registers of features.
#pragma once

#include "decode.h"

namespace quanto {
namespace {

#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool kMatrix = true;

// sum[m] = products of row m of a tile of T with `count` quads of a panel, which lie `stride` bytes apart.
template <int T>
void matrix_sums(const int32_t* x, const uint8_t* quads, int64_t count, int64_t stride, I* sum) {
  constexpr int M = (T + 1) / 2;
  int32_t tokens[kDecodedAtOnce / 8 * M * 4];  // what is missing, of an odd row or quad, is zero
  for (int64_t k = 0; k < count; k += 2) {
    for (int m = 0; m < T + T % 2; ++m) {
      int32_t* to = tokens + (k / 2 * M + m / 2) * 4 + m % 2 * 2;
      to[0] = m < T ? x[k * T + m] : 0;
      to[1] = m < T && k + 1 < count ? x[(k + 1) * T + m] : 0;
    }
  }
  int32_t sums[2 * M][kRows];
  for (int half = 0; half < 2; ++half) {  // sums of all 16 features would not fit into the registers
    int32x4_t y[M][4];
    each<M * 4>([&](auto j) QUANTO_INLINE { y[j / 4][j % 4] = vdupq_n_s32(0); });
    const int32_t* t = tokens;
    for (int64_t k = 0; k < count; k += 2, t += M * 4) {
      const auto* near = reinterpret_cast<const int8_t*>(quads + k * stride + half * 32);
      const auto* far = near + stride;
      int8x16_t w[4];
      each<2>([&](auto i) QUANTO_INLINE {
        const int32x4_t a = vreinterpretq_s32_s8(vld1q_s8(near + i * 16));
        const int32x4_t b = k + 1 < count ? vreinterpretq_s32_s8(vld1q_s8(far + i * 16)) : vdupq_n_s32(0);
        w[2 * i] = vreinterpretq_s8_s32(vzip1q_s32(a, b)), w[2 * i + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
      });
      each<M>([&](auto m) QUANTO_INLINE {
        const int8x16_t xs = vreinterpretq_s8_s32(vld1q_s32(t + m * 4));
        each<4>([&](auto r) QUANTO_INLINE { y[m][r] = vmmlaq_s32(y[m][r], xs, w[r]); });
      });
    }
    each<M>([&](auto m) QUANTO_INLINE {
      each<2>([&](auto i) QUANTO_INLINE {
        const int32x4_t a = y[m][2 * i], b = y[m][2 * i + 1];
        vst1q_s32(sums[2 * m] + half * 8 + i * 4, vcombine_s32(vget_low_s32(a), vget_low_s32(b)));
        vst1q_s32(sums[2 * m + 1] + half * 8 + i * 4, vcombine_s32(vget_high_s32(a), vget_high_s32(b)));
      });
    });
  }
  for (int m = 0; m < T; ++m) sum[m] = V::load_words(sums[m]);
}
#else
constexpr bool kMatrix = false;
template <int T>
void matrix_sums(const int32_t*, const uint8_t*, int64_t, int64_t, I*);
#endif

}  // namespace
}  // namespace quanto
