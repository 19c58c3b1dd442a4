// The one header of the machine: what the kernels beside it need of a GPU, and nothing of NVIDIA's own headers.
//
//   compiled by NVRTC             built-in functions and inline PTX
//   compiled with ONLAY_EMULATE   a fibre for each thread (emulator/emulator.h), for tests on a machine without a GPU
//
// Every wrapper around inline PTX has its twin in the emulator under the same name.
#pragma once
typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Four neighbours that are read at once, from a multiple of 16 bytes.
struct alignas(16) Four {
    float v[4];
};

#ifdef ONLAY_EMULATE
#include "emulator/emulator.h"
#else

#define DEVICE static __device__ __forceinline__
// threads of a block, and how many blocks a multiprocessor must hold at least
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#define SHARED __shared__ __align__(16)
#define DYNAMIC_SHARED(T, name)                                                                                        \
    extern __shared__ __align__(16) u8 dynamic_shared_[];                                                             \
    T* name = (T*)dynamic_shared_

DEVICE u32 bits_of(float v) { return __float_as_uint(v); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }

// IEEE binary16 and back; to nearest, ties to even.
DEVICE float half_to_float(u16 h) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
    return r;
}
DEVICE u16 float_to_half(float v) {
    u16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}

DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE u32 shuffle_xor(u32 v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE float shuffle(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
DEVICE void sync_lanes() { __syncwarp(); }

DEVICE float exponential(float v) { return expf(v); }
DEVICE float logarithm(float v) { return logf(v); }
DEVICE float square_root(float v) { return sqrtf(v); }
DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE float smaller(float a, float b) { return fminf(a, b); }
DEVICE float nearest(float v) { return rintf(v); } // ties to even

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes into shared memory, there after copies_wait<N> (all but the N groups committed last) and a barrier. Turing
// copies at once.
#if __CUDA_ARCH__ >= 800
DEVICE void copy_16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
#else
DEVICE void copy_16(void* to, const void* from) { *(uint4*)to = *(const uint4*)from; }
DEVICE void copies_commit() {}
template <int N> DEVICE void copies_wait() {}
#endif

// Four 8x8 matrices of 16-bit numbers: lanes 8m..8m+8 name the rows of matrix m; every lane gets two neighbours of row
// lane/4, or, turned, of column lane/4.
DEVICE void load_matrices(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrices_turned(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Two numbers as the tensor cores take them: bf16 from Ampere on, f16 (kept finite) on Turing.
#if __CUDA_ARCH__ >= 800
DEVICE u32 pack(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
// c [16][8] += a [16][16] . b [16][8]
DEVICE void multiply_tiles(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
DEVICE u32 pack(float low, float high) {
    const float most = 65504.f;
    low = smaller(larger(low, -most), most);
    high = smaller(larger(high, -most), most);
    return (u32)float_to_half(low) | (u32)float_to_half(high) << 16;
}
DEVICE void multiply_tiles(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
}
#endif
#endif // ONLAY_EMULATE

// What both machines share.

// The sum over a warp, in every lane, always in the same order.
DEVICE float warp_sum(float v) {
    for (int o = 16; o > 0; o >>= 1) v += shuffle_xor(v, o);
    return v;
}
DEVICE float warp_most(float v) {
    for (int o = 16; o > 0; o >>= 1) v = larger(v, shuffle_xor(v, o));
    return v;
}
// The sum over a block of whole warps, in every thread. `part` has room for 32 and may be used again after the next
// barrier.
DEVICE float block_sum(float v, float* part) {
    v = warp_sum(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
    __syncthreads();
    v = (threadIdx.x & 31) < (blockDim.x >> 5) ? part[threadIdx.x & 31] : 0.f;
    return warp_sum(v);
}
DEVICE float block_most(float v, float* part) {
    v = warp_most(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
    __syncthreads();
    v = (threadIdx.x & 31) < (blockDim.x >> 5) ? part[threadIdx.x & 31] : part[0];
    return warp_most(v);
}
