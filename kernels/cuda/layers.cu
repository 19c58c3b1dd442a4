// Low-rank pairs (LoRA, Hu et al., 2021) beside base products, every row with the pair of the layer it wears.
//   Forward   h = x A^T                     lora_hidden, first
//             y += s h B                    lora_spread, second
//   Backward  dh = s dy B^T                 lora_hidden, second
//             dA += dh^T x    dB += s h^T dy         lora_outer
//             dx += dh A                    lora_spread, first
//   Shapes    A [r][inputs]; B [r][outputs], as the host keeps it; h, dh [rows][stride], stride >= every r
//             worn [rows]: which pair, below 0 none
#include "device.h"

struct Pair {
    const float *first, *second; // A, B
    int rank;
    float scale;
};

// One block a row, one warp a hidden unit at a time.
KERNEL(256) lora_hidden(const float* __restrict__ x, int cols, const Pair* __restrict__ pairs,
                        const int* __restrict__ worn, int second, int stride, float* __restrict__ h) {
    const int row = blockIdx.x, lane = threadIdx.x & 31, which = worn[row];
    if (which < 0) return;
    const Pair pair = pairs[which];
    const float* m = second ? pair.second : pair.first;
    x += (u64)row * cols;
    for (int r = threadIdx.x >> 5; r < pair.rank; r += 8) {
        float sum = 0.f;
        for (int k = lane; k < cols; k += 32) sum = fused(x[k], m[(u64)r * cols + k], sum);
        sum = warp_sum(sum);
        if (lane == 0) h[(u64)row * stride + r] = second ? pair.scale * sum : sum;
    }
}

// One thread a column.  grid: 256 columns, rows
KERNEL(256) lora_spread(const float* __restrict__ h, int stride, const Pair* __restrict__ pairs,
                        const int* __restrict__ worn, int second, int cols, float* __restrict__ y) {
    const int row = blockIdx.y, c = blockIdx.x * 256 + threadIdx.x, which = worn[row];
    if (which < 0 || c >= cols) return;
    const Pair pair = pairs[which];
    const float* m = second ? pair.second : pair.first;
    float sum = 0.f;
    for (int r = 0; r < pair.rank; ++r) sum = fused(h[(u64)row * stride + r], m[(u64)r * cols + c], sum);
    y[(u64)row * cols + c] += second ? pair.scale * sum : sum;
}

// grad [rank][cols] += scale sum over the rows that wear `which` of h^T x. One thread a column, eight hidden units a
// block.  grid: 256 columns, eights of units
KERNEL(256) lora_outer(const float* __restrict__ h, int stride, int rows, const int* __restrict__ worn, int which,
                       int rank, float scale, const float* __restrict__ x, int cols, float* __restrict__ grad) {
    const int c = blockIdx.x * 256 + threadIdx.x, first = blockIdx.y * 8;
    if (c >= cols) return;
    float sums[8] = {};
    for (int row = 0; row < rows; ++row) {
        if (worn[row] != which) continue;
        const float v = x[(u64)row * cols + c];
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (first + i < rank) sums[i] = fused(h[(u64)row * stride + first + i], v, sums[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
        if (first + i < rank) grad[(u64)(first + i) * cols + c] += scale * sums[i];
}
