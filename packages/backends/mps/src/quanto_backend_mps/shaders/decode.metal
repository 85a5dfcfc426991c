// SPDX-License-Identifier: Apache-2.0
// What every shader shares: the elements of each kind of weight, and reading and writing numbers by a type code.
//
// Codes are a little-endian bit stream along a row, low bits first (quanto/packing.py):
//
//     int8, float8   byte j = code j
//     4 bits         byte 0 = c1 c1 c1 c1 c0 c0 c0 c0
//     int2           byte 0 = c3 c3 c2 c2 c1 c1 c0 c0
//     int3           byte 0 = c2 c2 c1 c1 c1 c0 c0 c0
//                    byte 1 = c5 c4 c4 c4 c3 c3 c3 c2
//                    byte 2 = c7 c7 c7 c6 c6 c6 c5 c5
//
// so that 8 codes begin at a byte for any width, and 32 codes (16 of 8 bits) at a word where rows are whole words.
//
// Metal 3.0 has neither bfloat nor float8: both are integers here. GPUs flush float subnormals to zero, so nothing below
// makes a value by way of one.

#include <metal_stdlib>
using namespace metal;

#define UNROLL _Pragma("clang loop unroll(full)")

// An array in threadgroup memory. Declared by kernels only, as Metal wants it.
#ifndef SHARED
#define SHARED(T, name, count) threadgroup T name[count]
#endif

constant int F32 = 0;
constant int F16 = 1;
constant int BF16 = 2;
constant int I8 = 3;
constant int NONE = 4;

// QLoRA's NF4, then OCP's E2M1.
constant float TABLES[32] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
    0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f,
};

// -- numbers ---------------------------------------------------------------------------------------------------------
// ushort is bfloat16 wherever a number is meant.

inline float widen(float v) { return v; }
inline float widen(half v) { return float(v); }
inline float widen(ushort v) { return as_type<float>(uint(v) << 16); }
inline float widen(char v) { return float(v); }

inline float4 widen(float4 v) { return v; }
inline float4 widen(half4 v) { return float4(v); }
inline float4 widen(ushort4 v) { return as_type<float4>(uint4(v) << 16); }
inline float4 widen(char4 v) { return float4(v); }

// By its bits, which no compiler may assume away.
inline bool is_nan(float v) { return (as_type<uint>(v) & 0x7fffffffu) > 0x7f800000u; }

// Nearest, ties to even; NaN stays NaN.
inline ushort to_bf16(float v) {
    const uint bits = as_type<uint>(v);
    if (is_nan(v)) {
        return ushort((bits >> 16) | 0x40u);
    }
    return ushort((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void put(device float* out, ulong i, float v) { out[i] = v; }
inline void put(device half* out, ulong i, float v) { out[i] = half(v); }
inline void put(device ushort* out, ulong i, float v) { out[i] = to_bf16(v); }

inline float load_number(device const uchar* from, ulong i, int type) {
    if (type == F32) {
        return ((device const float*)from)[i];
    }
    if (type == F16) {
        return float(((device const half*)from)[i]);
    }
    if (type == BF16) {
        return widen(((device const ushort*)from)[i]);
    }
    return float(((device const char*)from)[i]);
}

inline void store_number(device uchar* to, ulong i, float v, int type) {
    if (type == F32) {
        put((device float*)to, i, v);
    } else if (type == F16) {
        put((device half*)to, i, v);
    } else {
        put((device ushort*)to, i, v);
    }
}

// -- kinds -----------------------------------------------------------------------------------------------------------
// UNIT codes fill Words, which a lane reads at once. OFFSET is what the code of zero counts. A table kind has its values
// in TABLES instead of `value`.

// Metal 3.0 has no derived classes, so each kind says everything.

struct Int4 {
    enum { BITS = 4, UNIT = 32, TABLE = 0, OFFSET = 8 };
    typedef packed_uint4 Words;
    static uint code(Words w, int j) { return (w[j >> 3] >> ((j & 7) * 4)) & 15u; }
    static float value(uint code) { return float(code); }
};

// 32 codes in 3 words; code 10 and code 21 lie across two of them.
struct Int3 {
    enum { BITS = 3, UNIT = 32, TABLE = 0, OFFSET = 4 };
    typedef packed_uint3 Words;
    static uint code(Words w, int j) {
        const int bit = 3 * j, at = bit & 31;
        const uint low = w[bit >> 5] >> at;
        return (at > 29 ? low | (w[min((bit >> 5) + 1, 2)] << (32 - at)) : low) & 7u;
    }
    static float value(uint code) { return float(code); }
};

struct Int2 {
    enum { BITS = 2, UNIT = 32, TABLE = 0, OFFSET = 2 };
    typedef packed_uint2 Words;
    static uint code(Words w, int j) { return (w[j >> 4] >> ((j & 15) * 2)) & 3u; }
    static float value(uint code) { return float(code); }
};

// nf4, fp4
struct Table4 {
    enum { BITS = 4, UNIT = 32, TABLE = 1, OFFSET = 0 };
    typedef packed_uint4 Words;
    static uint code(Words w, int j) { return (w[j >> 3] >> ((j & 7) * 4)) & 15u; }
    static float value(uint code) { return float(code); }
};

struct Int8 {
    enum { BITS = 8, UNIT = 16, TABLE = 0, OFFSET = 0 };
    typedef packed_uint4 Words;
    static uint code(Words w, int j) { return (w[j >> 2] >> ((j & 3) * 8)) & 255u; }
    static float value(uint code) { return float(int(code << 24) >> 24); }
};

// s eeee mmm: 2**(e - 7) * (1 + m / 8); e = 0: 2**-6 * m / 8; all ones are NaN, there is no infinity.
struct E4m3 {
    enum { BITS = 8, UNIT = 16, TABLE = 0, OFFSET = 0 };
    typedef packed_uint4 Words;
    static uint code(Words w, int j) { return (w[j >> 2] >> ((j & 3) * 8)) & 255u; }
    static float value(uint code) {
        const uint rest = code & 127u;
        uint bits = (rest << 20) + (120u << 23);
        bits = rest == 127u ? 0x7fc00000u : bits;
        const float size = rest < 8u ? float(rest) * 0.001953125f : as_type<float>(bits);
        return (code & 128u) ? -size : size;
    }
};

// s eeeee mm: the upper half of a float16.
struct E5m2 {
    enum { BITS = 8, UNIT = 16, TABLE = 0, OFFSET = 0 };
    typedef packed_uint4 Words;
    static uint code(Words w, int j) { return (w[j >> 2] >> ((j & 3) * 8)) & 255u; }
    static float value(uint code) {
        const uint rest = code & 127u;
        uint bits = (rest << 21) + (112u << 23);
        bits = rest > 123u ? 0x7f800000u | ((rest & 3u) << 21) : bits;
        const float size = rest < 4u ? float(rest) * 1.52587890625e-05f : as_type<float>(bits);
        return (code & 128u) ? -size : size;
    }
};

// The element of a code; the table lies in threadgroup memory, where lanes may read different entries at once.
template <typename K>
inline float element(uint code, threadgroup const float* table) {
    return K::TABLE ? table[code] : K::value(code);
}

// The same where a thread decodes too few codes for a copy of the table to pay.
template <typename K>
inline float element_constant(uint code, int table) {
    return K::TABLE ? TABLES[table * 16 + int(code)] : K::value(code);
}

// Code k of a row, byte by byte.
template <typename K>
inline uint code_at(device const uchar* row, int k) {
    const uint bit = uint(k) * K::BITS;
    uint v = row[bit >> 3];
    if (K::BITS == 3 && (bit & 7u) > 5u) {
        v |= uint(row[(bit >> 3) + 1]) << 8;
    }
    return (v >> (bit & 7u)) & ((1u << K::BITS) - 1u);
}

// Codes k … k + 7 of a row of `size`; k is a multiple of 8. What is beyond the row becomes code 0.
template <typename K>
inline void eight_codes(device const uchar* row, int k, int size, thread uint* codes) {
    if (k + 8 > size) {
        UNROLL for (int j = 0; j < 8; ++j) {
            codes[j] = k + j < size ? code_at<K>(row, k + j) : 0u;
        }
        return;
    }
    device const uchar* from = row + (k >> 3) * K::BITS;
    if (K::BITS == 8) {
        UNROLL for (int j = 0; j < 8; ++j) {
            codes[j] = from[j];
        }
        return;
    }
    uint bits = 0;
    UNROLL for (int i = 0; i < (K::BITS == 8 ? 1 : K::BITS); ++i) {
        bits |= uint(from[i]) << (8 * i);
    }
    UNROLL for (int j = 0; j < 8; ++j) {
        codes[j] = (bits >> (K::BITS == 8 ? 0 : j * K::BITS)) & ((1u << K::BITS) - 1u);
    }
}

// -- scales ----------------------------------------------------------------------------------------------------------

// A value is `(element - OFFSET - zero) * scale`, or in one operation, which loses a bit or two where element and zero
// are nearly equal, `element * scale + shift`.
struct Affine {
    float zero, scale, shift;
};

// Which scale an element has: rows of `block_rows` and columns of `group` share one, `groups` of them a row.
struct Scales {
    int group, groups, block_rows, scale_type, zero_type;
};

template <typename K>
inline Affine affine_at(device const uchar* scale, device const uchar* zero, Scales s, int row, int k) {
    const ulong i = ulong(row / s.block_rows) * ulong(s.groups) + ulong(k / s.group);
    Affine a;
    a.scale = load_number(scale, i, s.scale_type);
    a.zero = s.zero_type == NONE ? 0.0f : load_number(zero, i, s.zero_type);
    a.shift = -(a.zero + float(K::OFFSET)) * a.scale;
    return a;
}

// The same but for a scale that the whole row shares, which is left to the end of a sum.
template <typename K>
inline Affine affine_of_row(device const uchar* zero, Scales s, int row) {
    Affine a;
    a.scale = 1.0f;
    a.zero = s.zero_type == NONE ? 0.0f : load_number(zero, ulong(row / s.block_rows), s.zero_type);
    a.shift = -(a.zero + float(K::OFFSET));
    return a;
}
