// Products in both orientations, low-rank pairs and their dropout. The weights a kernel multiplies with are what
// `take_rows` decodes; decoders.cpp holds those against the hashes of the references.
#include "check.h"
#include "kinds.h"
#include "../rows.cu"
#include "../matmul.cu"
#include "../matmul_tensor.cu"
#include "../layers.cu"

struct Matrix {
    int rows, cols;
    u64 row_bytes;
    Array<u8> bytes;
    Floats decoded;
};

// Random blocks; wherever a scale may lie there is a small one.
static Matrix matrix(const Weight& k, int rows, int cols, Random& r) {
    Matrix m{rows, cols, (u64)(cols / k.len * k.bytes), {}, Floats((size_t)rows * cols, NAN)};
    m.bytes.resize(rows * m.row_bytes);
    for (auto& b : m.bytes) b = (u8)r.next();
    auto put = [&](u64 at, float v) {
        u16 h = float_to_half(v);
        memcpy(&m.bytes[at], &h, 2);
    };
    for (u64 at = 0; at < m.bytes.size(); at += k.bytes) {
        float d = 0.01f * r.one(), low = 0.01f * r.one();
        switch (k.format) {
        case F32: { float v = r.one(); memcpy(&m.bytes[at], &v, 4); } break;
        case F16: put(at, r.one()); break;
        case BF16: { u16 v = (u16)(bits_of(r.one()) >> 16); memcpy(&m.bytes[at], &v, 2); } break;
        case Q2_K: put(at + 80, d), put(at + 82, low); break;
        case Q3_K: put(at + 108, d); break;
        case Q6_K: put(at + 208, d); break;
        case Q4_1: case Q5_1: case Q4_K: case Q5_K: put(at, d), put(at + 2, low); break;
        default: put(at, d);
        }
    }
    Array<u32> all(rows);
    for (int i = 0; i < rows; ++i) all[i] = (u32)i;
    said(launch(take_rows, rows, 32, 0, m.bytes.data(), k.format, m.row_bytes, cols, all.data(), m.decoded.data()), k.name);
    return m;
}

static Doubles forward(const Matrix& w, const Floats& x, int rows, const Floats* bias) {
    Doubles y((size_t)rows * w.rows);
    for (int i = 0; i < rows; ++i)
        for (int o = 0; o < w.rows; ++o) {
            double sum = bias ? (*bias)[o] : 0;
            for (int k = 0; k < w.cols; ++k) sum += (double)x[(size_t)i * w.cols + k] * w.decoded[(size_t)o * w.cols + k];
            y[(size_t)i * w.rows + o] = sum;
        }
    return y;
}
static Doubles backward(const Matrix& w, const Floats& dy, int rows, const Floats& dx) {
    Doubles g = wide(dx);
    for (int i = 0; i < rows; ++i)
        for (int o = 0; o < w.rows; ++o)
            for (int k = 0; k < w.cols; ++k)
                g[(size_t)i * w.cols + k] += (double)dy[(size_t)i * w.rows + o] * w.decoded[(size_t)o * w.cols + k];
    return g;
}

static void vectors(const Weight& k, int outputs, int cols, int rows, bool biased) {
    std::string name = std::string("matvec ") + k.name + " " + std::to_string(outputs) + "x" + std::to_string(cols) + " rows " +
                       std::to_string(rows);
    Random r(outputs + cols);
    Matrix w = matrix(k, outputs, cols, r);
    Floats x = r.many(rows * cols), bias = r.many(outputs), y(rows * outputs, NAN), z = y;
    const float* b = biased ? bias.data() : nullptr;
    Doubles want = forward(w, x, rows, biased ? &bias : nullptr);
    said(launch(k.one, dim3((outputs + 3) / 4, rows), 128, 0, w.bytes.data(), w.row_bytes, outputs, cols, x.data(), rows, b,
                y.data()), name);
    close(name, y, want, 2e-6);
    said(launch(k.four, dim3((outputs + 3) / 4, (rows + 3) / 4), 128, 0, w.bytes.data(), w.row_bytes, outputs, cols, x.data(),
                rows, b, z.data()), name);
    same(name + ": the same bits in groups of four", !memcmp(y.data(), z.data(), 4 * y.size()));
}

static void matrices(const Weight& k, int outputs, int cols, int rows, bool biased) {
    std::string name = std::string(k.name) + " " + std::to_string(outputs) + "x" + std::to_string(cols) + " rows " +
                       std::to_string(rows);
    Random r(outputs * 3 + cols);
    Matrix w = matrix(k, outputs, cols, r);
    Floats x = r.many(rows * cols), dy = r.many(rows * outputs, 1e-3f), bias = r.many(outputs), y(rows * outputs, NAN);
    Floats start = r.many(rows * cols, 1e-3f), dx = start;
    const float* b = biased ? bias.data() : nullptr;
    Doubles want = forward(w, x, rows, biased ? &bias : nullptr), want_dx = backward(w, dy, rows, start);
    dim3 grid((outputs + 63) / 64, (rows + 63) / 64), back((cols + 63) / 64, (rows + 63) / 64);
    said(launch(matmul, grid, 256, 0, w.bytes.data(), k.format, w.row_bytes, outputs, cols, x.data(), rows, b, y.data()),
         "matmul " + name);
    close("matmul " + name, y, want, 2e-6);
    said(launch(matmul_grad, back, 256, 0, w.bytes.data(), k.format, w.row_bytes, outputs, cols, dy.data(), rows, dx.data()),
         "matmul_grad " + name);
    close("matmul_grad " + name, dx, want_dx, 2e-6);
#ifdef ONLAY_EMULATE_TURING
    const double within = 1e-3; // f16 has 11 bits
#else
    const double within = 6e-3; // bf16 has 8
#endif
    const int talls = (rows + 127) / 128;
    if (cols % 32 == 0)
        for (int tall = 0; tall < 2; ++tall) {
            const std::string which = (tall ? "tensor_matmul_tall " : "tensor_matmul ") + name;
            std::fill(y.begin(), y.end(), NAN);
            said(launch(tall ? tensor_matmul_tall : tensor_matmul, tall ? dim3(grid.x, talls) : grid, tall ? 256 : 128, 0,
                        w.bytes.data(), k.format, w.row_bytes, outputs, cols, x.data(), rows, b, y.data()), which);
            close(which, y, want, within);
        }
    if (outputs % 32 == 0)
        for (int tall = 0; tall < 2; ++tall) {
            const std::string which = (tall ? "tensor_matmul_grad_tall " : "tensor_matmul_grad ") + name;
            dx = start;
            said(launch(tall ? tensor_matmul_grad_tall : tensor_matmul_grad, tall ? dim3(back.x, talls) : back, tall ? 256 : 128,
                        0, w.bytes.data(), k.format, w.row_bytes, outputs, cols, dy.data(), rows, 1024.f, dx.data()), which);
            close(which, dx, want_dx, within);
        }
}

// Gradients of 1e-7, as a mean over many tokens has them, are below the normal numbers of f16.
static void small_gradients() {
    Random r(5);
    const int outputs = 32, cols = 64, rows = 16;
    Matrix w = matrix(kinds[7], outputs, cols, r);
    Floats dy = r.many(rows * outputs, 1e-7f), dx(rows * cols, 0.f);
    Doubles want = backward(w, dy, rows, dx);
    said(launch(tensor_matmul_grad, dim3(1, 1), 128, 0, w.bytes.data(), (int)Q8_0, w.row_bytes, outputs, cols, dy.data(), rows,
                1048576.f, dx.data()), "small gradients");
    close("tensor_matmul_grad of small gradients, lifted", dx, want, 6e-3);
}

static void pairs(int rows, int inputs, int outputs) {
    std::string name = "lora " + std::to_string(inputs) + " to " + std::to_string(outputs);
    Random r(inputs);
    const int ranks[3] = {4, 9, 1}, stride = 9;
    const float scales[3] = {2.f, 0.5f, 1.f};
    std::vector<Floats> a(3), b(3);
    Array<Pair> table(3);
    for (int i = 0; i < 3; ++i) {
        a[i] = r.many(ranks[i] * inputs), b[i] = r.many(ranks[i] * outputs);
        table[i] = {a[i].data(), b[i].data(), ranks[i], scales[i]};
    }
    Array<int> worn(rows);
    for (int i = 0; i < rows; ++i) worn[i] = i % 4 - 1; // every fourth row wears none
    Floats x = r.many(rows * inputs), y = r.many(rows * outputs), dy = r.many(rows * outputs), dx = r.many(rows * inputs);
    Doubles want_y = wide(y), want_dx = wide(dx);
    std::vector<Doubles> want_da(3), want_db(3);
    for (int i = 0; i < 3; ++i) want_da[i].resize(a[i].size()), want_db[i].resize(b[i].size());
    for (int row = 0; row < rows; ++row) {
        int w = worn[row];
        for (int u = 0; w >= 0 && u < ranks[w]; ++u) {
            double h = 0, dh = 0;
            for (int k = 0; k < inputs; ++k) h += (double)x[row * inputs + k] * a[w][u * inputs + k];
            for (int o = 0; o < outputs; ++o) dh += (double)scales[w] * dy[row * outputs + o] * b[w][u * outputs + o];
            for (int o = 0; o < outputs; ++o) {
                want_y[row * outputs + o] += scales[w] * h * b[w][u * outputs + o];
                want_db[w][u * outputs + o] += scales[w] * h * dy[row * outputs + o];
            }
            for (int k = 0; k < inputs; ++k) {
                want_dx[row * inputs + k] += dh * a[w][u * inputs + k];
                want_da[w][u * inputs + k] += dh * x[row * inputs + k];
            }
        }
    }
    Floats h(rows * stride, NAN), dh(rows * stride, NAN);
    dim3 to((outputs + 255) / 256, rows), from((inputs + 255) / 256, rows);
    said(launch(lora_hidden, rows, 256, 0, x.data(), inputs, table.data(), worn.data(), 0, stride, h.data()), name);
    said(launch(lora_spread, to, 256, 0, h.data(), stride, table.data(), worn.data(), 1, outputs, y.data()), name);
    close(name, y, want_y, 1e-6);
    said(launch(lora_hidden, rows, 256, 0, dy.data(), outputs, table.data(), worn.data(), 1, stride, dh.data()), name);
    said(launch(lora_spread, from, 256, 0, dh.data(), stride, table.data(), worn.data(), 0, inputs, dx.data()), name);
    close(name + " dx", dx, want_dx, 1e-6);
    for (int i = 0; i < 3; ++i) {
        Floats da(a[i].size(), 0.f), db(b[i].size(), 0.f);
        unsigned eights = (ranks[i] + 7) / 8;
        said(launch(lora_outer, dim3(from.x, eights), 256, 0, dh.data(), stride, rows, worn.data(), i, ranks[i], 1.f, x.data(),
                    inputs, da.data()), name);
        said(launch(lora_outer, dim3(to.x, eights), 256, 0, h.data(), stride, rows, worn.data(), i, ranks[i], scales[i],
                    dy.data(), outputs, db.data()), name);
        close(name + " dA", da, want_da[i], 1e-6);
        close(name + " dB", db, want_db[i], 1e-6);
    }
}

// The host's SplitMix64 and the coordinates it is asked for, written anew: one 16-bit draw for a number.
static u64 mixed(u64 z) {
    z ^= z >> 30, z *= 0xbf58476d1ce4e5b9ull;
    z ^= z >> 27, z *= 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static u64 hashed(u64 seed, const std::vector<u64>& at) {
    const u64 step = 0x9e3779b97f4a7c15ull;
    u64 h = mixed(seed + step);
    for (u64 c : at) h = mixed(h ^ mixed(c + step));
    return h;
}

static void dropping(int rows, int cols, u32 rate) {
    std::string name = "drop " + std::to_string(rate) + " of 65536, " + std::to_string(cols) + " columns";
    Random r(cols + rate);
    const u64 seed = 0xfedcba9876543210ull;
    const u32 site = 0x80000003u;
    Floats x = r.many(rows * cols), start = r.many(rows * cols), to(rows * cols, NAN), dx = start, want(rows * cols);
    Doubles want_dx = wide(start);
    Array<u64> names(rows);
    Array<int> worn(rows);
    size_t dropped = 0, tried = 0;
    for (int row = 0; row < rows; ++row) {
        names[row] = (u64)r.next() << 32 | r.next();
        worn[row] = row % 3 - 1; // every third row wears none
        for (int c = 0; c < cols; ++c) {
            const u64 draw = hashed(seed, {names[row], site, (u64)c / 4}) >> (c % 4 * 16) & 65535;
            const bool drops = worn[row] >= 0 && draw < rate;
            const float keep = worn[row] < 0 ? 1.f : 65536.f / (65536.f - (float)rate);
            const int i = row * cols + c;
            want[i] = drops ? 0.f : keep * x[i];
            if (worn[row] >= 0) want_dx[i] += drops ? 0 : 65536. / (65536. - rate) * x[i], ++tried, dropped += drops;
        }
    }
    said(launch(drop, rows + 1, 32, 0, x.data(), names.data(), worn.data(), site, rate, seed, rows, cols, 0, to.data()), name);
    same(name + ": the host's bits", !memcmp(to.data(), want.data(), 4 * to.size()));
    said(launch(drop, rows, 256, 0, x.data(), names.data(), worn.data(), site, rate, seed, rows, cols, 1, dx.data()), name);
    close(name + ", added", dx, want_dx, 1e-6);
    if (tried > 1000) same(name + ": as many as asked for", fabs((double)dropped / tried - rate / 65536.) < 0.03);
}

int main() {
    on_tensor_cores();
    for (auto& k : kinds) {
        vectors(k, 5, k.len == 1 ? 33 : 256, 3, true);
        vectors(k, 9, 512, 6, false);
        matrices(k, 32, 256, 5, true);
        if (k.len <= 32) matrices(k, 70, 96, 66, false);
    }
    for (int cols : {1, 7, 31, 65}) matrices(kinds[0], 33, cols, 3, true), vectors(kinds[1], 3, cols, 1, false);
    matrices(kinds[10], 96, 512, 70, true);
    matrices(kinds[6], 96, 64, 150, true);
    small_gradients();
    pairs(7, 33, 40);
    pairs(9, 300, 17);
    same("a known answer of SplitMix64", hashed(1234567, {}) == 6457827717110365317ull);
    same("an answer of the host's hash", hashed(7, {3, 2, 1}) == 68043087955552054ull);
    for (u32 rate : {0u, 6554u, 65535u}) dropping(3, 1, rate), dropping(7, 270, rate), dropping(6, 1029, rate);
#ifdef ONLAY_EMULATE_TURING
    return finish("products, Turing");
#else
    return finish("products");
#endif
}
