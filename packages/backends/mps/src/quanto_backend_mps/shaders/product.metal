// SPDX-License-Identifier: Apache-2.0
// What both products share: their arguments, and the end of a sum.

// tokens x size times (rows x size) transposed. `x_scale`: 0 none, 1 one for all, 2 one a token. `ticks`: the bias joins
// the sum in units of the scales. `vectors`: x is read four at a time.
struct Linear {
    int tokens, rows, size, stride, group, groups, block_rows, scale_type, zero_type, bias_type, out_type, table;
    int whole_row, x_scale, ticks, vectors;
};

// The result of a sum: scaled, with its bias, written. `total` lacks the scale of a whole row, and that of the tokens.
inline void finish(
    float total, int m, int n, device const uchar* scale, device const uchar* bias, device const float* x_scale,
    device uchar* out, constant Linear& p
) {
    float unit = p.whole_row ? load_number(scale, ulong(n / p.block_rows), p.scale_type) : 1.0f;
    if (p.x_scale == 1) {
        unit *= x_scale[0];
    } else if (p.x_scale == 2) {
        unit *= x_scale[m];
    }
    const float b = p.bias_type == NONE ? 0.0f : load_number(bias, ulong(n), p.bias_type);
    float y;
    if (p.ticks && fabs(rint(b / unit)) < 1073741824.0f) {  // the bias joins the integer sum in units of the scales
        y = (total + rint(b / unit)) * unit;
    } else {
        y = total * unit + b;
    }
    store_number(out, ulong(m) * ulong(p.rows) + ulong(n), y, p.out_type);
}
