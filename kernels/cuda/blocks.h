// Eight neighbouring weights of a row as f32, for every format of the host's table (kernels/src/quant, whose files hold
// the layouts). In each of them eight weights from a multiple of eight on share their scales.
//
// A format is named by its tensor type number in a GGUF file. A matrix begins at a multiple of 16 bytes; what that makes of
// the addresses inside decides how many bytes are read at once.
#pragma once
#include "device.h"

enum Format {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13,
    Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23, BF16 = 30
};

// Eight bytes from an address that is a multiple of ALIGN.
template <int ALIGN> DEVICE u64 eight(const u8* p) {
    if (ALIGN == 8) return *(const u64*)p;
    if (ALIGN == 4) return (u64)((const u32*)p)[1] << 32 | ((const u32*)p)[0];
    const u16* h = (const u16*)p;
    return (u64)((u32)h[3] << 16 | h[2]) << 32 | ((u32)h[1] << 16 | h[0]);
}
DEVICE int byte_of(u64 eight, int i) { return (int)(eight >> (8 * i) & 255); }

DEVICE float half_at(const u8* p) { return half_to_float(*(const u16*)p); }

// The table of IQ4_NL, eight entries in a word.
DEVICE float iq4(u32 i) {
    const u64 eight = i & 8 ? 0x7159453526190d01ull : 0xf6eaddcfbfad9881ull;
    return (float)(i8)(eight >> (8 * (i & 7)));
}

// The scale and the minimum of 32 weights in Q4_K and Q5_K.
DEVICE void scale_and_minimum(const u8* x, int j, int& s, int& b) {
    if (j < 4) {
        s = x[j] & 63;
        b = x[j + 4] & 63;
    } else {
        s = (x[j + 4] & 15) | (x[j - 4] >> 6) << 4;
        b = (x[j + 4] >> 4) | (x[j] >> 6) << 4;
    }
}

// Weights k .. k+8 of a row of `cols`; k a multiple of 8. Behind the end of the row there are zeros.
template <int F> DEVICE void weights(const u8* row, int k, int cols, float (&w)[8]) {
    if (F == F32 && cols % 8 == 0 && k < cols) {
        const Four *x = (const Four*)((const float*)row + k), a = x[0], b = x[1];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            w[i] = a.v[i];
            w[4 + i] = b.v[i];
        }
        return;
    }
    if ((F == F16 || F == BF16) && cols % 8 == 0 && k < cols) {
        const u8* x = row + 2 * (u64)k;
        const u64 both[2] = {eight<8>(x), eight<8>(x + 8)};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const u16 h = (u16)(both[i >> 2] >> (16 * (i & 3)));
            w[i] = F == F16 ? half_to_float(h) : float_of((u32)h << 16);
        }
        return;
    }
    if (F == F32 || F == F16 || F == BF16) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (k + i >= cols) w[i] = 0.f;
            else if (F == F32) w[i] = ((const float*)row)[k + i];
            else if (F == F16) w[i] = half_to_float(((const u16*)row)[k + i]);
            else w[i] = float_of((u32)((const u16*)row)[k + i] << 16);
        }
        return;
    }
    if (k >= cols) {
#pragma unroll
        for (int i = 0; i < 8; ++i) w[i] = 0.f;
        return;
    }
    if (F == Q4_0 || F == Q4_1 || F == Q5_0 || F == Q5_1 || F == IQ4_NL || F == Q8_0) {
        const int bytes = F == Q4_0 || F == IQ4_NL ? 18 : F == Q4_1 ? 20 : F == Q5_0 ? 22 : F == Q5_1 ? 24 : 34;
        const u8* b = row + (u64)(k >> 5) * bytes;
        const int i0 = k & 31, shift = i0 >> 4 << 2;
        const float d = half_at(b);
        if (F == Q8_0) {
            const u64 q = eight<2>(b + 2 + i0);
#pragma unroll
            for (int i = 0; i < 8; ++i) w[i] = (float)(i8)byte_of(q, i) * d;
            return;
        }
        const bool minimum = F == Q4_1 || F == Q5_1, fifth = F == Q5_0 || F == Q5_1;
        const float m = minimum ? half_at(b + 2) : 0.f;
        const u8* high = b + (minimum ? 4 : 2);
        const u64 q = eight<2>(high + (fifth ? 4 : 0) + (i0 & 15));
        const u32 h = fifth ? (u32)high[i0 >> 3] : 0u;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int n = (byte_of(q, i) >> shift & 15) | (int)(h >> i & 1) << 4;
            if (F == IQ4_NL) w[i] = iq4(n) * d;
            else if (F == Q4_0) w[i] = (float)(n - 8) * d;
            else if (F == Q5_0) w[i] = (float)(n - 16) * d;
            else w[i] = (float)n * d + m;
        }
        return;
    }
    const int j = k & 255, l = j & 31;
    if (F == Q2_K) {
        const u8* b = row + (u64)(k >> 8) * 84;
        const u8 both = b[j >> 4];
        const float s = half_at(b + 80) * (float)(both & 15), m = half_at(b + 82) * (float)(both >> 4);
        const u64 q = eight<4>(b + 16 + 32 * (j >> 7) + l);
#pragma unroll
        for (int i = 0; i < 8; ++i) w[i] = s * (float)(byte_of(q, i) >> (2 * (j >> 5 & 3)) & 3) - m;
    } else if (F == Q3_K) {
        const u8* b = row + (u64)(k >> 8) * 110;
        const int n = j >> 4;
        const int low = b[96 + (n & 7)] >> (n >> 3 << 2) & 15, high = b[104 + (n & 3)] >> (n >> 2 << 1) & 3;
        const float s = half_at(b + 108) * (float)((low | high << 4) - 32);
        const u64 q = eight<2>(b + 32 + 32 * (j >> 7) + l), third = eight<2>(b + l);
#pragma unroll
        for (int i = 0; i < 8; ++i)
            w[i] = s * (float)(((byte_of(q, i) >> (2 * (j >> 5 & 3)) & 3) | (byte_of(third, i) >> (j >> 5) & 1) << 2) - 4);
    } else if (F == Q4_K || F == Q5_K) {
        const u8* b = row + (u64)(k >> 8) * (F == Q4_K ? 144 : 176);
        int s, low;
        scale_and_minimum(b + 4, j >> 5, s, low);
        const float d = half_at(b) * (float)s, m = half_at(b + 2) * (float)low;
        const u64 q = eight<8>(b + (F == Q4_K ? 16 : 48) + 32 * (j >> 6) + l), fifth = F == Q5_K ? eight<8>(b + 16 + l) : 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            int n = byte_of(q, i) >> (j >> 5 << 2 & 4) & 15;
            if (F == Q5_K) n |= (byte_of(fifth, i) >> (j >> 5) & 1) << 4;
            w[i] = d * (float)n - m;
        }
    } else if (F == Q6_K) {
        const u8* b = row + (u64)(k >> 8) * 210;
        const int h = j >> 7, t = j >> 5 & 3;
        const float s = half_at(b + 208) * (float)(i8)b[192 + (j >> 4)];
        const u64 q = eight<2>(b + 64 * h + 32 * (t & 1) + l), up = eight<2>(b + 128 + 32 * h + l);
#pragma unroll
        for (int i = 0; i < 8; ++i)
            w[i] = s * (float)(((byte_of(q, i) >> (t >> 1 << 2) & 15) | (byte_of(up, i) >> (2 * t) & 3) << 4) - 32);
    } else if (F == IQ4_XS) {
        const u8* b = row + (u64)(k >> 8) * 136;
        const int n = j >> 5;
        const int low = b[4 + (n >> 1)] >> ((n & 1) << 2) & 15, high = *(const u16*)(b + 2) >> (2 * n) & 3;
        const float s = half_at(b) * (float)((low | high << 4) - 32);
        const u64 q = eight<8>(b + 8 + 16 * n + (l & 15));
#pragma unroll
        for (int i = 0; i < 8; ++i) w[i] = s * iq4(byte_of(q, i) >> (l >> 4 << 2) & 15);
    }
}

// The same for a format that is known when the kernel runs: all threads of a block take the same way.
DEVICE void weights(int format, const u8* row, int k, int cols, float (&w)[8]) {
    switch (format) {
#define CASE(F) \
    case F: weights<F>(row, k, cols, w); break;
        CASE(F32) CASE(F16) CASE(BF16) CASE(Q4_0) CASE(Q4_1) CASE(Q5_0) CASE(Q5_1) CASE(Q8_0) CASE(Q2_K) CASE(Q3_K)
        CASE(Q4_K) CASE(Q5_K) CASE(Q6_K) CASE(IQ4_NL) CASE(IQ4_XS)
#undef CASE
    }
}
