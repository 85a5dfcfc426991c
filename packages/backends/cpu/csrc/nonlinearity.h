// SPDX-License-Identifier: Apache-2.0
// What results go through before they are stored, in plain loops over 16 numbers that compilers turn into vectors: without
// branches, calls, or conversions to integers. Compiled once for each instruction set.
#pragma once

#include "scalar.h"

namespace quanto {
namespace {

// `a` or `b`. Not `?:`, behind which a compiler hides arithmetic that might trap, and then has a branch.
QUANTO_INLINE inline float choose(bool which, float a, float b) {
  const uint32_t mask = 0u - which;
  return bits_to_float((float_to_bits(a) & mask) | (float_to_bits(b) & ~mask));
}

// e^x within 2e-7 of itself, infinity above 88; NaN stays. A large constant rounds x / ln 2 to a whole number in the
// lowest bits of a float, which become the exponent; what is left goes through a polynomial (minimax on ±ln 2 / 2).
QUANTO_INLINE inline float exp_of(float x) {
  constexpr float kRound = 0x1.8p23f;
  const float inside = choose(x > 88.f, 88.f, choose(x < -87.f, -87.f, x));
  const float shifted = inside * 1.44269504f + kRound, whole = shifted - kRound;
  const float r = (inside - whole * 0.693145752f) - whole * 1.42860677e-6f;
  float p = 1.38368e-3f;
  p = p * r + 8.37482e-3f;
  p = p * r + 4.166824e-2f;
  p = p * r + 1.666642e-1f;
  p = p * r + 4.9999992e-1f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const float y = p * bits_to_float((float_to_bits(shifted) + 127) << 23);
  return choose(x > 88.f, bits_to_float(0x7f800000), y);
}

// The chance that a normal number is below v: erfc(z) = e^(-z²) t P(t), t = 1 / (1 + 0.4 z), z = |v| / √2, with P fitted
// to 2e-7 of itself (minimax) on 0 ≤ z ≤ 9.4, beyond which floats end.
QUANTO_INLINE inline float normal_below(float v) {
  const float z = std::fabs(v) * 0.707106781f, t = 1 / (1 + 0.4f * z);
  float p = 0.050047774f;
  p = p * t - 0.18193784f;
  p = p * t + 0.16727534f;
  p = p * t - 0.003765983f;
  p = p * t + 0.14033216f;
  p = p * t + 0.16893142f;
  p = p * t + 0.207764f;
  p = p * t + 0.22567771f;
  p = p * t + 0.22567554f;
  const float tail = 0.5f * p * t * exp_of(-z * z);
  return choose(v < 0, tail, 1 - tail);
}

QUANTO_INLINE inline float sigmoid_of(float v) { return 1 / (1 + exp_of(-v)); }

// Puts 16 results through a function.
inline void go_through(Nonlinearity function, float* v) {
  switch (function) {
    case Nonlinearity::kNone: break;
    case Nonlinearity::kRelu:
      for (int i = 0; i < kRows; ++i) v[i] = choose(v[i] < 0, 0, v[i]);
      break;
    case Nonlinearity::kGelu:
      for (int i = 0; i < kRows; ++i) v[i] *= normal_below(v[i]);
      break;
    case Nonlinearity::kGeluTanh:
      for (int i = 0; i < kRows; ++i) v[i] *= sigmoid_of(1.59576912f * v[i] * (1 + 0.044715f * v[i] * v[i]));
      break;
    case Nonlinearity::kSilu:
      for (int i = 0; i < kRows; ++i) v[i] *= sigmoid_of(v[i]);
      break;
  }
}

}  // namespace
}  // namespace quanto
