// SPDX-License-Identifier: Apache-2.0
// AVX-512 (F, BW, VL, DQ) with VNNI: 16 rows in one register. Compiled once more with BF16, for what those instructions do.
#include <immintrin.h>

#include "scalar.h"

namespace quanto {
namespace {

struct V {
  using F = __m512;
  using I = __m512i;
  using Table = __m512;
  using Bytes = __m512i;
  static constexpr bool kLookup = true, kParts = false;
  static constexpr int kRegisters = 1, kWidth = 2, kStreams = 4, kExactTile = 14, kSmallTile = 8, kIntegerTile = 14, kFewTile = 8;
  static constexpr bool kDigits = true;
  static constexpr bool kHalves = false;
  static constexpr bool kSignedBytes = false, kNarrowSums = false, kPairs = false;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fmadd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fnmadd(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  static void add_product(F& sum, F v, const float* x) { sum = fmadd(v, set(*x), sum); }

  static I izero() { return _mm512_setzero_si512(); }
  static I load_words(const void* p) { return _mm512_loadu_si512(p); }
  static void store_words(void* p, I v) { _mm512_storeu_si512(p, v); }
  static I iadd(I x, I y) { return _mm512_add_epi32(x, y); }
  template <int N> static I shr(I a) { return N ? _mm512_srli_epi32(a, N) : a; }
  template <int N> static I shl(I a) { return N ? _mm512_slli_epi32(a, N) : a; }
  template <int N> static I sar(I a) { return _mm512_srai_epi32(a, N); }
  static I band(I a, uint32_t m) { return _mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(m))); }
  static I bxor(I a, uint32_t m) { return _mm512_xor_si512(a, _mm512_set1_epi32(static_cast<int>(m))); }
  static I bor(I a, I b) { return _mm512_or_si512(a, b); }
  // The low two bits of `a`, the others of `b`.
  static I merge(I a, I b) { return _mm512_ternarylogic_epi32(_mm512_set1_epi32(3), a, b, 0xca); }
  // Byte N of each lane, alone, at the top; a shuffle has a port that conversions do not wait for.
  template <int N> static I top(I a) {
    alignas(64) int8_t order[64];
    for (int i = 0; i < 64; ++i) order[i] = static_cast<int8_t>(i % 4 == 3 ? i % 16 / 4 * 4 + N : -1);
    return _mm512_shuffle_epi8(a, _mm512_load_si512(order));
  }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static F as_float(I a) { return _mm512_castsi512_ps(a); }
  static Table table(const float* values) { return _mm512_loadu_ps(values); }
  static F lookup(Table t, I index) { return _mm512_permutexvar_ps(index, t); }  // only the low four bits count
  static Bytes bytes(const uint8_t* values) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  static I shuffle(Bytes t, I index) { return _mm512_shuffle_epi8(t, index); }

  static I spread(int32_t quad) { return _mm512_set1_epi32(quad); }
  // Not the intrinsic: GCC 12 converts its vector type, and so keeps arrays of sums on the stack (2 times slower).
  static I dot(I sum, I quads, I x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(quads), "v"(x));
    return sum;
  }

#ifdef __AVX512BF16__
  static I lookup16(I table, I index) { return _mm512_permutexvar_epi16(index, table); }  // only the low five bits count
  // Upper halves of floats whose lower halves are zero, side by side.
  static I join16(F low, F high) { return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low), 16), _mm512_castps_si512(high)); }
  static F dot16x2(F sum, I codes, I x) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
    return sum;
  }
#endif

  static F load_as(const void* p, Type type) {
    switch (type) {
      case Type::kFloat: return _mm512_loadu_ps(p);
      case Type::kBFloat16:
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16));
      case Type::kHalf: return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
      default: return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
    }
  }

  static __m256i to_bfloat16(F v) {
    const I bits = _mm512_castps_si512(v);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
  }

  static bool store_as(void* data, int64_t at, Type type, F v, float scale) {
    switch (type) {
      case Type::kFloat: _mm512_storeu_ps(static_cast<float*>(data) + at, v); return true;
      case Type::kBFloat16:
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(data) + at), to_bfloat16(v));
        return true;
      case Type::kHalf:
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(data) + at),
                            _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        return true;
      case Type::kInt8: {
        v = _mm512_div_ps(v, _mm512_set1_ps(scale));
        v = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v);
        v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-128)), _mm512_set1_ps(127));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<int8_t*>(data) + at), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
        return true;
      }
      default: return false;
    }
  }
  static void store_one(void* data, int64_t at, Type type, float v, float scale) { store_scalar(data, at, type, v, scale); }

  static void load_many(const void* x, int64_t at, Type type, int64_t count, float* out) {
    const auto* p = static_cast<const uint8_t*>(x) + at * (type == Type::kFloat ? 4 : 2);
    const int size = type == Type::kFloat ? 4 : 2;
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) store(out + i, load_as(p + i * size, type));
    for (; i < count; ++i) out[i] = load_scalar(x, at + i, type);
  }
  static void store_many(void* data, int64_t at, Type type, int64_t count, const float* values) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) store_as(data, at + i, type, load(values + i), 0);
    for (; i < count; ++i) store_scalar(data, at + i, type, values[i], 0);
  }
  static float sum(const float* p, int64_t count) {
    F a = zero(), b = zero();
    float tail = 0;
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) a = add(a, load(p + i)), b = add(b, load(p + i + 16));
    for (; i < count; ++i) tail += p[i];
    return _mm512_reduce_add_ps(add(a, b)) + tail;
  }
  // The largest magnitude; NaN if there is one.
  static float peak(const float* p, int64_t count) {
    F most = zero(), nans = zero();
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      const F v = load(p + i);
      most = _mm512_max_ps(most, _mm512_abs_ps(v));
      nans = fmadd(v, zero(), nans);
    }
    float m = _mm512_reduce_max_ps(most), n = _mm512_reduce_add_ps(nans);
    for (; i < count; ++i) m = std::max(m, std::fabs(p[i])), n += p[i] * 0;
    return m + n;
  }
  static void quantize(const float* p, float factor, int64_t count, int8_t* out) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      const I codes = _mm512_cvtps_epi32(mul(load(p + i), set(factor)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtsepi32_epi8(codes));
    }
    for (; i < count; ++i) out[i] = nearest_int8(p[i] * factor);
  }
};

}  // namespace
}  // namespace quanto

#ifdef __AVX512BF16__
#include "bfloat16.h"

namespace quanto {

extern const Bfloat16 kAvx512Bfloat16 = {[] { return __builtin_cpu_supports("avx512bf16") != 0; }, bfloat16, prepare_bfloat16};

}  // namespace quanto
#else
#include "linear.h"

namespace quanto {

extern const Kernels kAvx512 = {
    "avx512_vnni", V::kExactTile, V::kIntegerTile, V::kSmallTile, V::kFewTile, V::kHalves, V::kPairs,
    kDigitCode<Code::kInt8>, V::kWidth,
    [] { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"); },
    exact, small, integer, prepare_exact, prepare_integer, tokens, dequantize, prepare_digits};

}  // namespace quanto
#endif
