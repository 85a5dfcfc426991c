// SPDX-License-Identifier: Apache-2.0
// Plain C++, in loops over 16 rows that compilers turn into whatever vectors the target has; compiled for aarch64 also
// with products of int8 by sdot, and by sdot and smmla.
#include "scalar.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#include "arm.h"
#endif

namespace quanto {
namespace {

struct V {
  // GCC's and Clang's vectors: as many registers of the target as 16 numbers take.
  typedef float F __attribute__((vector_size(64), aligned(16)));
  typedef uint32_t I __attribute__((vector_size(64), aligned(16)));
  typedef int32_t Signed __attribute__((vector_size(64), aligned(16)));
  struct Table {
    float v[16];
  };
  struct Bytes {
    uint8_t v[16];
  };
  static constexpr bool kLookup = false, kParts = false;
  static constexpr int kRegisters = 4, kWidth = 1, kStreams = 2, kExactTile = 4, kSmallTile = 4, kFewTile = 4;
#if defined(__ARM_FEATURE_MATMUL_INT8)
  static constexpr int kIntegerTile = 8;
#else
  static constexpr int kIntegerTile = 4;
#endif
  static constexpr bool kDigits = false;
  static constexpr bool kHalves = false;
  static constexpr bool kSignedBytes = true, kNarrowSums = false, kPairs = false;

  static F zero() { return F{}; }
  static F set(float v) { return F{} + v; }
  static F load(const float* p) {
    F out;
    std::memcpy(&out, p, sizeof out);
    return out;
  }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F fmadd(F a, F b, F c) { return a * b + c; }
  static F fnmadd(F a, F b, F c) { return c - a * b; }
  static void add_product(F& sum, F v, const float* x) { sum = fmadd(v, set(*x), sum); }

  static I izero() { return I{}; }
  static I load_words(const void* p) {
    I out;
    std::memcpy(&out, p, sizeof out);
    return out;
  }
  static void store_words(void* p, I v) { std::memcpy(p, &v, sizeof v); }
  static I iadd(I x, I y) { return x + y; }
  template <int N> static I shr(I a) { return a >> N; }
  template <int N> static I shl(I a) { return a << N; }
  template <int N> static I sar(I a) { return I(Signed(a) >> N); }
  static I band(I a, uint32_t m) { return a & m; }
  static I bxor(I a, uint32_t m) { return a ^ m; }
  static I bor(I a, I b) { return a | b; }
  static I merge(I a, I b) { return (a & 3u) | (b & ~3u); }
  // Byte N of each lane, alone, at the top or at the bottom.
  template <int N> static I top(I a) { return band(shl<24 - 8 * N>(a), 0xff000000u); }
  template <int N> static I byte(I a) { return band(shr<8 * N>(a), 255); }
  static F to_float(I a) { return __builtin_convertvector(Signed(a), F); }
  static F as_float(I a) { return F(a); }
  static Table table(const float* values) {
    Table out;
    std::memcpy(out.v, values, sizeof out);
    return out;
  }
  static F lookup(const Table& t, I index) {
    F out;
    for (int i = 0; i < 16; ++i) out[i] = t.v[index[i] & 15];
    return out;
  }
  static Bytes bytes(const uint8_t* values) {
    Bytes out;
    std::memcpy(out.v, values, sizeof out);
    return out;
  }
  static I shuffle(const Bytes& t, I index) {
    uint8_t all[64];
    std::memcpy(all, &index, sizeof all);
    for (uint8_t& byte : all) byte = t.v[byte & 15];
    return load_words(all);
  }

#if defined(__ARM_FEATURE_DOTPROD)
  static int8x16_t spread(int32_t quad) { return vreinterpretq_s8_s32(vdupq_n_s32(quad)); }
  static I dot(I sum, I quads, int8x16_t x) {
    uint32_t s[16], w[16];
    std::memcpy(s, &sum, sizeof s);
    std::memcpy(w, &quads, sizeof w);
    for (int i = 0; i < 16; i += 4) {
      const int8x16_t bytes = vreinterpretq_s8_u32(vld1q_u32(w + i));
      vst1q_u32(s + i, vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(vld1q_u32(s + i)), bytes, x)));
    }
    return load_words(s);
  }
#else
  static int32_t spread(int32_t quad) { return quad; }
  static I dot(I sum, I quads, int32_t x) {
    const auto product = [&](int byte) {
      return (Signed(quads << (24 - 8 * byte)) >> 24) * static_cast<int32_t>(static_cast<int8_t>(x >> 8 * byte));
    };
    return sum + I(product(0) + product(1) + product(2) + product(3));
  }
#endif

  static F load_as(const void* p, Type type) {
    float values[16];
    load_many(p, 0, type, 16, values);
    return load(values);
  }
  static bool store_as(void*, int64_t, Type, F, float) { return false; }
  static void store_one(void* data, int64_t at, Type type, float v, float scale) { store_scalar(data, at, type, v, scale); }
  static void load_many(const void* x, int64_t at, Type type, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = load_scalar(x, at + i, type);
  }
  static void store_many(void* data, int64_t at, Type type, int64_t count, const float* values) {
    for (int64_t i = 0; i < count; ++i) store_scalar(data, at + i, type, values[i], 0);
  }
  static float sum(const float* p, int64_t count) {
    float parts[8] = {}, out = 0;
    for (int64_t i = 0; i < count; ++i) parts[i % 8] += p[i];
    for (const float part : parts) out += part;
    return out;
  }
  static float peak(const float* p, int64_t count) {
    float most = 0, nans = 0;
    for (int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(p[i])), nans += p[i] * 0;
    return most + nans;
  }
  static void quantize(const float* p, float factor, int64_t count, int8_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = nearest_int8(p[i] * factor);
  }
};

}  // namespace
}  // namespace quanto

#include "linear.h"

namespace quanto {

#if defined(__ARM_FEATURE_MATMUL_INT8)
extern const Kernels kI8mm = {"neon_i8mm",
#elif defined(__ARM_FEATURE_DOTPROD)
extern const Kernels kDotprod = {"neon_dotprod",
#else
extern const Kernels kPortable = {"portable",
#endif
    V::kExactTile, V::kIntegerTile, V::kSmallTile, V::kFewTile, V::kHalves, V::kPairs, kDigitCode<Code::kInt8>, V::kWidth,
#if defined(__ARM_FEATURE_MATMUL_INT8)
    [] { return has_dotprod() && has_i8mm(); },
#elif defined(__ARM_FEATURE_DOTPROD)
    has_dotprod,
#else
    [] { return true; },
#endif
    exact, small, integer, prepare_exact, prepare_integer, tokens, dequantize, nullptr};

}  // namespace quanto
