// SPDX-License-Identifier: Apache-2.0
// Decoded weights: all of one, a window of its columns, or rows of a table by their indices.
//
// A thread decodes eight neighbouring codes, which begin at a byte whatever their width:
//
//     row n      | thread 0: c0 … c7 | thread 1: c8 … c15 | …       BITS bytes in, eight numbers out
//
// Bound by memory: the numbers written are 4 to 16 times the bytes read.

struct Dense {
    int rows, table_rows, size, stride, first, columns, group, groups, block_rows, scale_type, zero_type, table;
};

// Writes columns `first + 8 * position.x …` of one row; a row that the table does not have becomes NaN.
template <typename K, typename T>
inline void decode_eight(
    device const uchar* codes, device const uchar* scale, device const uchar* zero, device T* out, constant Dense& p,
    long row, ulong to, int at
) {
    const int k = p.first + at;
    uint found[8];
    const bool inside = row >= 0 && row < long(p.table_rows);
    const int n = inside ? int(row) : 0;
    eight_codes<K>(codes + ulong(n) * ulong(p.stride), k, p.size, found);
    const Scales s = {p.group, p.groups, p.block_rows, p.scale_type, p.zero_type};
    Affine a = affine_at<K>(scale, zero, s, n, k);
    const bool shared = p.group % 8 == 0 || p.groups == 1;
    UNROLL for (int j = 0; j < 8; ++j) {
        if (at + j < p.columns) {
            if (!shared) {
                a = affine_at<K>(scale, zero, s, n, k + j);
            }
            const float v = (element_constant<K>(found[j], p.table) - float(K::OFFSET) - a.zero) * a.scale;
            put(out, to * ulong(p.columns) + ulong(at + j), inside ? v : NAN);
        }
    }
}

#define DENSE(KIND, K, TYPE, T)                                                                                        \
    kernel void dequantize_##KIND##_##TYPE(                                                                            \
        device const uchar* codes [[buffer(0)]], device const uchar* scale [[buffer(1)]],                              \
        device const uchar* zero [[buffer(2)]], device T* out [[buffer(3)]], constant Dense& p [[buffer(4)]],          \
        uint3 position [[thread_position_in_grid]]) {                                                                  \
        decode_eight<K>(codes, scale, zero, out, p, long(position.y), ulong(position.y), int(position.x) * 8);         \
    }                                                                                                                  \
    kernel void embedding_##KIND##_##TYPE(                                                                             \
        device const long* indices [[buffer(0)]], device const uchar* codes [[buffer(1)]],                             \
        device const uchar* scale [[buffer(2)]], device const uchar* zero [[buffer(3)]], device T* out [[buffer(4)]],  \
        constant Dense& p [[buffer(5)]], uint3 position [[thread_position_in_grid]]) {                                 \
        const long row = indices[position.y];                                                                          \
        decode_eight<K>(codes, scale, zero, out, p, row, ulong(position.y), int(position.x) * 8);                      \
    }

#define KINDS(KIND, K)                                                                                                 \
    DENSE(KIND, K, f32, float)                                                                                         \
    DENSE(KIND, K, f16, half)                                                                                          \
    DENSE(KIND, K, bf16, ushort)

KINDS(int8, Int8)
KINDS(int4, Int4)
KINDS(int3, Int3)
KINDS(int2, Int2)
KINDS(table4, Table4)
KINDS(e4m3, E4m3)
KINDS(e5m2, E5m2)
