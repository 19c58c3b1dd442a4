// Products with few rows of activations: every weight is read once, at the memory's pace.
//   Forward   y = x W^T (+ bias)
//   Shapes    x [rows][cols]; W [outputs][cols] in blocks, row_bytes apart; y [rows][outputs]
//             one warp an output; a block of 4 warps; N rows of x at a time (grid.y: groups of N)
// Every output is one sequence of operations, whatever rows it is computed with.
#include "blocks.h"

template <int F, int N>
DEVICE void product(const u8* __restrict__ w, u64 row_bytes, int outputs, int cols, const float* __restrict__ x, int rows,
                    const float* __restrict__ bias, float* __restrict__ y) {
    const int output = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31, first = blockIdx.y * N;
    if (output >= outputs) return;
    const u8* row = w + (u64)output * row_bytes;
    float sum[N];
#pragma unroll
    for (int c = 0; c < N; ++c) sum[c] = 0.f;
    // some steps ahead: what is on its way from memory must cover its latency, and few warps fit beside these
#pragma unroll(N == 1 ? 4 : 2)
    for (int k = 8 * lane; k < cols; k += 256) {
        float v[8];
        weights<F>(row, k, cols, v);
#pragma unroll
        for (int c = 0; c < N; ++c) {
            if (first + c >= rows) break;
            const float* xs = x + (u64)(first + c) * cols + k;
            if (cols % 8 == 0) {
                const Four a = ((const Four*)xs)[0], b = ((const Four*)xs)[1];
#pragma unroll
                for (int i = 0; i < 8; ++i) sum[c] = fused(v[i], i < 4 ? a.v[i] : b.v[i - 4], sum[c]);
                continue;
            }
#pragma unroll
            for (int i = 0; i < 8; ++i)
                if (k + i < cols) sum[c] = fused(v[i], xs[i], sum[c]);
        }
    }
#pragma unroll
    for (int c = 0; c < N; ++c) {
        if (first + c >= rows) break;
        const float total = warp_sum(sum[c]);
        if (lane == 0) y[(u64)(first + c) * outputs + output] = bias ? total + bias[output] : total;
    }
}

#define PRODUCT(name, F)                                                                                               \
    KERNEL(128, 6) matvec_##name(const u8* w, u64 row_bytes, int outputs, int cols, const float* x, int rows,          \
                              const float* bias, float* y) {                                                           \
        product<F, 1>(w, row_bytes, outputs, cols, x, rows, bias, y);                                                  \
    }                                                                                                                  \
    KERNEL(128, 6) matvec4_##name(const u8* w, u64 row_bytes, int outputs, int cols, const float* x, int rows,         \
                               const float* bias, float* y) {                                                          \
        product<F, 4>(w, row_bytes, outputs, cols, x, rows, bias, y);                                                  \
    }
PRODUCT(f32, F32)
PRODUCT(f16, F16)
PRODUCT(bf16, BF16)
PRODUCT(q4_0, Q4_0)
PRODUCT(q4_1, Q4_1)
PRODUCT(q5_0, Q5_0)
PRODUCT(q5_1, Q5_1)
PRODUCT(q8_0, Q8_0)
PRODUCT(q2_k, Q2_K)
PRODUCT(q3_k, Q3_K)
PRODUCT(q4_k, Q4_K)
PRODUCT(q5_k, Q5_K)
PRODUCT(q6_k, Q6_K)
PRODUCT(iq4_nl, IQ4_NL)
PRODUCT(iq4_xs, IQ4_XS)
