// Low-rank pairs (LoRA, Hu et al., 2021) beside base products, every row with the pair of the layer it wears.
//   Forward   h = x A^T                     lora_hidden, first
//             y += s h B                    lora_spread, second
//   Backward  dh = s dy B^T                 lora_hidden, second
//             dA += dh^T x    dB += s h^T dy         lora_outer
//             dx += dh A                    lora_spread, first
//   Shapes    A [r][inputs]; B [r][outputs], as the host keeps it; h, dh [rows][stride], stride >= every r
//             worn [rows]: which pair, below 0 none
// and what drops a share of a pair's inputs while it learns (Srivastava et al., 2014).
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

// SplitMix64 (Steele, Lea, Flood, 2014) as the host has it: a mask is a hash of its place, so it is never stored.
DEVICE u64 mix(u64 z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
DEVICE u64 hash(u64 h, u64 coordinate) { return mix(h ^ mix(coordinate + 0x9e3779b97f4a7c15ull)); }

// Dropout of `rate` of 65536 inputs; the mask belongs to seed, the row's name, site and column. Rows that wear no pair
// pass as they are, or with `accumulate` not at all.
//   Forward   to = m x           m = 0 with probability rate / 65536, else 65536 / (65536 - rate)
//   Backward  dx += m dy         the same with `accumulate`
//   Shapes    x, to [rows][cols]; names, worn [rows]. One block a row, four neighbouring columns a draw of 64 bits
KERNEL(256) drop(const float* x, const u64* __restrict__ names, const int* __restrict__ worn, u32 site, u32 rate, u64 seed,
                 int rows, int cols, int accumulate, float* to) {
    const int row = blockIdx.x;
    if (row >= rows || (accumulate && worn[row] < 0)) return;
    const bool wears = worn[row] >= 0;
    const float raised = wears ? 65536.f / (float)(65536u - rate) : 1.f;
    const u64 place = hash(hash(mix(seed + 0x9e3779b97f4a7c15ull), names[row]), site);
    x += (u64)row * cols;
    to += (u64)row * cols;
    for (int k = 4 * threadIdx.x; k < cols; k += 4 * blockDim.x) {
        const u64 draw = hash(place, (u64)k >> 2);
        for (int i = 0; i < 4 && k + i < cols; ++i) {
            const bool dropped = wears && (draw >> 16 * i & 0xffff) < rate;
            const float v = dropped ? 0.f : raised * x[k + i];
            to[k + i] = accumulate ? to[k + i] + v : v;
        }
    }
}
