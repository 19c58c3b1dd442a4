// What is done row by row: norms, turns, gates, sums, rows of a table.
#include "blocks.h"

// Root-mean-square normalisation (Zhang, Sennrich, 2019) of pieces of n numbers: rows, or the heads inside rows.
//   Forward   r = 1 / sqrt((1/n) sum x^2 + eps)      y = x r w
//   Backward  dx += r w dy - x (r^3 / n) sum dy w x
//   Shapes    x, y [pieces][n]; w [n]. One block a piece; with `wide` 0 one warp a piece, for short ones.
DEVICE float piece_sum(float v, float* part, int wide) { return wide ? block_sum(v, part) : warp_sum(v); }

KERNEL(256) rms_norm(const float* __restrict__ x, const float* __restrict__ w, float eps, int n, int pieces, int wide,
                     float* __restrict__ y) {
    SHARED float part[32];
    const int piece = wide ? blockIdx.x : blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const int first = wide ? threadIdx.x : threadIdx.x & 31, step = wide ? blockDim.x : 32;
    if (piece >= pieces) return;
    x += (u64)piece * n;
    y += (u64)piece * n;
    float sum = 0.f;
    for (int i = first; i < n; i += step) sum += x[i] * x[i];
    const float r = 1.f / square_root(piece_sum(sum, part, wide) / (float)n + eps);
    for (int i = first; i < n; i += step) y[i] = x[i] * r * w[i];
}

KERNEL(256) rms_norm_grad(const float* __restrict__ x, const float* __restrict__ w, float eps, int n, int pieces,
                          int wide, const float* __restrict__ dy, float* __restrict__ dx) {
    SHARED float part[32];
    SHARED float other[32];
    const int piece = wide ? blockIdx.x : blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const int first = wide ? threadIdx.x : threadIdx.x & 31, step = wide ? blockDim.x : 32;
    if (piece >= pieces) return;
    const u64 at = (u64)piece * n;
    x += at;
    dy += at;
    dx += at;
    float sum = 0.f, inner = 0.f;
    for (int i = first; i < n; i += step) {
        sum += x[i] * x[i];
        inner += dy[i] * w[i] * x[i];
    }
    const float r = 1.f / square_root(piece_sum(sum, part, wide) / (float)n + eps);
    const float s = piece_sum(inner, other, wide) * r * r * r / (float)n;
    for (int i = first; i < n; i += step) dx[i] += r * w[i] * dy[i] - x[i] * s;
}

// Rotary positions (Su et al., 2021) on the heads of a row, in place.
//   Forward   (a, b) <- (a c - b s, a s + b c)       c, s of the row's position and the pair
//   Backward  the opposite angle: sign -1
//   Shapes    x [rows][heads head]; cos, sin [positions][half], of the first 2 half columns of each head
//             pairs (2i, 2i+1) if adjacent, else (i, i + half); one thread a pair
KERNEL(256) rotate(float* __restrict__ x, const int* __restrict__ positions, const float* __restrict__ cos,
                   const float* __restrict__ sin, int rows, int heads, int head, int half, int adjacent, float sign) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)rows * heads * half) return;
    const int pair = (int)(i % half), h = (int)(i / half % heads), row = (int)(i / half / heads);
    const u64 turn = (u64)positions[row] * half + pair;
    const float c = cos[turn], s = sign * sin[turn];
    float* p = x + ((u64)row * heads + h) * head;
    float* a = p + (adjacent ? 2 * pair : pair);
    float* b = p + (adjacent ? 2 * pair + 1 : pair + half);
    const float u = *a, v = *b;
    *a = u * c - v * s;
    *b = u * s + v * c;
}

// SwiGLU (Shazeer, 2020).
//   Forward   y = g sigma(g) u
//   Backward  du += dy g sigma(g)       dg += dy u sigma(g) (1 + g (1 - sigma(g)))
KERNEL(256) gate(const float* __restrict__ g, const float* __restrict__ u, u64 n, float* __restrict__ y) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = g[i] / (1.f + exponential(-g[i])) * u[i];
}

KERNEL(256) gate_grad(const float* __restrict__ g, const float* __restrict__ u, const float* __restrict__ dy, u64 n,
                      float* __restrict__ dg, float* __restrict__ du) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float s = 1.f / (1.f + exponential(-g[i])), silu = g[i] * s;
    du[i] += dy[i] * silu;
    dg[i] += dy[i] * u[i] * (s + silu * (1.f - s));
}

// The residual stream.
//   Forward   y = a + b
//   Backward  da += dy      db += dy: accumulate twice
KERNEL(256) add(const float* a, const float* b, u64 n, float* y) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a[i] + b[i];
}

KERNEL(256) accumulate(const float* x, u64 n, float* y) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += x[i];
}

// Rows of a table in any format: y[i] = table[which[i]]. The table is frozen: no gradient. One block a row.
KERNEL(256) take_rows(const u8* __restrict__ table, int format, u64 row_bytes, int cols, const u32* __restrict__ which,
                      float* __restrict__ y) {
    const u8* row = table + (u64)which[blockIdx.x] * row_bytes;
    y += (u64)blockIdx.x * cols;
    for (int k = 8 * threadIdx.x; k < cols; k += 8 * blockDim.x) {
        float w[8];
        weights(format, row, k, cols, w);
        for (int i = 0; i < 8 && k + i < cols; ++i) y[k + i] = w[i];
    }
}

// Rows picked from others, and their gradients put back: y[i] = x[which[i]], and dx[which[i]] += dy[i], each row named
// at most once. One block a row.
KERNEL(256) gather(const float* __restrict__ x, int cols, const u32* __restrict__ which, float* __restrict__ y) {
    for (int k = threadIdx.x; k < cols; k += blockDim.x)
        y[(u64)blockIdx.x * cols + k] = x[(u64)which[blockIdx.x] * cols + k];
}

KERNEL(256) scatter(const float* __restrict__ dy, int cols, const u32* __restrict__ which, float* __restrict__ dx) {
    for (int k = threadIdx.x; k < cols; k += blockDim.x)
        dx[(u64)which[blockIdx.x] * cols + k] += dy[(u64)blockIdx.x * cols + k];
}
