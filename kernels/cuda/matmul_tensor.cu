// Products with many rows on tensor cores: activations and decoded weights meet as bf16 (f16 on Turing), sums are f32.
//   Forward   y = x W^T (+ bias)            tensor_matmul, tensor_matmul_tall               cols a multiple of 32
//   Backward  dx += dy W                    tensor_matmul_grad, tensor_matmul_grad_tall     outputs a multiple of 32
//   Shapes    as in matmul.cu; a block makes 64 x 64 results with 4 warps, or 128 x 64 with 8, a warp 32 x 32: tall blocks
//             decode a weight for twice as many rows
// `lift` is a power of two that dy is multiplied with on its way in and the result divided by: f16 has few small numbers.
//
// The rows of the next step are on their way into shared memory while this step's are multiplied.
#include "blocks.h"

#define SIDE 64
#define DEPTH 32
// 16-bit numbers from one row of a tile to the next: rows begin 16 bytes apart modulo 128, so that eight of them meet
// eight different groups of banks
#define PITCH 40
#define WIDE_PITCH 72


// Rows of 32 numbers, half as many as there are threads; those behind the end repeat the last, whose results nobody keeps
DEVICE void fetch_rows(const float* __restrict__ x, int rows, int cols, int first, int from, float* raw) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int piece = threadIdx.x + blockDim.x * i, r = piece >> 3, c = 4 * (piece & 7);
        const int row = first + r < rows ? first + r : rows - 1;
        copy_16(raw + r * DEPTH + c, x + (u64)row * cols + from + c);
    }
    copies_commit();
}

DEVICE void pack_rows(const float* raw, float lift, u16* left) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int pair = threadIdx.x + blockDim.x * i, r = pair >> 4, c = 2 * (pair & 15);
        *(u32*)(left + r * PITCH + c) = pack(raw[r * DEPTH + c] * lift, raw[r * DEPTH + c + 1] * lift);
    }
}

DEVICE void pack_weights(const float (&v)[8], u16* to) {
#pragma unroll
    for (int i = 0; i < 4; ++i) ((u32*)to)[i] = pack(v[2 * i], v[2 * i + 1]);
}

template <bool TURNED> DEVICE void multiply(const u16* left, const u16* right, float (&sums)[2][4][4]) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, wm = warp >> 1, wn = warp & 1;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        u32 a[2][4], b[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
            load_matrices(a[i], left + (wm * 32 + i * 16 + (lane & 15)) * PITCH + k + (lane >> 4) * 8);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int eight = lane & 7, n = wn * 32 + j * 16 + (lane >> 4) * 8, p = k + (lane >> 3 & 1) * 8;
            if (TURNED) load_matrices_turned(b[j], right + (p + eight) * WIDE_PITCH + n);
            else load_matrices(b[j], right + (n + eight) * PITCH + p);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
                multiply_tiles(sums[i][j], a[i], b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]);
    }
}

// `side` rows of results; the memory is the kernel's.
DEVICE void forward(int side, float* raw, u16* left, u16* right, const u8* __restrict__ w, int format, u64 row_bytes,
                    int outputs, int cols, const float* __restrict__ x, int rows, const float* __restrict__ bias,
                    float* __restrict__ y) {
    const int output = blockIdx.x * SIDE, row = blockIdx.y * side;
    float sums[2][4][4] = {};
    fetch_rows(x, rows, cols, row, 0, raw);
    for (int from = 0, turn = 0; from < cols; from += DEPTH, turn ^= 1) {
        if (from + DEPTH < cols) {
            fetch_rows(x, rows, cols, row, from + DEPTH, raw + (turn ^ 1) * side * DEPTH);
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        pack_rows(raw + turn * side * DEPTH, 1.f, left);
#pragma unroll
        for (int piece = threadIdx.x; piece < SIDE * DEPTH / 8; piece += 2 * side) {
            const int o = piece >> 2, p = 8 * (piece & 3);
            float v[8] = {};
            if (output + o < outputs) weights(format, w + (u64)(output + o) * row_bytes, from + p, cols, v);
            pack_weights(v, right + o * PITCH + p);
        }
        __syncthreads();
        multiply<false>(left, right, sums);
    }
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const int r = row + (warp >> 1) * 32 + i * 16 + (lane >> 2) + (n >> 1) * 8;
                const int o = output + (warp & 1) * 32 + j * 8 + (lane & 3) * 2 + (n & 1);
                if (r < rows && o < outputs) y[(u64)r * outputs + o] = bias ? sums[i][j][n] + bias[o] : sums[i][j][n];
            }
}

DEVICE void backward(int side, float* raw, u16* left, u16* right, const u8* __restrict__ w, int format, u64 row_bytes,
                     int outputs, int cols, const float* __restrict__ dy, int rows, float lift, float* __restrict__ dx) {
    const int col = blockIdx.x * SIDE, row = blockIdx.y * side;
    float sums[2][4][4] = {};
    fetch_rows(dy, rows, outputs, row, 0, raw);
    for (int from = 0, turn = 0; from < outputs; from += DEPTH, turn ^= 1) {
        if (from + DEPTH < outputs) {
            fetch_rows(dy, rows, outputs, row, from + DEPTH, raw + (turn ^ 1) * side * DEPTH);
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        pack_rows(raw + turn * side * DEPTH, lift, left);
#pragma unroll
        for (int piece = threadIdx.x; piece < SIDE * DEPTH / 8; piece += 2 * side) {
            const int o = piece >> 3, c = 8 * (piece & 7);
            float v[8];
            weights(format, w + (u64)(from + o) * row_bytes, col + c, cols, v);
            pack_weights(v, right + o * WIDE_PITCH + c);
        }
        __syncthreads();
        multiply<true>(left, right, sums);
    }
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const float back = 1.f / lift;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const int r = row + (warp >> 1) * 32 + i * 16 + (lane >> 2) + (n >> 1) * 8;
                const int c = col + (warp & 1) * 32 + j * 8 + (lane & 3) * 2 + (n & 1);
                if (r < rows && c < cols) dx[(u64)r * cols + c] += sums[i][j][n] * back;
            }
}

#define PRODUCTS(name, side, threads, blocks)                                                                          \
    KERNEL(threads, blocks) tensor_matmul##name(const u8* w, int format, u64 row_bytes, int outputs, int cols,         \
                                                const float* x, int rows, const float* bias, float* y) {               \
        SHARED float raw[2 * side * DEPTH];                                                                            \
        SHARED u16 left[side * PITCH];                                                                                 \
        SHARED u16 right[SIDE * PITCH];                                                                                \
        forward(side, raw, left, right, w, format, row_bytes, outputs, cols, x, rows, bias, y);                        \
    }                                                                                                                  \
    KERNEL(threads, blocks) tensor_matmul_grad##name(const u8* w, int format, u64 row_bytes, int outputs, int cols,    \
                                                     const float* dy, int rows, float lift, float* dx) {               \
        SHARED float raw[2 * side * DEPTH];                                                                            \
        SHARED u16 left[side * PITCH];                                                                                 \
        SHARED u16 right[DEPTH * WIDE_PITCH];                                                                          \
        backward(side, raw, left, right, w, format, row_bytes, outputs, cols, dy, rows, lift, dx);                     \
    }
PRODUCTS(, 64, 128, 3)
PRODUCTS(_tall, 128, 256, 2)
#undef PRODUCTS
#undef SIDE
#undef DEPTH
#undef PITCH
#undef WIDE_PITCH
