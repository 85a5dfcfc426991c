// SPDX-License-Identifier: Apache-2.0
// Numbers to codes: with given scales (quantize), or with one scale for each token found on the way (dynamic).
//
// quantize: a thread takes eight neighbouring numbers of a row, whose codes begin at a byte whatever their width:
//
//     row n      | thread 0: x0 … x7 | thread 1: x8 … x15 | …       eight numbers in, BITS bytes out
//
// dynamic: a threadgroup of 8 simdgroups takes a token, finds its largest magnitude, and reads it again, from the cache.
//
// Rounding is that of quanto.reference: to the nearest, ties to the even code; NaN becomes the code of zero, or stays
// NaN where the codes are floats. Bound by memory: the numbers read are 2 to 16 times the bytes written.

struct Encode {
    int rows, size, stride, group, groups, block_rows, scale_type, zero_type, table;
};

inline uint encode_integer(float v, int zero_type, float zero, int least, int most) {
    float q = zero_type == NONE ? v : zero_type == I8 ? rint(v) + zero : v + zero;
    q = is_nan(q) ? 0.0f : clamp(rint(q), float(least), float(most));
    return uint(int(q) - least);
}

// Elements of TABLES are compared from below; on a middle the odd one yields.
inline uint encode_table(float v, int table) {
    const bool signed_ = table == 1;  // fp4: eight magnitudes, and a sign
    if (is_nan(v)) {
        return signed_ ? 0u : 7u;
    }
    const float size = signed_ ? fabs(v) : v;
    uint code = 0;
    for (int i = 0; i < (signed_ ? 7 : 15); ++i) {
        const float middle = (TABLES[table * 16 + i] + TABLES[table * 16 + i + 1]) * 0.5f;
        code += (size > middle || (size == middle && (i & 1))) ? 1u : 0u;
    }
    return signed_ && v < 0.0f && code > 0u ? code + 8u : code;
}

// A float8 with `MANTISSA` bits, smallest normal value `least`, largest `most`; SHIFT is of a float's mantissa.
template <int MANTISSA, int BIAS>
inline uint encode_float8(float v, float least, float most, float steps) {
    if (is_nan(v)) {
        return 127u;
    }
    const uint sign = (as_type<uint>(v) >> 31) << 7;
    const float size = min(fabs(v), most);
    if (size < least) {
        return sign | uint(rint(size * steps));
    }
    const int shift = 23 - MANTISSA;
    uint bits = as_type<uint>(size);
    bits += (1u << (shift - 1)) - 1u + ((bits >> shift) & 1u);
    return sign | ((bits >> shift) - (uint(127 - BIAS) << MANTISSA));
}

struct EncodeInt8 {
    enum { BITS = 8 };
    static uint code(float v, int zero_type, float zero, int) {
        return (encode_integer(v, zero_type, zero, -128, 127) + 128u) & 255u;
    }
};
struct EncodeInt4 {
    enum { BITS = 4 };
    static uint code(float v, int zero_type, float zero, int) { return encode_integer(v, zero_type, zero, -8, 7); }
};
struct EncodeInt3 {
    enum { BITS = 3 };
    static uint code(float v, int zero_type, float zero, int) { return encode_integer(v, zero_type, zero, -4, 3); }
};
struct EncodeInt2 {
    enum { BITS = 2 };
    static uint code(float v, int zero_type, float zero, int) { return encode_integer(v, zero_type, zero, -2, 1); }
};
struct EncodeTable4 {
    enum { BITS = 4 };
    static uint code(float v, int, float, int table) { return encode_table(v, table); }
};
struct EncodeE4m3 {
    enum { BITS = 8 };
    static uint code(float v, int, float, int) { return encode_float8<3, 7>(v, 0.015625f, 448.0f, 512.0f); }
};
struct EncodeE5m2 {
    enum { BITS = 8 };
    static uint code(float v, int, float, int) { return encode_float8<2, 15>(v, 6.103515625e-05f, 57344.0f, 65536.0f); }
};

template <typename E, typename T>
inline void encode_eight(
    device const T* x, device const uchar* scale, device const uchar* zero, device uchar* out, constant Encode& p,
    int row, int k
) {
    uint codes[8];
    UNROLL for (int j = 0; j < 8; ++j) {
        codes[j] = 0u;
        if (k + j < p.size) {
            const ulong i = ulong(row / p.block_rows) * ulong(p.groups) + ulong((k + j) / p.group);
            const float zeros = p.zero_type == NONE ? 0.0f : load_number(zero, i, p.zero_type);
            const float v = widen(x[ulong(row) * ulong(p.size) + ulong(k + j)]) / load_number(scale, i, p.scale_type);
            codes[j] = E::code(v, p.zero_type, zeros, p.table);
        }
    }
    device uchar* to = out + ulong(row) * ulong(p.stride);
    const int first = (k >> 3) * E::BITS;
    if (E::BITS == 8) {
        UNROLL for (int j = 0; j < 8; ++j) {
            if (first + j < p.stride) {
                to[first + j] = uchar(codes[j]);
            }
        }
        return;
    }
    uint bits = 0;
    UNROLL for (int j = 0; j < 8; ++j) {
        bits |= codes[j] << (E::BITS == 8 ? 0 : j * E::BITS);
    }
    UNROLL for (int i = 0; i < (E::BITS == 8 ? 1 : E::BITS); ++i) {
        if (first + i < p.stride) {
            to[first + i] = uchar(bits >> (8 * i));
        }
    }
}

#define QUANTIZE(KIND, E, TYPE, T)                                                                                     \
    kernel void quantize_##KIND##_##TYPE(                                                                              \
        device const T* x [[buffer(0)]], device const uchar* scale [[buffer(1)]],                                      \
        device const uchar* zero [[buffer(2)]], device uchar* out [[buffer(3)]], constant Encode& p [[buffer(4)]],     \
        uint3 position [[thread_position_in_grid]]) {                                                                  \
        encode_eight<E>(x, scale, zero, out, p, int(position.y), int(position.x) * 8);                                 \
    }

#define KINDS(KIND, E)                                                                                                 \
    QUANTIZE(KIND, E, f32, float)                                                                                      \
    QUANTIZE(KIND, E, f16, half)                                                                                       \
    QUANTIZE(KIND, E, bf16, ushort)

KINDS(int8, EncodeInt8)
KINDS(int4, EncodeInt4)
KINDS(int3, EncodeInt3)
KINDS(int2, EncodeInt2)
KINDS(table4, EncodeTable4)
KINDS(e4m3, EncodeE4m3)
KINDS(e5m2, EncodeE5m2)

// -- one scale a token ------------------------------------------------------------------------------------------------

constant int TOKEN_THREADS = 256;

// Magnitudes are compared by their bits, among which NaN is the largest: it spreads to the scale of its token.
template <typename T>
inline void dynamic(
    device const T* x, device float* scale, device char* out, constant Encode& p, threadgroup uint* peaks, int token,
    int index, int simdgroup, int lane
) {
    device const T* from = x + ulong(token) * ulong(p.size);
    uint peak = 0;
    for (int k = index; k < p.size; k += TOKEN_THREADS) {
        peak = max(peak, as_type<uint>(widen(from[k])) & 0x7fffffffu);
    }
    peak = simd_max(peak);
    if (lane == 0) {
        peaks[simdgroup] = peak;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = 0; i < TOKEN_THREADS / 32; ++i) {
        peak = max(peak, peaks[i]);
    }
    const float most = as_type<float>(peak);
    float own = most == 0.0f ? 1.0f : most / 127.5f;
    own = own < 1.17549435e-38f ? 1.17549435e-38f : own;
    if (index == 0) {
        scale[token] = own;
    }
    for (int k = index; k < p.size; k += TOKEN_THREADS) {
        const uint code = EncodeInt8::code(widen(from[k]) / own, NONE, 0.0f, 0);
        out[ulong(token) * ulong(p.size) + ulong(k)] = char(code);
    }
}

#define DYNAMIC(TYPE, T)                                                                                               \
    kernel void dynamic_int8_##TYPE(                                                                                   \
        device const T* x [[buffer(0)]], device float* scale [[buffer(1)]], device char* out [[buffer(2)]],            \
        constant Encode& p [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],                                \
        uint index [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],                 \
        uint lane [[thread_index_in_simdgroup]]) {                                                                     \
        SHARED(uint, peaks, TOKEN_THREADS / 32);                                                                       \
        dynamic(x, scale, out, p, peaks, int(group.x), int(index), int(simdgroup), int(lane));                         \
    }

DYNAMIC(f32, float)
DYNAMIC(f16, half)
DYNAMIC(bf16, ushort)
