// What device.h wraps, on the emulator or on a card, against plain C++; on a card also against the emulator: the same bits
// wherever the operation is exact.
#include "check.h"
#include "wrappers.cu"
#include <float.h>

typedef Array<u16> Halves;
typedef Array<u32> Words;

static bool alike(float a, float b) { return (a != a && b != b) || bits_of(a) == bits_of(b); }
static bool alike(u32 a, u32 b) { return a == b; }
static bool alike(u16 a, u16 b) { return a == b; }

template <class T> static void equal(const std::string& name, const Array<T>& got, const Array<T>& want) {
    size_t wrong = 0, first = 0;
    for (size_t i = 0; i < want.size(); ++i)
        if (!alike(got[i], want[i]) && !wrong++) first = i;
    std::string off = name;
    if (wrong) off += ": " + std::to_string(wrong) + " of " + std::to_string(want.size()) + " differ, the first is number " +
                      std::to_string(first) + ": " + std::to_string(got[first]) + ", not " + std::to_string(want[first]);
    same(off, !wrong && got.size() == want.size());
}

// What a kernel makes of its arguments, n numbers. `emulated` gets what the emulator makes of them.
template <class T, class... A, class... B>
static Array<T> made(const std::string& name, void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, size_t n,
                     Array<T>& emulated, B... b) {
    Array<T> y(n);
    memset((void*)y.data(), 0xff, n * sizeof(T));
    emulated = y;
    said(launch(kernel, grid, block, shared, b..., y.data()), name);
    if (!card::on()) return emulated = y;
    said(emulator::launch(kernel, grid, block, shared, b..., emulated.data()), name + ", emulated");
    return y;
}
template <class T, class... A, class... B>
static void exact(const std::string& name, void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, const Array<T>& want,
                  B... b) {
    Array<T> emulated, y = made(name, kernel, grid, block, shared, want.size(), emulated, b...);
    equal(name, y, want);
    if (card::on()) equal(name + ", as emulated", y, emulated);
}

// Sixteen bits of a sign, an exponent and `fraction` bits of fraction, from the definition: to nearest, ties to even.
struct Sixteen {
    int fraction, bias;
    u16 infinity() const { return (u16)((2 * bias + 1) << fraction); }
    bool nan(u16 h) const { return (h & 0x7fff) > infinity(); }
    u16 of(float v) const {
        const u16 sign = (u16)(bits_of(v) >> 31 << 15);
        if (v != v) return (u16)(sign | 0x7fff);
        if (v == 0.f) return sign;
        const int least = 1 - bias - fraction; // the smallest number is two to it
        int e = 0;
        frexp(v, &e);
        const int step = std::max(e - 1 - fraction, least);
        const double steps = nearbyint(ldexp(fabs((double)v), -step));
        if (fabsf(v) > FLT_MAX || e > bias + 1) return (u16)(sign | infinity());
        return (u16)(sign | std::min((int)infinity(), ((step - least) << fraction) + (int)steps));
    }
    double value(u16 h) const {
        const int e = (h & 0x7fff) >> fraction, m = h & ((1 << fraction) - 1);
        double v = ldexp(e ? (1 << fraction) + m : m, std::max(e, 1) - bias - fraction);
        if (e == 2 * bias + 1) v = m ? NAN : INFINITY;
        return h & 0x8000 ? -v : v;
    }
};
static const Sixteen f16 = {10, 15}, bf16 = {7, 127};
// what the tensor cores take here
static const Sixteen& tile = TEXTS_UP_TO == 75 ? f16 : bf16;

// No NaN that signals: what a processor makes of the larger of two of those is its own affair.
static float any_bits(Random& r) {
    const float v = float_of(r.next());
    return v != v ? NAN : v;
}

// Numbers on, halfway between, and beside halfway between those of a format, and any bits at all.
static Floats around(const Sixteen& format, int step, size_t any) {
    Floats x = {0.f, -0.f, FLT_MAX, -FLT_MAX, INFINITY, -INFINITY, NAN, 1e-45f, -1e-45f, FLT_MIN, 1e-8f, 65519.996f, 65520.f};
    for (int h = 0; h < format.infinity(); h += step) {
        const double low = format.value((u16)h), next = format.value((u16)(h + 1));
        const float middle = (float)(next > FLT_MAX ? low + (low - format.value((u16)(h - 1))) / 2 : (low + next) / 2);
        for (float v : {(float)low, middle, nextafterf(middle, 0.f), nextafterf(middle, INFINITY)})
            x.push_back(v), x.push_back(-v);
    }
    Random r(any);
    for (size_t i = 0; i < any; ++i) x.push_back(any_bits(r));
    return x;
}

static void halves() {
    Halves all(65536);
    Floats want(65536);
    for (int h = 0; h < 65536; ++h) all[h] = (u16)h, want[h] = (float)f16.value((u16)h);
    exact("half_to_float, all of them", test_from_halves, 256, 256, 0, want, all.data(), 65536);
    Floats x = around(f16, 1, 20000);
    const int n = (int)x.size();
    Halves emulated, y = made("float_to_half", test_to_halves, (n + 255) / 256, 256, 0, n, emulated, x.data(), n);
    auto plain = [](Halves& v) { // a NaN is a NaN
        for (auto& h : v)
            if (f16.nan(h)) h = 0x7fff;
    };
    Halves nearest(n);
    for (int i = 0; i < n; ++i) nearest[i] = f16.of(x[i]);
    plain(y), plain(emulated), plain(nearest);
    equal("float_to_half", y, nearest);
    if (card::on()) equal("float_to_half, as emulated", y, emulated);
}

static void packs() {
    Floats low = around(tile, 1, 20000), more = around(f16, 16, 0), high;
    low.insert(low.end(), more.begin(), more.end());
    const int n = (int)low.size();
    for (int i = 0; i < n; ++i) high.push_back(low[((u64)i * 7 + 3) % n]);
    auto half = [](float v) {
        if (TEXTS_UP_TO == 75) v = v != v ? -65504.f : std::min(std::max(v, -65504.f), 65504.f); // kept finite
        return tile.of(v);
    };
    Words want(n), emulated;
    for (int i = 0; i < n; ++i) want[i] = (u32)half(low[i]) | (u32)half(high[i]) << 16;
    Words y = made("pack", test_pack, (n + 255) / 256, 256, 0, n, emulated, low.data(), high.data(), n);
    auto plain = [](Words& v) {
        for (auto& both : v) {
            if (tile.nan((u16)both)) both |= 0x7fff;
            if (tile.nan((u16)(both >> 16))) both |= 0x7fff0000;
            if (tile.nan((u16)both)) both &= ~0x8000u;
            if (tile.nan((u16)(both >> 16))) both &= ~0x80000000u;
        }
    };
    plain(y), plain(emulated), plain(want);
    equal("pack", y, want);
    if (card::on()) equal("pack, as emulated", y, emulated);
}

static void numbers() {
    const Floats ends = {0.f,     -0.f,     1.f,      -1.5f,     1e-45f, -3e-39f, FLT_MIN,
                         FLT_MAX, -FLT_MAX, INFINITY, -INFINITY, NAN,    2.5f,    3.5f};
    Random r(17);
    Floats a, b, c;
    for (float u : ends)
        for (float v : ends) a.push_back(u), b.push_back(v), c.push_back(u - v);
    for (int i = 0; i < 20000; ++i) a.push_back(any_bits(r)), b.push_back(any_bits(r)), c.push_back(8 * r.one());
    for (int i = 0; i < 20000; ++i) { // neither far apart nor close to nothing
        a.push_back(r.one()), b.push_back(r.one());
        c.push_back(i % 2 ? -a.back() * b.back() : r.one()); // what is left when almost all of it goes
    }
    const int n = (int)a.size();
    Floats want[9];
    for (int i = 0; i < n; ++i) {
        const float u = a[i], v = b[i];
        want[0].push_back(fmaf(u, v, c[i]));
        want[1].push_back(u != u ? v : v != v ? u : u > v ? u : v);
        want[2].push_back(u != u ? v : v != v ? u : u < v ? u : v);
        want[3].push_back(sqrtf(fabsf(u)));
        want[4].push_back(u / v);
        want[5].push_back(u * v);
        want[6].push_back(u + v);
        want[7].push_back(1.f / sqrtf(fabsf(v)));
        want[8].push_back((float)nearbyint((double)c[i]));
    }
    for (int k : {1, 2})
        for (auto& v : want[k]) v += 0.f;
    Floats all;
    for (auto& w : want) all.insert(all.end(), w.begin(), w.end());
    const char* names[] = {"fused",     "larger", "smaller",    "square_root", "a quotient",
                           "a product", "a sum",  "1 / a root", "nearest"};
    Floats emulated, y = made("numbers", test_numbers, (n + 255) / 256, 256, 0, all.size(), emulated, a.data(), b.data(),
                              c.data(), n);
    for (int k = 0; k < 9; ++k) {
        auto part = [&](const Floats& v) { return Floats(v.begin() + (size_t)k * n, v.begin() + (size_t)(k + 1) * n); };
        equal(names[k], part(y), want[k]);
        if (card::on()) equal(std::string(names[k]) + ", as emulated", part(y), part(emulated));
    }
}

// How many steps of f32 a number is from what it should be.
static double steps_off(float got, double want) {
    if (got == want || (got != got && want != want)) return 0;
    int e = 0;
    frexp(want, &e);
    return fabs(got - want) / ldexp(1, std::max(e - 24, -149));
}
static void functions() {
    Floats x = {0.f, 1.f, -1.f, 88.7f, -87.3f, -200.f, 200.f, INFINITY, -INFINITY, NAN, FLT_MIN, FLT_MAX, -3.0e38f};
    Random r(3);
    for (int i = 0; i < 20000; ++i) x.push_back(87.f * r.one());
    for (int i = 0; i < 20000; ++i) x.push_back(r.one());
    for (int i = 0; i < 2000; ++i) x.push_back(1.f + 1e-3f * r.one());
    const int n = (int)x.size();
    Floats none, y = made("exponential", test_functions, (n + 255) / 256, 256, 0, 2 * n, none, x.data(), n);
    double most[2] = {};
    for (int i = 0; i < n; ++i) {
        const double e = exp((double)x[i]), l = log(fabs((double)x[i]));
        const double off[2] = {steps_off(y[i], e > FLT_MAX ? INFINITY : e), steps_off(y[n + i], l)};
        for (int k = 0; k < 2; ++k)
            if (!(off[k] <= most[k])) most[k] = off[k]; // NaN too
    }
    same("exponential: " + std::to_string(most[0]) + " steps off, 2.5 allowed", most[0] <= 2.5);
    same("logarithm: " + std::to_string(most[1]) + " steps off, 2.5 allowed", most[1] <= 2.5);
}

static void lanes() {
    const int blocks = 3, n = 64 * blocks;
    Random r(1);
    Words x(n), want(14 * n);
    for (auto& v : x) v = r.next();
    for (int i = 0; i < n; ++i) {
        const int warp = i & ~31, lane = i & 31;
        for (int k = 0; k < 5; ++k) {
            want[k * n + i] = x[warp + (lane ^ 1 << k)];
            want[(5 + k) * n + i] = x[warp + (lane ^ 31 >> k)];
        }
        want[10 * n + i] = x[warp + 13];
        want[11 * n + i] = x[warp + ((7 * lane + 3) & 31)];
        want[12 * n + i] = x[warp + (lane ^ 9)];
        want[13 * n + i] = x[warp + (lane ^ 21)];
    }
    exact("shuffles, and what lanes tell one another", test_lanes, blocks, 64, 0, want, x.data());
}

// In the order of warp_sum.
template <class F> static float butterfly(const float* v, F both) {
    float now[32], next[32];
    std::copy(v, v + 32, now);
    for (int o = 16; o > 0; o >>= 1) {
        for (int i = 0; i < 32; ++i) next[i] = both(now[i], now[i ^ o]);
        std::copy(next, next + 32, now);
    }
    return now[0];
}
static void sums(int threads) {
    const int blocks = 2, n = threads * blocks, warps = threads / 32;
    Random r(threads);
    Floats x = r.many(n, 100.f), back(x.rbegin(), x.rend()), want(5 * n);
    auto plus = [](float a, float b) { return a + b; };
    auto most = [](float a, float b) { return std::max(a, b); };
    for (int block = 0; block < blocks; ++block) {
        float part[3][32] = {};
        for (int w = 0; w < 32; ++w) {
            const int at = block * threads + 32 * w;
            if (w < warps) part[0][w] = butterfly(&x[at], plus), part[2][w] = butterfly(&back[at], plus);
            part[1][w] = w < warps ? butterfly(&x[at], most) : part[1][0];
        }
        for (int i = 0; i < threads; ++i) {
            const int at = block * threads + i;
            want[at] = part[0][i / 32];
            want[n + at] = part[1][i / 32];
            want[2 * n + at] = butterfly(part[0], plus);
            want[3 * n + at] = butterfly(part[1], most);
            want[4 * n + at] = butterfly(part[2], plus);
        }
    }
    exact("sums over " + std::to_string(threads) + " threads", test_sums, blocks, threads, 0, want, x.data());
}

static void copies() {
    for (int steps : {1, 2, 7}) {
        Random r(steps);
        Floats x = r.many(512 * steps);
        exact("copies, " + std::to_string(steps) + " steps", test_copies, 1, 128, 0, x, x.data(), steps);
    }
    const int words = 60 * 256;
    Random r(60);
    Words x(words), want;
    for (auto& v : x) v = r.next();
    want.assign(x.rbegin(), x.rend());
    exact("60 KiB of shared memory", test_dynamic, 1, 256, 4 * words, want, x.data(), words);
}

static void matrices() {
    const int blocks = 16;
    Random r(8);
    Halves x(256 * blocks);
    Array<int> rows(32 * blocks);
    Words want(256 * blocks);
    for (auto& v : x) v = (u16)r.next();
    for (int i = 0; i < 32 * blocks; ++i) rows[i] = i < 32 ? i : r.below(32); // in order, then any, twice too
    for (int b = 0; b < blocks; ++b)
        for (int lane = 0; lane < 32; ++lane)
            for (int m = 0; m < 4; ++m) {
                // number (row, column) of matrix m
                auto at = [&](int row, int column) { return (u32)x[b * 256 + 8 * rows[b * 32 + 8 * m + row] + column]; };
                const int line = lane / 4, pair = 2 * (lane % 4);
                want[b * 256 + 4 * lane + m] = at(line, pair) | at(line, pair + 1) << 16;
                want[b * 256 + 128 + 4 * lane + m] = at(pair, line) | at(pair + 1, line) << 16;
            }
    exact("load_matrices, as they are and turned", test_matrices, blocks, 32, 0, want, x.data(), rows.data());
}

// Products of 16 x 16 tiles. With whole numbers every sum is exact; otherwise it is within the rounding of its parts, which
// the tensor cores cut off.
static void tiles(const char* kind, int turned, bool whole, float a_scale, float b_scale) {
    const std::string name = std::string("multiply_tiles, ") + kind + (turned ? ", turned" : "");
    const int blocks = 32, n = 256 * blocks;
    Random r(n + turned);
    auto number = [&](float scale) { return whole ? scale * (float)(r.below(17) - 8) : scale * r.one(); };
    Halves a(n), b(n);
    Floats c(n), emulated;
    for (int i = 0; i < n; ++i) {
        a[i] = tile.of(number(a_scale));
        b[i] = tile.of(number(b_scale));
        c[i] = number(a_scale * b_scale);
    }
    Doubles want(n), size(n);
    for (int t = 0; t < blocks; ++t)
        for (int i = 0; i < 16; ++i)
            for (int j = 0; j < 16; ++j) {
                const int at = 256 * t + 16 * i + j;
                want[at] = c[at], size[at] = fabs(c[at]);
                for (int k = 0; k < 16; ++k) {
                    const u16 right = b[256 * t + (turned ? 16 * k + j : 16 * j + k)];
                    const double p = tile.value(a[256 * t + 16 * i + k]) * tile.value(right);
                    want[at] += p, size[at] += fabs(p);
                }
            }
    Floats y = made(name, test_tiles, blocks, 32, 0, n, emulated, a.data(), b.data(), c.data(), turned);
    double off = 0, apart = 0;
    for (int i = 0; i < n; ++i) {
        const double parts = std::max(size[i], 1e-300), o = fabs(y[i] - want[i]) / parts, e = fabs(y[i] - emulated[i]) / parts;
        if (!(o <= off)) off = o;
        if (!(e <= apart)) apart = e;
    }
    const double within = whole ? 0 : ldexp(1, -19);
    auto said_of = [&](double found) { return ": off by " + std::to_string(found * (1 << 24)) + " of 2^-24 of its parts"; };
    same(name + said_of(off), off <= within);
    if (card::on()) same(name + ", as emulated" + said_of(apart), apart <= within);
}

int main() {
    on_tensor_cores();
    halves();
    packs();
    numbers();
    functions();
    lanes();
    for (int threads : {32, 64, 256, 1024}) sums(threads);
    copies();
    matrices();
    for (int turned : {0, 1}) {
        tiles("whole numbers", turned, true, 1.f, 1.f);
        tiles("any numbers", turned, false, 1.f, 1.f);
        tiles("small ones", turned, false, 1e-2f, 1e-3f);
    }
    // below the normal numbers of f16, as gradients are
    if (TEXTS_UP_TO == 75) tiles("subnormal numbers", 0, true, ldexpf(1.f, -24), 1.f);
    return finish(TEXTS_UP_TO == 75 ? "wrappers, Turing" : "wrappers");
}
