// What the tests of the kernels share. A test compares a kernel's result with an f64 reference written from its equation.
#pragma once
#define ONLAY_EMULATE 1
#define ONLAY_EMULATOR_MAIN 1
#include "../device.h"
#include <algorithm>
#include <string>
#include <vector>

using emulator::launch;
typedef std::vector<float> Floats;
typedef std::vector<double> Doubles;

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
    printf("%s, %s: %d comparisons, %d failed\n", name, order ? order : "every order", done, failed);
    return failed ? 1 : 0;
}

static Doubles wide(const Floats& v) { return Doubles(v.begin(), v.end()); }
