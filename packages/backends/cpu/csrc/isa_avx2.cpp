// SPDX-License-Identifier: Apache-2.0
// AVX2 with FMA and F16C: 16 rows in two registers. Compiled once more with AVX-VNNI, for processors that have it.
#include <cpuid.h>
#include <immintrin.h>

#include "four.h"
#include "scalar.h"

namespace quanto {
namespace {

struct V {
  struct F {
    __m256 a, b;
  };
  struct I {
    __m256i a, b;
  };
  struct Table {
    __m256 low, high;
  };
  using Bytes = __m256i;
  static constexpr bool kLookup = false, kParts = true;
  static constexpr int kRegisters = 2, kWidth = 1, kStreams = 4, kExactTile = 6, kSmallTile = 4, kFewTile = 8;
  static constexpr bool kDigits = true;
  static constexpr bool kHalves = true;  // sums of eight rows fit into registers for half of a panel

  static F both(__m256 v) { return {v, v}; }
  static I both(__m256i v) { return {v, v}; }
  static F zero() { return both(_mm256_setzero_ps()); }
  static F set(float v) { return both(_mm256_set1_ps(v)); }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v.a), _mm256_storeu_ps(p + 8, v.b); }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F fmadd(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static F fnmadd(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }

  // sum += v * *x, in one piece: GCC moves the loads of activations ahead until registers run out, and sums into memory.
  static void add_product(F& sum, F v, const float* x) {
    __m256 spread;
    asm("vbroadcastss %5, %2\n\tvfmadd231ps %2, %3, %0\n\tvfmadd231ps %2, %4, %1"
        : "+x"(sum.a), "+x"(sum.b), "=&x"(spread) : "x"(v.a), "x"(v.b), "m"(*x));
  }

  static I izero() { return both(_mm256_setzero_si256()); }
  static I load_words(const void* p) {
    const auto* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
  }
  static __m256i load_half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static __m256i& half(I& x, int h) { return h ? x.b : x.a; }
  static __m256& half(F& x, int h) { return h ? x.b : x.a; }
  static __m256 floats(float v) { return _mm256_set1_ps(v); }
  static __m256 to_float(__m256i x) { return _mm256_cvtepi32_ps(x); }
  static __m256 fmadd(__m256 x, __m256 y, __m256 z) { return _mm256_fmadd_ps(x, y, z); }
  static void store_words(void* p, I v) {
    auto* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, v.a), _mm256_storeu_si256(q + 1, v.b);
  }
  // Functions that decode come for both registers and for one.
  template <int N> static __m256i shr(__m256i x) { return N ? _mm256_srli_epi32(x, N) : x; }
  template <int N> static __m256i shl(__m256i x) { return N ? _mm256_slli_epi32(x, N) : x; }
  static __m256i band(__m256i x, uint32_t m) { return _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(m))); }
  static __m256i bxor(__m256i x, uint32_t m) { return _mm256_xor_si256(x, _mm256_set1_epi32(static_cast<int>(m))); }
  static __m256i bor(__m256i x, __m256i y) { return _mm256_or_si256(x, y); }
  static I iadd(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  template <int N> static I shr(I x) { return {shr<N>(x.a), shr<N>(x.b)}; }
  template <int N> static I shl(I x) { return {shl<N>(x.a), shl<N>(x.b)}; }
  template <int N> static I sar(I x) { return {_mm256_srai_epi32(x.a, N), _mm256_srai_epi32(x.b, N)}; }
  static I band(I x, uint32_t m) { return {band(x.a, m), band(x.b, m)}; }
  static I bxor(I x, uint32_t m) { return {bxor(x.a, m), bxor(x.b, m)}; }
  static I bor(I x, I y) { return {bor(x.a, y.a), bor(x.b, y.b)}; }
  static I merge(I x, I y) { return bor(band(x, 3), band(y, ~3u)); }
  // Byte N of each lane, alone, at the top or at the bottom; a shuffle has a port that shifts do not wait for.
  template <int N> static I pick(I x, int to) {
    alignas(32) int8_t order[32];
    for (int i = 0; i < 32; ++i) order[i] = static_cast<int8_t>(i % 4 == to ? i % 16 / 4 * 4 + N : -1);
    const __m256i mask = _mm256_load_si256(reinterpret_cast<const __m256i*>(order));
    return {_mm256_shuffle_epi8(x.a, mask), _mm256_shuffle_epi8(x.b, mask)};
  }
  template <int N> static I top(I x) { return pick<N>(x, 3); }
  template <int N> static I byte(I x) { return pick<N>(x, 0); }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static F as_float(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
  static Table table(const float* values) { return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)}; }
  static __m256 look(Table t, __m256i index) {  // only the low four bits count; bit 3 becomes the sign that selects
    const __m256 low = _mm256_permutevar8x32_ps(t.low, index), high = _mm256_permutevar8x32_ps(t.high, index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
  }
  static F lookup(Table t, I x) { return {look(t, x.a), look(t, x.b)}; }
  static Bytes bytes(const uint8_t* values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  static __m256i shuffle(Bytes t, __m256i x) { return _mm256_shuffle_epi8(t, x); }
  static I shuffle(Bytes t, I x) { return {shuffle(t, x.a), shuffle(t, x.b)}; }
  // The values of codes in the low half of each byte (J = 0) or in the high one, byte after byte, from tables of the four
  // bytes of values: three shuffles a register, each on one of two ports, where looking up floats takes seven operations.
  template <int J> static void look_up(const Bytes* parts, __m256i x, __m256* out) {
    const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i codes = band(shr<4 * J>(_mm256_shuffle_epi8(x, order)), 0x0f0f0f0fu);
    const __m256i a = shuffle(parts[0], codes), b = shuffle(parts[1], codes);
    const __m256i c = shuffle(parts[2], codes), d = shuffle(parts[3], codes);
    const __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
    out[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(ab, cd)), out[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(ab, cd));
    const __m256i ef = _mm256_unpackhi_epi8(a, b), gh = _mm256_unpackhi_epi8(c, d);
    out[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(ef, gh)), out[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(ef, gh));
  }
  template <int J> static void look_up(const Bytes* parts, I x, F* out) {
    __m256 a[4], b[4];
    look_up<J>(parts, x.a, a), look_up<J>(parts, x.b, b);
    for (int i = 0; i < 4; ++i) out[i] = {a[i], b[i]};
  }

  static __m256i spread(int32_t quad) { return _mm256_set1_epi32(quad); }
#ifdef __AVXVNNI__
  static constexpr int kIntegerTile = 4;
  static constexpr bool kSignedBytes = false, kNarrowSums = false, kPairs = false;
  // Not the intrinsic, see isa_avx512.cpp.
  static __m256i dot(__m256i sum, __m256i quads, __m256i x) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(quads), "x"(x));
    return sum;
  }
  static I dot(I sum, I quads, __m256i x) { return {dot(sum.a, quads.a, x), dot(sum.b, quads.b, x)}; }
  template <int T> static void dot_rows(__m256i* sum, __m256i quads, const int32_t* x) {
    for (int m = 0; m < T; ++m) sum[m] = dot(sum[m], quads, spread(x[m]));
  }
#else
  // vpmaddubsw adds two products of unsigned and signed bytes in 16 bits. With small codes many such sums still fit, with
  // bytes of the full range one, if the two activations add up to little: `kPairs`. Tiles of three rows fill the ports
  // of Intel's cores (32 and 44 products a cycle of 32 and 48 that are possible); four reach 28 and 36.
  static constexpr int kIntegerTile = 3;
  static constexpr bool kSignedBytes = false, kNarrowSums = true, kPairs = true;
  static __m256i widen(__m256i sum, __m256i part) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(part, _mm256_set1_epi16(1)));
  }
  static __m256i widen(__m256i part) { return _mm256_madd_epi16(part, _mm256_set1_epi16(1)); }
  static I widen(I sum, I part) { return {widen(sum.a, part.a), widen(sum.b, part.b)}; }
  static __m256i dot16(__m256i sum, __m256i quads, __m256i x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(quads, x)); }
  static I dot16(I sum, I quads, __m256i x) { return {dot16(sum.a, quads.a, x), dot16(sum.b, quads.b, x)}; }
  static __m256i dot(__m256i sum, __m256i quads, __m256i x) { return widen(sum, _mm256_maddubs_epi16(quads, x)); }
  static I dot(I sum, I quads, __m256i x) { return {dot(sum.a, quads.a, x), dot(sum.b, quads.b, x)}; }
  // The same for rows side by side, in one piece: GCC moves the loads of activations ahead until registers run out.
  static void mul16(__m256i& part, __m256i quads, const int32_t* x) {
    asm("vpbroadcastd %2, %0\n\tvpmaddubsw %0, %1, %0" : "=&x"(part) : "x"(quads), "m"(*x));
  }
  static void dot16(__m256i& part, __m256i quads, const int32_t* x) {
    __m256i product;
    asm("vpbroadcastd %3, %1\n\tvpmaddubsw %1, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(part), "=&x"(product) : "x"(quads), "m"(*x));
  }
  // The same for both registers of a panel.
  static void dot16(I& part, I quads, const int32_t* x) {
    __m256i a, b;
    asm("vpbroadcastd %6, %2\n\tvpmaddubsw %2, %5, %3\n\tvpmaddubsw %2, %4, %2\n\tvpaddw %2, %0, %0\n\tvpaddw %3, %1, %1"
        : "+x"(part.a), "+x"(part.b), "=&x"(a), "=&x"(b) : "x"(quads.a), "x"(quads.b), "m"(*x));
  }
  // Products of T rows.
  template <int T> static void dot16_rows(__m256i* part, __m256i quads, const int32_t* x) {
    dot16_four(part, quads, x);
    if constexpr (T == 8) dot16_four(part + 4, quads, x + 4);
    for (int m = T / 4 * 4; m < T; ++m) dot16(part[m], quads, x + m);
  }
  template <int T> static void dot_rows(__m256i* sum, __m256i quads, const int32_t* x) {
    dot_four(sum, quads, x);
    if constexpr (T == 8) dot_four(sum + 4, quads, x + 4);
    for (int m = T / 4 * 4; m < T; ++m) sum[m] = dot(sum[m], quads, spread(x[m]));
  }
  // The largest magnitude of the sum of two values at a distance of N within four.
  template <int N> static float pair_peak(const float* p, int64_t count) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most = _mm256_setzero_ps(), more = most;
    const auto pairs = [&](const float* at) {
      const __m256 v = _mm256_loadu_ps(at);
      return _mm256_and_ps(_mm256_add_ps(v, _mm256_permute_ps(v, N == 1 ? 0xb1 : 0x4e)), magnitude);
    };
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) most = _mm256_max_ps(most, pairs(p + i)), more = _mm256_max_ps(more, pairs(p + i + 8));
    for (; i + 8 <= count; i += 8) most = _mm256_max_ps(most, pairs(p + i));
    most = _mm256_max_ps(most, more);
    float m = across(most, true);
    for (; i < count; ++i) m = std::max(m, std::fabs(p[i] + p[i ^ N]));  // counts are multiples of four
    return m;
  }
#endif

  static __m256 load8(const void* p, int64_t at, Type type) {
    switch (type) {
      case Type::kFloat: return _mm256_loadu_ps(static_cast<const float*>(p) + at);
      case Type::kBFloat16: {
        const auto* q = reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + at);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16));
      }
      case Type::kHalf:
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + at)));
      default:
        return _mm256_cvtepi32_ps(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(static_cast<const int8_t*>(p) + at))));
    }
  }
  static F load_as(const void* p, Type type) { return {load8(p, 0, type), load8(p, 8, type)}; }

  static void store8(void* data, int64_t at, Type type, __m256 v) {
    if (type == Type::kFloat) {
      _mm256_storeu_ps(static_cast<float*>(data) + at, v);
      return;
    }
    __m128i half;
    if (type == Type::kHalf) {
      half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
      const __m256i bits = _mm256_castps_si256(v);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
      __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
      const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
      rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
      half = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(data) + at), half);
  }
  static bool store_as(void* data, int64_t at, Type type, F v, float) {
    if (type == Type::kInt8) return false;
    store8(data, at, type, v.a);
    store8(data, at + 8, type, v.b);
    return true;
  }
  static void store_one(void* data, int64_t at, Type type, float v, float scale) { store_scalar(data, at, type, v, scale); }

  static void load_many(const void* x, int64_t at, Type type, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, load8(x, at + i, type));
    for (; i < count; ++i) out[i] = load_scalar(x, at + i, type);
  }
  static void store_many(void* data, int64_t at, Type type, int64_t count, const float* values) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) store8(data, at + i, type, _mm256_loadu_ps(values + i));
    for (; i < count; ++i) store_scalar(data, at + i, type, values[i], 0);
  }
  static float across(__m256 v, bool largest) {
    alignas(32) float parts[8];
    _mm256_store_ps(parts, v);
    float out = parts[0];
    for (int i = 1; i < 8; ++i) out = largest ? std::max(out, parts[i]) : out + parts[i];
    return out;
  }
  static float sum(const float* p, int64_t count) {
    __m256 a = _mm256_setzero_ps(), b = a;
    float tail = 0;
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) a = _mm256_add_ps(a, _mm256_loadu_ps(p + i)), b = _mm256_add_ps(b, _mm256_loadu_ps(p + i + 8));
    for (; i < count; ++i) tail += p[i];
    return across(_mm256_add_ps(a, b), false) + tail;
  }
  static float peak(const float* p, int64_t count) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most = _mm256_setzero_ps(), more = most, nans = most, others = most;
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      const __m256 v = _mm256_loadu_ps(p + i), u = _mm256_loadu_ps(p + i + 8);
      most = _mm256_max_ps(most, _mm256_and_ps(v, magnitude));
      more = _mm256_max_ps(more, _mm256_and_ps(u, magnitude));
      nans = _mm256_fmadd_ps(v, _mm256_setzero_ps(), nans);
      others = _mm256_fmadd_ps(u, _mm256_setzero_ps(), others);
    }
    for (; i + 8 <= count; i += 8) {
      const __m256 v = _mm256_loadu_ps(p + i);
      most = _mm256_max_ps(most, _mm256_and_ps(v, magnitude));
      nans = _mm256_fmadd_ps(v, _mm256_setzero_ps(), nans);
    }
    most = _mm256_max_ps(most, more);
    float m = across(most, true), n = across(_mm256_add_ps(nans, others), false);
    for (; i < count; ++i) m = std::max(m, std::fabs(p[i])), n += p[i] * 0;
    return m + n;
  }
  static void quantize(const float* p, float factor, int64_t count, int8_t* out) {
    const __m256 f = _mm256_set1_ps(factor);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(p + i), f));
      const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(p + i + 8), f));
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
      const __m128i c = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), c);
    }
    for (; i < count; ++i) out[i] = nearest_int8(p[i] * factor);
  }
};

}  // namespace
}  // namespace quanto

#include "linear.h"

namespace quanto {
namespace {

// __builtin_cpu_supports knows these two in GCC 11 and late Clang only. That of AVX2 has asked the system already.
bool f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

#ifdef __AVXVNNI__
bool avxvnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}
#endif

}  // namespace

#ifdef __AVXVNNI__
extern const Kernels kAvxVnni = {
    "avx2_vnni", V::kExactTile, V::kIntegerTile, V::kSmallTile, V::kFewTile, V::kHalves, V::kPairs,
    kDigitCode<Code::kInt8>, V::kWidth,
    [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c() && avxvnni(); },
#else
extern const Kernels kAvx2 = {
    "avx2", V::kExactTile, V::kIntegerTile, V::kSmallTile, V::kFewTile, V::kHalves, V::kPairs,
    kDigitCode<Code::kInt8>, V::kWidth,
    [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c(); },
#endif
    exact, small, integer, prepare_exact, prepare_integer, tokens, dequantize, prepare_digits};

}  // namespace quanto
