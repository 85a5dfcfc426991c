// SPDX-License-Identifier: Apache-2.0
// y[m, n] = sum over k of x[m, k] * w[n, k], for any number of tokens m and any shape.
//
// A threadgroup of 4 simdgroups makes 32 tokens x 64 rows of the result. For 32 columns at a time it puts both operands
// into threadgroup memory as floats, the weight decoded and scaled:
//
//     xs [32][36]   thread i: token i / 4, columns 8 * (i % 4) … + 7
//     ws [64][36]   thread i: row i / 2, columns 16 * (i % 2) … + 15, read in place from the canonical layout
//
// (36: rows begin in different banks), and each simdgroup multiplies 16 x 32 of it in 8 x 8 tiles. What is beyond the
// edges is zero. The sums lie in the same memory at the end, so that results leave in whole lines:
//
//     sums [32][68]
//
// Sums are float32 whatever x is. Bound by arithmetic: 512 multiply-adds in tiles for each thread and step, beside
// 16 codes decoded and 8 numbers widened.

constant int TILE_TOKENS = 32;
constant int TILE_ROWS = 64;
constant int STEP = 32;
constant int PITCH = 36;
constant int SUM_PITCH = 68;
constant int GROUP_THREADS = 128;

template <typename K, typename T, typename T4>
inline void gemm(
    device const T* x, device const uchar* codes, device const uchar* scale, device const uchar* zero,
    device const uchar* bias, device const float* x_scale, device uchar* out, constant Linear& p,
    threadgroup const float* table, threadgroup float* xs, threadgroup float* ws, int m0, int n0, int index, int simdgroup
) {
    const Scales s = {p.group, p.groups, p.block_rows, p.scale_type, p.zero_type};
    const int own_m = index / 4, own_mk = index % 4 * 8, m = m0 + own_m;
    const int own_n = index / 2, own_nk = index % 2 * 16, n = min(n0 + own_n, p.rows - 1);
    const bool inside = n0 + own_n < p.rows;
    device const T* token = x + ulong(min(m, p.tokens - 1)) * ulong(p.size);
    device const uchar* row = codes + ulong(n) * ulong(p.stride);
    const bool per_eight = p.whole_row || p.group % 8 == 0;
    Affine a = affine_of_row<K>(zero, s, n);

    const int at_m = simdgroup / 2 * 16, at_n = simdgroup % 2 * 32;
    simdgroup_float8x8 sums[2][4];
    UNROLL for (int i = 0; i < 2; ++i) {
        UNROLL for (int j = 0; j < 4; ++j) {
            sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        }
    }
    for (int k0 = 0; k0 < p.size; k0 += STEP) {
        threadgroup float* to = xs + own_m * PITCH + own_mk;
        const int first = k0 + own_mk;
        if (p.vectors && m < p.tokens && first + 8 <= p.size) {
            device const T4* from = (device const T4*)(token + first);
            const float4 x0 = widen(from[0]), x1 = widen(from[1]);
            UNROLL for (int j = 0; j < 4; ++j) {
                to[j] = x0[j];
                to[4 + j] = x1[j];
            }
        } else {
            UNROLL for (int j = 0; j < 8; ++j) {
                to[j] = m < p.tokens && first + j < p.size ? widen(token[first + j]) : 0.0f;
            }
        }
        UNROLL for (int part = 0; part < 16; part += 8) {
            const int k = k0 + own_nk + part;
            threadgroup float* w = ws + own_n * PITCH + own_nk + part;
            uint found[8];
            eight_codes<K>(row, min(k, p.size), p.size, found);
            if (!p.whole_row && k < p.size) {
                a = affine_at<K>(scale, zero, s, n, k);
            }
            UNROLL for (int j = 0; j < 8; ++j) {
                float v = 0.0f;
                if (inside && k + j < p.size) {
                    if (!per_eight) {
                        a = affine_at<K>(scale, zero, s, n, k + j);
                    }
                    v = (element<K>(found[j], table) - float(K::OFFSET) - a.zero) * a.scale;
                }
                w[j] = v;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        UNROLL for (int k = 0; k < STEP; k += 8) {
            simdgroup_float8x8 left[2], right[4];
            UNROLL for (int i = 0; i < 2; ++i) {
                simdgroup_load(left[i], xs + (at_m + i * 8) * PITCH + k, PITCH);
            }
            UNROLL for (int j = 0; j < 4; ++j) {
                simdgroup_load(right[j], ws + (at_n + j * 8) * PITCH + k, PITCH, ulong2(0), true);
            }
            UNROLL for (int i = 0; i < 2; ++i) {
                UNROLL for (int j = 0; j < 4; ++j) {
                    simdgroup_multiply_accumulate(sums[i][j], left[i], right[j], sums[i][j]);
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    UNROLL for (int i = 0; i < 2; ++i) {
        UNROLL for (int j = 0; j < 4; ++j) {
            simdgroup_store(sums[i][j], xs + (at_m + i * 8) * SUM_PITCH + at_n + j * 8, SUM_PITCH);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = index; i < TILE_TOKENS * TILE_ROWS; i += GROUP_THREADS) {
        const int em = i / TILE_ROWS, en = i % TILE_ROWS;
        if (m0 + em < p.tokens && n0 + en < p.rows) {
            const End e = end_of_row(n0 + en, scale, bias, p);
            finish(xs[em * SUM_PITCH + en], m0 + em, n0 + en, e, x_scale, out, p);
        }
    }
}

#define GEMM(NAME, K, T, T4)                                                                                           \
    kernel void NAME(                                                                                                  \
        device const T* x [[buffer(0)]], device const uchar* codes [[buffer(1)]],                                      \
        device const uchar* scale [[buffer(2)]], device const uchar* zero [[buffer(3)]],                               \
        device const uchar* bias [[buffer(4)]], device const float* x_scale [[buffer(5)]],                             \
        device uchar* out [[buffer(6)]], constant Linear& p [[buffer(7)]],                                             \
        uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],                      \
        uint simdgroup [[simdgroup_index_in_threadgroup]]) {                                                           \
        SHARED(float, table, 16);                                                                                      \
        SHARED(float, memory, (TILE_TOKENS + TILE_ROWS) * PITCH);                                                      \
        if (K::TABLE) {                                                                                                \
            if (index < 16) {                                                                                          \
                table[index] = TABLES[p.table * 16 + int(index)];                                                      \
            }                                                                                                          \
            threadgroup_barrier(mem_flags::mem_threadgroup);                                                           \
        }                                                                                                              \
        gemm<K, T, T4>(x, codes, scale, zero, bias, x_scale, out, p, table, memory, memory + TILE_TOKENS * PITCH,      \
                       int(group.y) * TILE_TOKENS, int(group.x) * TILE_ROWS, int(index), int(simdgroup));              \
    }

#define KINDS(KIND, K)                                                                                                 \
    GEMM(gemm_##KIND##_f32, K, float, float4)                                                                          \
    GEMM(gemm_##KIND##_f16, K, half, half4)                                                                            \
    GEMM(gemm_##KIND##_bf16, K, ushort, ushort4)

KINDS(int8, Int8)
KINDS(int4, Int4)
KINDS(int3, Int3)
KINDS(int2, Int2)
KINDS(table4, Table4)
KINDS(e4m3, E4m3)
KINDS(e5m2, E5m2)

GEMM(gemm_int8_i8, Int8, char, char4)
GEMM(gemm_int4_i8, Int4, char, char4)
GEMM(gemm_int3_i8, Int3, char, char4)
GEMM(gemm_int2_i8, Int2, char, char4)
