// SPDX-License-Identifier: Apache-2.0
// Codes of 1 to 7 bits, one a byte, to and from a bit stream along each row.
//
// A thread takes eight codes, which fill `bits` bytes:
//
//     row n      | thread 0: c0 … c7, bytes 0 … bits - 1 | thread 1: c8 … c15, bytes bits … 2 * bits - 1 | …
//
// Bound by memory.

struct Bits {
    int rows, size, stride, bits;
};

kernel void pack(
    device const uchar* codes [[buffer(0)]], device uchar* out [[buffer(1)]], constant Bits& p [[buffer(2)]],
    uint3 position [[thread_position_in_grid]]
) {
    device const uchar* from = codes + ulong(position.y) * ulong(p.size);
    device uchar* to = out + ulong(position.y) * ulong(p.stride);
    const int k = int(position.x) * 8, first = int(position.x) * p.bits;
    ulong all = 0;
    for (int j = 0; j < 8 && k + j < p.size; ++j) {
        all |= ulong(from[k + j]) << (j * p.bits);
    }
    for (int i = 0; i < p.bits && first + i < p.stride; ++i) {
        to[first + i] = uchar(all >> (8 * i));
    }
}

kernel void unpack(
    device const uchar* packed [[buffer(0)]], device uchar* out [[buffer(1)]], constant Bits& p [[buffer(2)]],
    uint3 position [[thread_position_in_grid]]
) {
    device const uchar* from = packed + ulong(position.y) * ulong(p.stride);
    device uchar* to = out + ulong(position.y) * ulong(p.size);
    const int k = int(position.x) * 8, first = int(position.x) * p.bits;
    ulong all = 0;
    for (int i = 0; i < p.bits && first + i < p.stride; ++i) {
        all |= ulong(from[first + i]) << (8 * i);
    }
    for (int j = 0; j < 8 && k + j < p.size; ++j) {
        to[k + j] = uchar((all >> (j * p.bits)) & ((ulong(1) << p.bits) - 1));
    }
}
