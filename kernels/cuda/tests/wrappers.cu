// Kernels for a test alone (wrappers.cpp): everything device.h wraps, and what the others take for granted of the
// compiler. What a kernel makes is its last argument.
#include "../device.h"

KERNEL(256) test_from_halves(const u16* x, int n, float* y) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = half_to_float(x[i]);
}
KERNEL(256) test_to_halves(const float* x, int n, u16* y) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = float_to_half(x[i]);
}
KERNEL(256) test_pack(const float* low, const float* high, int n, u32* y) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = pack(low[i], high[i]);
}

// What is rounded once, everywhere; y [9][n]. The 0 takes the sign off a zero, which the larger of two may choose.
KERNEL(256) test_numbers(const float* a, const float* b, const float* c, int n, float* y) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    y[i] = fused(a[i], b[i], c[i]);
    y[n + i] = larger(a[i], b[i]) + 0.f;
    y[2 * n + i] = smaller(a[i], b[i]) + 0.f;
    y[3 * n + i] = square_root(float_of(bits_of(a[i]) & 0x7fffffffu));
    y[4 * n + i] = a[i] / b[i];
    y[5 * n + i] = a[i] * b[i];
    y[6 * n + i] = a[i] + b[i];
    y[7 * n + i] = 1.f / square_root(float_of(bits_of(b[i]) & 0x7fffffffu));
    y[8 * n + i] = nearest(c[i]);
}
// What is only close; y [2][n].
KERNEL(256) test_functions(const float* x, int n, float* y) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    y[i] = exponential(x[i]);
    y[n + i] = logarithm(float_of(bits_of(x[i]) & 0x7fffffffu));
}

// y [14][threads of the grid]
KERNEL(64) test_lanes(const u32* x, u32* y) {
    SHARED u32 room[64];
    const int i = blockIdx.x * 64 + threadIdx.x, n = gridDim.x * 64, lane = threadIdx.x & 31;
    for (int k = 0; k < 5; ++k) {
        y[k * n + i] = shuffle_xor(x[i], 1 << k);
        y[(5 + k) * n + i] = bits_of(shuffle_xor(float_of(x[i]), 31 >> k));
    }
    y[10 * n + i] = bits_of(shuffle(float_of(x[i]), 13));
    y[11 * n + i] = bits_of(shuffle(float_of(x[i]), (7 * lane + 3) & 31));
    room[threadIdx.x] = x[i];
    sync_lanes();
    y[12 * n + i] = room[threadIdx.x ^ 9];
    sync_lanes();
    room[threadIdx.x ^ 21] = x[i];
    sync_lanes();
    y[13 * n + i] = room[threadIdx.x];
}

// y [5][threads of the grid]
KERNEL(1024) test_sums(const float* x, float* y) {
    SHARED float part[32];
    const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    y[i] = warp_sum(x[i]);
    y[n + i] = warp_most(x[i]);
    y[2 * n + i] = block_sum(x[i], part);
    y[3 * n + i] = block_most(x[i], part);
    y[4 * n + i] = block_sum(x[n - 1 - i], part);
}

// As the tensor kernels fetch rows: the next step's pieces are on their way while this step's are read, each by another
// thread. x, y [steps][512]
KERNEL(128) test_copies(const float* x, int steps, float* y) {
    SHARED float room[2 * 512];
    copy_16(room + 4 * threadIdx.x, x + 4 * threadIdx.x);
    copies_commit();
    for (int step = 0; step < steps; ++step) {
        if (step + 1 < steps) {
            copy_16(room + ((step + 1) & 1) * 512 + 4 * threadIdx.x, x + (step + 1) * 512 + 4 * threadIdx.x);
            copies_commit();
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        const int at = 4 * ((threadIdx.x + 33) % 128);
        for (int i = 0; i < 4; ++i) y[step * 512 + at + i] = room[(step & 1) * 512 + at + i];
        __syncthreads();
    }
}

// More shared memory than a launch has without asking. x, y [n], n words of it
KERNEL(256) test_dynamic(const u32* x, int n, u32* y) {
    DYNAMIC_SHARED(u32, room);
    for (int i = threadIdx.x; i < n; i += 256) room[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += 256) y[i] = room[n - 1 - i];
}

// x [32][8] a block of one warp; rows [32]: the row a lane names; y [2][32][4] a block: as they are, turned
KERNEL(32) test_matrices(const u16* x, const int* rows, u32* y) {
    SHARED u16 room[32 * 8];
    x += blockIdx.x * 256;
    y += blockIdx.x * 256;
    for (int i = threadIdx.x; i < 256; i += 32) room[i] = x[i];
    __syncthreads();
    const u16* row = room + 8 * rows[blockIdx.x * 32 + threadIdx.x];
    u32 r[4], t[4];
    load_matrices(r, row);
    load_matrices_turned(t, row);
    for (int i = 0; i < 4; ++i) {
        y[4 * threadIdx.x + i] = r[i];
        y[128 + 4 * threadIdx.x + i] = t[i];
    }
}

// y = c + a . b, loaded as the tensor kernels do. A block of one warp: a [16][16]; b [16 columns][16], or [16][16
// columns] if turned; c, y [16][16]
KERNEL(32) test_tiles(const u16* a, const u16* b, const float* c, int turned, float* y) {
    SHARED u16 left[16 * 24];
    SHARED u16 right[16 * 24];
    const int lane = threadIdx.x, first = blockIdx.x * 256;
    for (int i = lane; i < 256; i += 32) {
        left[i / 16 * 24 + i % 16] = a[first + i];
        right[i / 16 * 24 + i % 16] = b[first + i];
    }
    __syncthreads();
    u32 l[4], r[4];
    load_matrices(l, left + (lane & 15) * 24 + (lane >> 4) * 8);
    const int eight = lane & 7, n = (lane >> 4) * 8, p = (lane >> 3 & 1) * 8;
    if (turned) load_matrices_turned(r, right + (p + eight) * 24 + n);
    else load_matrices(r, right + (n + eight) * 24 + p);
    for (int j = 0; j < 2; ++j) {
        float sums[4];
        const int at = first + (lane >> 2) * 16 + 8 * j + (lane & 3) * 2;
        for (int i = 0; i < 4; ++i) sums[i] = c[at + (i >> 1) * 128 + (i & 1)];
        multiply_tiles(sums, l, r[2 * j], r[2 * j + 1]);
        for (int i = 0; i < 4; ++i) y[at + (i >> 1) * 128 + (i & 1)] = sums[i];
    }
}
