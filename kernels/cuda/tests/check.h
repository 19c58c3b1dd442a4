// What the tests of the kernels share. A test compares a kernel's result with an f64 reference written from its equation.
// Kernels run on the emulator, or on the card that ONLAY_TEST_CARD names (card.h): what they are given lies in arrays that
// either sees.
#pragma once
#define ONLAY_EMULATE 1
#define ONLAY_EMULATOR_MAIN 1
#include "../device.h"
#include "card.h"
#include <algorithm>
#include <string>
#include <vector>

template <class T> struct Shared {
    typedef T value_type;
    Shared() = default;
    template <class U> Shared(const Shared<U>&) {}
    T* allocate(size_t n) { return (T*)(card::on() ? card::share(n * sizeof(T)) : ::operator new(n * sizeof(T))); }
    void deallocate(T* p, size_t) { card::on() ? card::release(p) : ::operator delete(p); }
};
template <class A, class B> bool operator==(const Shared<A>&, const Shared<B>&) { return true; }
template <class A, class B> bool operator!=(const Shared<A>&, const Shared<B>&) { return false; }
template <class T> using Array = std::vector<T, Shared<T>>;
typedef Array<float> Floats;
typedef std::vector<double> Doubles;

// Up to which capability the texts are taken that a card runs: what Turing multiplies with, every later card does too.
#ifdef ONLAY_EMULATE_TURING
enum { TEXTS_UP_TO = 75 };
#else
enum { TEXTS_UP_TO = 80 };
#endif

// What a card does when it comes to it.
template <class... A, class... B>
const char* queue(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, B... b) {
    auto f = [&](A... a) {
        void* p[] = {(void*)&a...};
        const card::Shape shape = {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared};
        return card::start((void (*)())kernel, shape, p, TEXTS_UP_TO);
    };
    return f(b...);
}
template <class... A, class... B>
const char* launch(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, B... b) {
    if (!card::on()) return emulator::launch(kernel, grid, block, shared, b...);
    const char* error = queue(kernel, grid, block, shared, b...);
    if (!error) card::wait();
    return error;
}

// First in a test of tensor cores: a card that does not multiply what this program compares with is not for it.
static void on_tensor_cores() {
    if (!card::on()) return;
    if (card::capability() < TEXTS_UP_TO) card::skip("this card multiplies no bf16");
    if (card::fake() && card::capability() > 75 && TEXTS_UP_TO == 75) card::skip("this fake card multiplies bf16 only");
}

static int failed = 0, done = 0;

// Numbers in -1..1, the same in every run.
struct Random {
    u64 state;
    explicit Random(u64 seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
    u32 next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return (u32)(state >> 32);
    }
    int below(int n) { return (int)(next() % (u32)n); }
    float one() { return (float)(next() >> 8) / 8388608.f - 1.f; }
    Floats many(size_t n, float scale = 1.f) {
        Floats v(n);
        for (auto& x : v) x = scale * one();
        return v;
    }
};

static void said(const char* error, const std::string& name) {
    if (error) {
        printf("FAILED %s: %s\n", name.c_str(), error);
        failed++;
    }
}

// |got - want| / |want|, over all numbers; NaN anywhere fails.
static void close(const std::string& name, const Floats& got, const Doubles& want, double within) {
    double off = 0, size = 0;
    bool fits = got.size() == want.size();
    for (size_t i = 0; fits && i < want.size(); ++i) {
        off += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        size += want[i] * want[i];
    }
    double error = sqrt(off / (size > 0 ? size : 1));
    done++;
    if (!fits || !(error <= within)) {
        printf("FAILED %s: off by %.2e, allowed %.0e\n", name.c_str(), error, within);
        failed++;
    }
}

static void same(const std::string& name, bool right) {
    done++;
    if (!right) {
        printf("FAILED %s\n", name.c_str());
        failed++;
    }
}

static int finish(const char* name) {
    const char* order = getenv("ONLAY_EMULATOR_ORDER");
    const std::string where = card::on() ? card::who() : order ? order : "every order";
    printf("%s, %s: %d comparisons, %d failed\n", name, where.c_str(), done, failed);
    return failed ? 1 : 0;
}

static Doubles wide(const Floats& v) { return Doubles(v.begin(), v.end()); }
