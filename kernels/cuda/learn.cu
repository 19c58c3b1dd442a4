// The end of a pass and the step: cross-entropy, global norm, AdamW; and what choosing a token needs.
#include "device.h"

// Cross-entropy of rows of logits, computed some rows at a time by the head product before it.
//   Forward   loss = log sum e^z - z[target]
//   Backward  z <- scale (softmax(z) - [target]), in place, if `learn`
//   Shapes    z [rows][vocabulary]; targets, scales, losses [rows]; one block a row
KERNEL(1024) cross_entropy(float* __restrict__ z, int vocabulary, const u32* __restrict__ targets,
                           const float* __restrict__ scales, int learn, float* __restrict__ losses) {
    SHARED float part[32];
    SHARED float other[32];
    z += (u64)blockIdx.x * vocabulary;
    const int target = (int)targets[blockIdx.x];
    float most = -3.0e38f;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) most = larger(most, z[i]);
    most = block_most(most, part);
    float sum = 0.f;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += exponential(z[i] - most);
    sum = block_sum(sum, other);
    if (threadIdx.x == 0) losses[blockIdx.x] = most + logarithm(sum) - z[target];
    if (!learn) return;
    __syncthreads(); // the loss is read before its logit is gone
    const float scale = scales[blockIdx.x], each = scale / sum;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x)
        z[i] = each * exponential(z[i] - most) - (i == target ? scale : 0.f);
}

// The largest logit of each row (the first of equals; NaN is never chosen unless nothing else is there) and
// log sum e^z: greedy choice and log-probabilities without the logits leaving the device. One block a row.
KERNEL(1024) pick(const float* __restrict__ z, int vocabulary, u32* __restrict__ best, float* __restrict__ log_sum) {
    SHARED float part[32];
    SHARED u32 index[32];
    SHARED float other[32];
    z += (u64)blockIdx.x * vocabulary;
    float most = -3.0e38f;
    u32 at = 0;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x)
        if (z[i] > most) {
            most = z[i];
            at = (u32)i;
        }
    for (int o = 16; o > 0; o >>= 1) {
        const float v = shuffle_xor(most, o);
        const u32 i = shuffle_xor(at, o);
        if (v > most || (v == most && i < at)) {
            most = v;
            at = i;
        }
    }
    if ((threadIdx.x & 31) == 0) {
        part[threadIdx.x >> 5] = most;
        index[threadIdx.x >> 5] = at;
    }
    __syncthreads();
    most = part[0];
    at = index[0];
    for (int w = 1; w < (int)(blockDim.x >> 5); ++w)
        if (part[w] > most || (part[w] == most && index[w] < at)) {
            most = part[w];
            at = index[w];
        }
    float sum = 0.f;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += exponential(z[i] - most);
    sum = block_sum(sum, other);
    if (threadIdx.x == 0) {
        best[blockIdx.x] = at;
        log_sum[blockIdx.x] = most + logarithm(sum);
    }
}

// Sum of squares, one f32 for each block; the host adds them up. The grid is always the same, so the sum is too.
KERNEL(256) squares(const float* __restrict__ g, u64 n, float* __restrict__ sums) {
    SHARED float part[32];
    float sum = 0.f;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x) sum += g[i] * g[i];
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One step of AdamW (Loshchilov, Hutter, 2019) over a flat arena, in PyTorch's order; `clip` is what the gradients are
// multiplied with first, correction1 = 1 - beta1^t, correction2 = sqrt(1 - beta2^t).
//   p <- p (1 - rate decay)    m <- m + (1 - beta1)(g - m)    v <- beta2 v + (1 - beta2) g^2
//   p <- p - rate / correction1 . m / (sqrt(v) / correction2 + epsilon)
KERNEL(256) adamw(float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v, u64 n,
                  float rate, float beta1, float beta2, float epsilon, float decay, float correction1,
                  float correction2, float clip) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float gi = clip * g[i], mi = m[i] + (1.f - beta1) * (gi - m[i]);
    const float vi = beta2 * v[i] + (1.f - beta2) * gi * gi;
    m[i] = mi;
    v[i] = vi;
    p[i] = p[i] * (1.f - rate * decay) - rate / correction1 * (mi / (square_root(vi) / correction2 + epsilon));
}
