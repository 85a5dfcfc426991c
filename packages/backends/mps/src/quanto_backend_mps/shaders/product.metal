// SPDX-License-Identifier: Apache-2.0
// What both products share: their arguments, and the end of a sum.

// tokens x size times (rows x size) transposed. `x_scale`: 0 none, 1 one for all, 2 one a token. `ticks`: the bias joins
// the sum in units of the scales. `vectors`: x is read four at a time.
struct Linear {
    int tokens, rows, size, stride, group, groups, block_rows, scale_type, zero_type, bias_type, out_type, table;
    int whole_row, x_scale, ticks, vectors;
};

// What the end of a sum needs of a row of the weight: its scale, if it has but one, and its bias.
struct End {
    float scale, bias;
};

inline End end_of_row(int n, device const uchar* scale, device const uchar* bias, constant Linear& p) {
    End e;
    e.scale = p.whole_row ? load_number(scale, ulong(n / p.block_rows), p.scale_type) : 1.0f;
    e.bias = p.bias_type == NONE ? 0.0f : load_number(bias, ulong(n), p.bias_type);
    return e;
}

// The result of a sum: scaled, with its bias, written.
inline void finish(
    float total, int m, int n, End e, device const float* x_scale, device uchar* out, constant Linear& p
) {
    float unit = e.scale;
    if (p.x_scale == 1) {
        unit *= x_scale[0];
    } else if (p.x_scale == 2) {
        unit *= x_scale[m];
    }
    float y;
    if (p.ticks && fabs(rint(e.bias / unit)) < 1073741824.0f) {
        y = (total + rint(e.bias / unit)) * unit;
    } else {
        y = total * unit + e.bias;
    }
    store_number(out, ulong(m) * ulong(p.rows) + ulong(n), y, p.out_type);
}
