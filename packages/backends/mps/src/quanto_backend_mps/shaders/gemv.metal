// SPDX-License-Identifier: Apache-2.0
// y[m, n] = sum over k of x[m, k] * w[n, k], for 1 to 16 tokens m.
//
// A simdgroup owns ROWS rows of the weight. Its lanes lie side by side along a row, each with one unit of 16 bytes
// (12 for int3, 8 for int2), read in place from the canonical layout:
//
//     row n      | lane 0 | lane 1 | … | lane 31 | lane 0 | …       a step is 32 units: 1024 codes of 4 bits
//
// so each byte of the weight is read once, by whole cache lines, whatever the number of tokens. A unit is decoded eight
// codes at a time, by one multiply-add each that holds scale and zero point too, and meets every token before the next
// eight; the tokens' values come from the cache. At the end the lanes add up their sums.
//
// Bound by memory for a few tokens (0.5 bytes a weight for int4); by arithmetic from about 8 tokens on: one multiply-add
// for each weight and token.

constant int SIMDGROUPS = 2;

template <typename K, typename T, typename T4, int TOKENS, int ROWS>
inline void gemv(
    device const T* x, device const uchar* codes, device const uchar* scale, device const uchar* zero,
    device const uchar* bias, device const float* x_scale, device uchar* out, constant Linear& p,
    threadgroup const float* table, int block, int lane
) {
    const int first = block * ROWS;
    if (first >= p.rows) {
        return;
    }
    const Scales s = {p.group, p.groups, p.block_rows, p.scale_type, p.zero_type};
    float sum[ROWS][TOKENS];
    device const uchar* row[ROWS];
    int n[ROWS];
    Affine a[ROWS];
    UNROLL for (int r = 0; r < ROWS; ++r) {
        n[r] = min(first + r, p.rows - 1);
        row[r] = codes + ulong(n[r]) * ulong(p.stride);
        a[r] = affine_of_row<K>(zero, s, n[r]);
        UNROLL for (int m = 0; m < TOKENS; ++m) {
            sum[r][m] = 0.0f;
        }
    }
    const int whole = p.size / K::UNIT * K::UNIT;
    for (int k = lane * K::UNIT; k < whole; k += 32 * K::UNIT) {
        typename K::Words words[ROWS];
        UNROLL for (int r = 0; r < ROWS; ++r) {
            words[r] = *(device const typename K::Words*)(row[r] + (k >> 3) * K::BITS);
        }
        if (!p.whole_row) {
            UNROLL for (int r = 0; r < ROWS; ++r) {
                a[r] = affine_at<K>(scale, zero, s, n[r], k);
            }
        }
        UNROLL for (int j = 0; j < K::UNIT; j += 8) {
            float4 low[ROWS], high[ROWS];
            UNROLL for (int r = 0; r < ROWS; ++r) {
                UNROLL for (int i = 0; i < 4; ++i) {
                    low[r][i] = fma(element<K>(K::code(words[r], j + i), table), a[r].scale, a[r].shift);
                    high[r][i] = fma(element<K>(K::code(words[r], j + 4 + i), table), a[r].scale, a[r].shift);
                }
            }
            UNROLL for (int m = 0; m < TOKENS; ++m) {
                if (m < p.tokens) {
                    device const T4* from = (device const T4*)(x + ulong(m) * ulong(p.size) + ulong(k + j));
                    const float4 x0 = widen(from[0]), x1 = widen(from[1]);
                    UNROLL for (int r = 0; r < ROWS; ++r) {
                        sum[r][m] += dot(x0, low[r]) + dot(x1, high[r]);
                    }
                }
            }
        }
    }
    for (int k = whole + lane; k < p.size; k += 32) {
        UNROLL for (int r = 0; r < ROWS; ++r) {
            const Affine own = p.whole_row ? affine_of_row<K>(zero, s, n[r]) : affine_at<K>(scale, zero, s, n[r], k);
            const float w = fma(element<K>(code_at<K>(row[r], k), table), own.scale, own.shift);
            UNROLL for (int m = 0; m < TOKENS; ++m) {
                if (m < p.tokens) {
                    sum[r][m] += widen(x[ulong(m) * ulong(p.size) + ulong(k)]) * w;
                }
            }
        }
    }
    UNROLL for (int r = 0; r < ROWS; ++r) {
        const End e = end_of_row(n[r], scale, bias, p);
        UNROLL for (int m = 0; m < TOKENS; ++m) {
            if (m < p.tokens) {
                const float total = simd_sum(sum[r][m]);
                if (lane == 0 && first + r < p.rows) {
                    finish(total, m, n[r], e, x_scale, out, p);
                }
            }
        }
    }
}

#define GEMV(NAME, K, T, T4, TOKENS, ROWS)                                                                             \
    kernel void NAME(                                                                                                  \
        device const T* x [[buffer(0)]], device const uchar* codes [[buffer(1)]],                                      \
        device const uchar* scale [[buffer(2)]], device const uchar* zero [[buffer(3)]],                               \
        device const uchar* bias [[buffer(4)]], device const float* x_scale [[buffer(5)]],                             \
        device uchar* out [[buffer(6)]], constant Linear& p [[buffer(7)]],                                             \
        uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],                      \
        uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {                  \
        SHARED(float, table, 16);                                                                                      \
        if (K::TABLE) {                                                                                                \
            if (index < 16) {                                                                                          \
                table[index] = TABLES[p.table * 16 + int(index)];                                                      \
            }                                                                                                          \
            threadgroup_barrier(mem_flags::mem_threadgroup);                                                           \
        }                                                                                                              \
        const int block = int(group.x) * SIMDGROUPS + int(simdgroup);                                                  \
        gemv<K, T, T4, TOKENS, ROWS>(x, codes, scale, zero, bias, x_scale, out, p, table, block, int(lane));           \
    }

#define GEMVS(KIND, K, TYPE, T, T4)                                                                                    \
    GEMV(gemv1_##KIND##_##TYPE, K, T, T4, 1, 4)                                                                        \
    GEMV(gemv4_##KIND##_##TYPE, K, T, T4, 4, 4)                                                                        \
    GEMV(gemv16_##KIND##_##TYPE, K, T, T4, 16, 2)

#define KINDS(KIND, K)                                                                                                 \
    GEMVS(KIND, K, f32, float, float4)                                                                                 \
    GEMVS(KIND, K, f16, half, half4)                                                                                   \
    GEMVS(KIND, K, bf16, ushort, ushort4)

KINDS(int8, Int8)
KINDS(int4, Int4)
KINDS(int3, Int3)
KINDS(int2, Int2)
KINDS(table4, Table4)
KINDS(e4m3, E4m3)
KINDS(e5m2, E5m2)

GEMVS(int8, Int8, i8, char, char4)
GEMVS(int4, Int4, i8, char, char4)
GEMVS(int3, Int3, i8, char, char4)
GEMVS(int2, Int2, i8, char, char4)
