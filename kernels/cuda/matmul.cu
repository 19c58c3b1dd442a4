// Products with many rows, in f32: weights are decoded into a tile of shared memory, every sum is one f32 accumulator.
//   Forward   y = x W^T (+ bias)            matmul
//   Backward  dx += dy W                    matmul_grad; the base is frozen, there is no dW
//   Shapes    x, dx [rows][cols]; W [outputs][cols], row_bytes apart; y, dy [rows][outputs]
//             a block of 256 threads makes 64 x 64 results, a thread 4 x 4
#include "blocks.h"

#define SIDE 64
#define DEPTH 32
#define PITCH 68

// sums[i][j] += sum over p of left[p][4 ty + i] right[p][4 tx + j]
DEVICE void multiply_add(const float* left, const float* right, float (&sums)[4][4]) {
    const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
#pragma unroll 8
    for (int p = 0; p < DEPTH; ++p) {
        float a[4], b[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            a[i] = left[p * PITCH + 4 * ty + i];
            b[i] = right[p * PITCH + 4 * tx + i];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[i][j] = fused(a[i], b[j], sums[i][j]);
    }
}

// left[p][r] = x[first + r][from + p], zeros outside
DEVICE void turn_rows(const float* __restrict__ x, int rows, int cols, int first, int from, float* left) {
    for (int i = threadIdx.x; i < SIDE * DEPTH; i += 256) {
        const int r = i / DEPTH, p = i % DEPTH;
        const bool inside = first + r < rows && from + p < cols;
        left[p * PITCH + r] = inside ? x[(u64)(first + r) * cols + from + p] : 0.f;
    }
}

KERNEL(256) matmul(const u8* __restrict__ w, int format, u64 row_bytes, int outputs, int cols,
                   const float* __restrict__ x, int rows, const float* __restrict__ bias, float* __restrict__ y) {
    SHARED float left[DEPTH * PITCH];
    SHARED float right[DEPTH * PITCH];
    const int output = blockIdx.x * SIDE, row = blockIdx.y * SIDE;
    float sums[4][4] = {};
    for (int from = 0; from < cols; from += DEPTH) {
        turn_rows(x, rows, cols, row, from, left);
        // 64 rows of 32 weights: eight for each thread
        const int o = threadIdx.x >> 2, p = 8 * (threadIdx.x & 3);
        float v[8] = {};
        if (output + o < outputs) weights(format, w + (u64)(output + o) * row_bytes, from + p, cols, v);
#pragma unroll
        for (int i = 0; i < 8; ++i) right[(p + i) * PITCH + o] = v[i];
        __syncthreads();
        multiply_add(left, right, sums);
        __syncthreads();
    }
    const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            const int r = row + 4 * ty + i, o = output + 4 * tx + j;
            if (r < rows && o < outputs) y[(u64)r * outputs + o] = bias ? sums[i][j] + bias[o] : sums[i][j];
        }
}

KERNEL(256) matmul_grad(const u8* __restrict__ w, int format, u64 row_bytes, int outputs, int cols,
                        const float* __restrict__ dy, int rows, float* __restrict__ dx) {
    SHARED float left[DEPTH * PITCH];
    SHARED float right[DEPTH * PITCH];
    const int col = blockIdx.x * SIDE, row = blockIdx.y * SIDE;
    float sums[4][4] = {};
    for (int from = 0; from < outputs; from += DEPTH) {
        turn_rows(dy, rows, outputs, row, from, left);
        // 32 rows of 64 weights: eight for each thread
        const int o = threadIdx.x >> 3, c = 8 * (threadIdx.x & 7);
        float v[8] = {};
        if (from + o < outputs) weights(format, w + (u64)(from + o) * row_bytes, col + c, cols, v);
#pragma unroll
        for (int i = 0; i < 8; ++i) right[o * PITCH + c + i] = v[i];
        __syncthreads();
        multiply_add(left, right, sums);
        __syncthreads();
    }
    const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            const int r = row + 4 * ty + i, c = col + 4 * tx + j;
            if (r < rows && c < cols) dx[(u64)r * cols + c] += sums[i][j];
        }
}
#undef SIDE
#undef DEPTH
#undef PITCH
