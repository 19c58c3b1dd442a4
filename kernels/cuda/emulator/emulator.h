// Runs the kernels on a processor: one fibre for each thread of a block, blocks one after another.
//
// What it finds: threads that wait at different barriers or for ever, lanes of a warp in different collectives, shared
// memory read before it is written (it holds NaN before every block), reads of an asynchronous copy before its wait (the
// copy happens at the wait, not before), and many races, if a test runs in all three orders of threads. With the
// sanitizers of the compiler also everything outside of an array. What it cannot find: a wrong idea of the hardware that
// kernel and emulator share.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#include <vector>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace emulator {
// stacks do not begin a power of two apart, where they would push one another out of the caches
enum { MOST_THREADS = 1024, STACK = 64 * 1024 + 5 * 64 };
#ifdef ONLAY_EMULATE_TURING
enum { MOST_SHARED = 64 * 1024 };
#else
enum { MOST_SHARED = 99 * 1024 };
#endif
enum State { READY, AT_BARRIER, AT_COLLECTIVE, DONE };
enum Order { FORWARD, BACKWARD, SHUFFLED };

struct Copy {
    void* to;
    const void* from;
    unsigned group;
};
struct Thread {
    dim3 index;
    int lane, warp, state, site;
    unsigned collectives, committed;
    void* stack_pointer;
    std::vector<Copy> copies;
};
struct Deposit {
    uint32_t words[8];
    int operation;
    unsigned number; // of the lane's collectives, from 1
};
struct Warp {
    Deposit deposits[2][32];
    int live, arrived;
    unsigned checked; // the last collective whose lanes were compared
};
struct Machine {
    Thread threads[MOST_THREADS];
    Warp warps[MOST_THREADS / 32];
    Thread* current;
    char* stacks = nullptr;
    dim3 grid, block, block_index;
    int count, live, arrived;
    char* dynamic = nullptr;
    size_t dynamic_bytes = 0;
    void (*body)(void*);
    void* argument;
    int order = FORWARD;
    uint32_t random = 1;
    const char* error;
    void* main_stack;
};
inline Machine machine;

// Leaves by a jump: processors foretell where a return goes from the calls before it, and here that is wrong every time.
extern "C" void onlay_emulator_switch(void** save, void* to);
#ifdef ONLAY_EMULATOR_MAIN
#if defined(__x86_64__)
asm(R"(.text
.globl onlay_emulator_switch
.hidden onlay_emulator_switch
.type onlay_emulator_switch,@function
onlay_emulator_switch:
 pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi); movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
 popq %rcx; jmpq *%rcx
.size onlay_emulator_switch,.-onlay_emulator_switch
)");
#else
#error "the emulator's fibres are written for x86-64"
#endif
#endif

inline void to_main(Thread* t) { onlay_emulator_switch(&t->stack_pointer, machine.main_stack); }
inline void to_thread(Thread* t) { onlay_emulator_switch(&machine.main_stack, t->stack_pointer); }

inline void wake_block() {
    machine.arrived = 0;
    for (int i = 0; i < machine.count; ++i)
        if (machine.threads[i].state == AT_BARRIER) machine.threads[i].state = READY;
}
inline void wake_warp(int w) {
    machine.warps[w].arrived = 0;
    for (int i = 32 * w; i < 32 * w + 32 && i < machine.count; ++i)
        if (machine.threads[i].state == AT_COLLECTIVE) machine.threads[i].state = READY;
}
inline void sync_block(int site) {
    Thread* t = machine.current;
    t->site = site;
    for (int i = 0; i < machine.count; ++i)
        if (machine.threads[i].state == AT_BARRIER) {
            if (machine.threads[i].site != site) machine.error = "threads of one block wait at different barriers";
            break;
        }
    if (++machine.arrived == machine.live) return wake_block();
    t->state = AT_BARRIER;
    to_main(t);
}
inline void sync_warp() {
    Thread* t = machine.current;
    Warp& w = machine.warps[t->warp];
    if (++w.arrived == w.live) return wake_warp(t->warp);
    t->state = AT_COLLECTIVE;
    to_main(t);
}
inline void thread_main() {
    machine.body(machine.argument);
    Thread* t = machine.current;
    t->state = DONE;
    Warp& w = machine.warps[t->warp];
    --machine.live;
    --w.live;
    if (machine.live && machine.arrived == machine.live) wake_block();
    if (w.live && w.arrived == w.live) wake_warp(t->warp);
    to_main(t);
    abort();
}

extern "C" char __start_onlay_shared[] __attribute__((weak));
extern "C" char __stop_onlay_shared[] __attribute__((weak));

inline const char* run_block() {
    machine.live = machine.count;
    machine.arrived = 0;
    // NaN
    if (__start_onlay_shared) memset(__start_onlay_shared, 0xff, __stop_onlay_shared - __start_onlay_shared);
    if (machine.dynamic_bytes) memset(machine.dynamic, 0xff, machine.dynamic_bytes);
    dim3 index(0, 0, 0);
    for (int i = 0; i < machine.count; ++i) {
        Thread& t = machine.threads[i];
        t.index = index;
        if (++index.x == machine.block.x) index.x = 0, ++index.y;
        if (index.y == machine.block.y) index.y = 0, ++index.z;
        t.lane = i & 31;
        t.warp = i >> 5;
        t.state = READY;
        t.collectives = t.committed = 0;
        t.copies.clear();
        void** sp = (void**)(machine.stacks + (size_t)(i + 1) * STACK);
        *--sp = nullptr;
        *--sp = (void*)thread_main;
        for (int k = 0; k < 6; ++k) *--sp = nullptr;
        t.stack_pointer = sp;
    }
    for (int w = 0; w * 32 < machine.count; ++w) {
        memset(machine.warps[w].deposits, 0, sizeof machine.warps[w].deposits);
        machine.warps[w].arrived = 0;
        machine.warps[w].checked = 0;
        machine.warps[w].live = machine.count - w * 32 < 32 ? machine.count - w * 32 : 32;
    }
    while (machine.live) {
        bool ran = false;
        int start = 0;
        if (machine.order == SHUFFLED) {
            machine.random = machine.random * 1664525u + 1013904223u;
            start = (machine.random >> 8) % machine.count;
        }
        for (int i = 0; i < machine.count; ++i) {
            int k = i;
            if (machine.order == BACKWARD) k = machine.count - 1 - i;
            // 7 shares no factor with blocks of whole warps
            if (machine.order == SHUFFLED) k = (machine.count % 7 ? 7 * i + start : i + start) % machine.count;
            Thread& t = machine.threads[k];
            if (t.state != READY) continue;
            ran = true;
            machine.current = &t;
            to_thread(&t);
            if (machine.error) return machine.error;
        }
        if (!ran) return "some threads never reach what the others wait for";
    }
    for (int i = 0; i < machine.count; ++i)
        if (!machine.threads[i].copies.empty()) return "a thread ended with asynchronous copies it did not wait for";
    return nullptr;
}

// FORWARD, BACKWARD or SHUFFLED by ONLAY_EMULATOR_ORDER.
inline int order_of_environment() {
    const char* o = getenv("ONLAY_EMULATOR_ORDER");
    if (!o || !strcmp(o, "forward")) return FORWARD;
    if (!strcmp(o, "backward")) return BACKWARD;
    if (!strcmp(o, "shuffled")) return SHUFFLED;
    fprintf(stderr, "ONLAY_EMULATOR_ORDER: expected forward, backward or shuffled, found %s\n", o);
    exit(2);
}

inline const char* launch_raw(void (*body)(void*), void* argument, dim3 grid, dim3 block, size_t shared) {
    Machine& m = machine;
    if (!m.stacks)
        m.stacks = (char*)mmap(nullptr, (size_t)MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    m.count = block.x * block.y * block.z;
    if (m.count < 1 || m.count > MOST_THREADS || shared > MOST_SHARED || !(grid.x && grid.y && grid.z) ||
        grid.y > 65535 || grid.z > 65535)
        return "a launch of a size that no device takes";
    free(m.dynamic);
    m.dynamic = shared ? (char*)aligned_alloc(128, (shared + 127) / 128 * 128) : nullptr;
    m.dynamic_bytes = shared;
    m.grid = grid;
    m.block = block;
    m.body = body;
    m.argument = argument;
    m.error = nullptr;
    m.order = order_of_environment();
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                m.block_index = dim3(x, y, z);
                if (const char* e = run_block()) return e;
            }
    return nullptr;
}
template <class... A, size_t... I>
const char* launch_pointers_(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, void** p,
                             std::index_sequence<I...>) {
    struct Call {
        void (*kernel)(A...);
        void** p;
    } call{kernel, p};
    return launch_raw(
        [](void* v) {
            Call* c = (Call*)v;
            c->kernel(*(std::remove_reference_t<A>*)c->p[I]...);
        },
        &call, grid, block, shared);
}
// As the driver launches: a pointer to each argument.
template <class... A>
const char* launch_pointers(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, void** p) {
    return launch_pointers_(kernel, grid, block, shared, p, std::index_sequence_for<A...>{});
}
template <class... A, class... B>
const char* launch(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, B... b) {
    auto f = [&](A... a) {
        void* p[] = {(void*)&a...};
        return launch_pointers(kernel, grid, block, shared, p);
    };
    return f(b...);
}

// A collective of a warp: every live lane deposits up to 8 words, then reads those of any lane.
inline Deposit* exchange(int operation, const uint32_t* words, int n) {
    Thread* t = machine.current;
    Warp& w = machine.warps[t->warp];
    unsigned number = ++t->collectives, p = number & 1;
    Deposit& own = w.deposits[p][t->lane];
    for (int i = 0; i < n; ++i) own.words[i] = words[i];
    own.operation = operation;
    own.number = number;
    sync_warp();
    if (w.checked == number) return w.deposits[p];
    w.checked = number;
    for (int i = 0; i < 32 && 32 * t->warp + i < machine.count; ++i) {
        const Deposit& other = w.deposits[p][i];
        if (other.number != number) machine.error = "a lane left before a collective of its warp";
        else if (other.operation != operation) machine.error = "lanes of a warp in different collectives";
    }
    return w.deposits[p];
}
} // namespace emulator

#define threadIdx (emulator::machine.current->index)
#define blockIdx (emulator::machine.block_index)
#define blockDim (emulator::machine.block)
#define gridDim (emulator::machine.grid)
#define __syncthreads() emulator::sync_block(__LINE__)
#define __restrict__ __restrict
#define DEVICE [[maybe_unused]] static inline
#define KERNEL(...) extern "C" void
#define SHARED alignas(16) __attribute__((section("onlay_shared"))) static
#define DYNAMIC_SHARED(T, name) T* name = (T*)emulator::machine.dynamic

DEVICE u32 bits_of(float v) {
    u32 u;
    memcpy(&u, &v, 4);
    return u;
}
DEVICE float float_of(u32 u) {
    float v;
    memcpy(&v, &u, 4);
    return v;
}
DEVICE float half_to_float(u16 h) {
    u32 sign = (u32)(h & 0x8000u) << 16, e = h >> 10 & 31, m = h & 1023;
    if (e == 31) return float_of(sign | 0x7f800000u | m << 13);
    if (e) return float_of(sign | (e + 112) << 23 | m << 13);
    float v = (float)m * 5.9604644775390625e-8f;
    return sign ? -v : v;
}
DEVICE u16 float_to_half(float v) {
    u32 u = bits_of(v), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (u16)(sign | 0x7e00u);
    if (a >= 0x477ff000u) return (u16)(sign | 0x7c00u); // rounds beyond 65504
    if (a < 0x38800000u) {                              // below the normal numbers: in steps of 2^-24
        float steps = float_of(a) * 16777216.f;
        return (u16)(sign | (u32)nearbyintf(steps));
    }
    u32 r = a + 0xfffu + (a >> 13 & 1u);
    return (u16)(sign | (r - 0x38000000u) >> 13);
}
DEVICE u32 shuffle_xor(u32 v, int mask) {
    int l = emulator::machine.current->lane;
    return emulator::exchange(1, &v, 1)[l ^ mask].words[0];
}
DEVICE float shuffle_xor(float v, int mask) { return float_of(shuffle_xor(bits_of(v), mask)); }
DEVICE float shuffle(float v, int lane) {
    u32 w = bits_of(v);
    return float_of(emulator::exchange(2, &w, 1)[lane & 31].words[0]);
}
DEVICE void sync_lanes() {
    u32 none = 0;
    emulator::exchange(3, &none, 1);
}
DEVICE float exponential(float v) { return expf(v); }
DEVICE float logarithm(float v) { return logf(v); }
DEVICE float square_root(float v) { return sqrtf(v); }
DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE float smaller(float a, float b) { return fminf(a, b); }
DEVICE float nearest(float v) { return rintf(v); }

DEVICE void copy_16(void* to, const void* from) {
    auto* t = emulator::machine.current;
    if (((u64)to | (u64)from) & 15) emulator::machine.error = "copy_16: an address is no multiple of 16";
    volatile u8 first = ((const u8*)from)[0], last = ((const u8*)from)[15]; // for the sanitizer, here and now
    (void)first, (void)last;
    t->copies.push_back({to, from, t->committed});
}
DEVICE void copies_commit() { emulator::machine.current->committed++; }
template <int N> DEVICE void copies_wait() {
    auto* t = emulator::machine.current;
    std::vector<emulator::Copy> later;
    for (auto& c : t->copies)
        if (c.group + N < t->committed) memcpy(c.to, c.from, 16);
        else later.push_back(c);
    t->copies.swap(later);
}

DEVICE void load_rows_of_matrices(u32 (&r)[4], const void* row, bool turned) {
    u64 a = (u64)row;
    u32 words[2];
    memcpy(words, &a, 8);
    int l = emulator::machine.current->lane;
    auto* all = emulator::exchange(turned ? 4 : 5, words, 2);
    for (int i = 0; i < 4; ++i) {
        u16 pair[2];
        for (int n = 0; n < 2; ++n) {
            int at = turned ? 2 * (l & 3) + n : l / 4, column = turned ? l / 4 : 2 * (l & 3) + n;
            u64 q;
            memcpy(&q, all[i * 8 + at].words, 8);
            if (q & 15) emulator::machine.error = "load_matrices: an address is no multiple of 16";
            memcpy(&pair[n], (const char*)q + 2 * column, 2);
        }
        memcpy(&r[i], pair, 4);
    }
}
DEVICE void load_matrices(u32 (&r)[4], const void* row) { load_rows_of_matrices(r, row, false); }
DEVICE void load_matrices_turned(u32 (&r)[4], const void* row) { load_rows_of_matrices(r, row, true); }

#ifdef ONLAY_EMULATE_TURING
DEVICE float low_of(u32 v) { return half_to_float((u16)v); }
DEVICE float high_of(u32 v) { return half_to_float((u16)(v >> 16)); }
DEVICE u32 pack(float low, float high) {
    const float most = 65504.f;
    low = smaller(larger(low, -most), most);
    high = smaller(larger(high, -most), most);
    return (u32)float_to_half(low) | (u32)float_to_half(high) << 16;
}
#else
DEVICE float low_of(u32 v) { return float_of(v << 16); }
DEVICE float high_of(u32 v) { return float_of(v & 0xffff0000u); }
DEVICE u32 upper_half(float v) {
    u32 u = bits_of(v);
    return ((u & 0x7fffffffu) > 0x7f800000u ? (u | 0x400000u) : u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
DEVICE u32 pack(float low, float high) { return upper_half(low) | upper_half(high) << 16; }
#endif
DEVICE void multiply_tiles(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u32 words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    int l = emulator::machine.current->lane;
    auto* all = emulator::exchange(6, words, 6);
    for (int i = 0; i < 4; ++i) {
        int row = (l >> 2) + (i >> 1) * 8, column = (l & 3) * 2 + (i & 1);
        float sum = c[i];
        for (int pair = 0; pair < 8; ++pair) {
            u32 av = all[(row & 7) * 4 + (pair & 3)].words[(row >> 3) + (pair >> 2) * 2];
            u32 bv = all[column * 4 + (pair & 3)].words[4 + (pair >> 2)];
            sum += low_of(av) * low_of(bv) + high_of(av) * high_of(bv);
        }
        c[i] = sum;
    }
}
