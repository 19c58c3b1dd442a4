#include "check.h"
#include "../rows.cu"

static void norms(int pieces, int n, int threads) {
    std::string name = "rms_norm " + std::to_string(pieces) + "x" + std::to_string(n);
    Random r(n);
    Floats x = r.many(pieces * n, 3), w = r.many(n), dy = r.many(pieces * n), dx = r.many(pieces * n), y(pieces * n, NAN);
    Doubles want_y(y.size()), want_dx = wide(dx);
    const float eps = 1e-5f;
    for (int p = 0; p < pieces; ++p) {
        const float *xs = &x[p * n], *dys = &dy[p * n];
        double sum = 0, inner = 0;
        for (int i = 0; i < n; ++i) sum += (double)xs[i] * xs[i], inner += (double)dys[i] * w[i] * xs[i];
        double s = 1 / sqrt(sum / n + eps);
        for (int i = 0; i < n; ++i) {
            want_y[p * n + i] = xs[i] * s * w[i];
            want_dx[p * n + i] += s * w[i] * dys[i] - xs[i] * s * s * s / n * inner;
        }
    }
    const int wide_ = n > 128, blocks = wide_ ? pieces : (pieces + threads / 32 - 1) / (threads / 32);
    said(launch(rms_norm, blocks, threads, 0, x.data(), w.data(), eps, n, pieces, wide_, y.data()), name);
    close(name, y, want_y, 1e-6);
    said(launch(rms_norm_grad, blocks, threads, 0, x.data(), w.data(), eps, n, pieces, wide_, dy.data(), dx.data()), name);
    close(name + " grad", dx, want_dx, 1e-6);
}

static void turns(int rows, int heads, int head, int half, int adjacent) {
    std::string name = "rotate " + std::to_string(head) + "/" + std::to_string(half) + (adjacent ? " adjacent" : " halves");
    Random r(head + adjacent);
    const int context = 50;
    Floats x = r.many(rows * heads * head), cos_(context * half), sin_(context * half), back = x;
    for (int p = 0; p < context; ++p)
        for (int i = 0; i < half; ++i) {
            double a = p * pow(10000, -2.0 * i / (2 * half));
            cos_[p * half + i] = (float)cos(a), sin_[p * half + i] = (float)sin(a);
        }
    Array<int> positions(rows);
    for (auto& p : positions) p = r.below(context);
    Doubles want = wide(x), turned_back = wide(x);
    for (int row = 0; row < rows; ++row)
        for (int h = 0; h < heads; ++h)
            for (int i = 0; i < half; ++i)
                for (int sign = 1; sign >= -1; sign -= 2) {
                    Doubles& to = sign > 0 ? want : turned_back;
                    double angle = sign * positions[row] * pow(10000, -2.0 * i / (2 * half));
                    u64 at = (u64)(row * heads + h) * head;
                    double &a = to[at + (adjacent ? 2 * i : i)], &b = to[at + (adjacent ? 2 * i + 1 : i + half)];
                    double u = a, v = b;
                    a = u * cos(angle) - v * sin(angle);
                    b = u * sin(angle) + v * cos(angle);
                }
    int blocks = (rows * heads * half + 255) / 256;
    said(launch(rotate, blocks, 256, 0, x.data(), positions.data(), cos_.data(), sin_.data(), rows, heads, head, half,
                adjacent, 1.f), name);
    close(name, x, want, 1e-6);
    said(launch(rotate, blocks, 256, 0, back.data(), positions.data(), cos_.data(), sin_.data(), rows, heads, head, half,
                adjacent, -1.f), name);
    close(name + " grad", back, turned_back, 1e-6);
}

static void gates(int n) {
    std::string name = "gate " + std::to_string(n);
    Random r(n);
    Floats g = r.many(n, 8), u = r.many(n), dy = r.many(n), dg = r.many(n), du = r.many(n), y(n, NAN);
    Doubles want_y(n), want_dg = wide(dg), want_du = wide(du);
    for (int i = 0; i < n; ++i) {
        double s = 1 / (1 + exp(-(double)g[i]));
        want_y[i] = g[i] * s * u[i];
        want_du[i] += dy[i] * g[i] * s;
        want_dg[i] += dy[i] * u[i] * s * (1 + g[i] * (1 - s));
    }
    int blocks = (n + 255) / 256;
    said(launch(gate, blocks, 256, 0, g.data(), u.data(), (u64)n, y.data()), name);
    close(name, y, want_y, 1e-6);
    said(launch(gate_grad, blocks, 256, 0, g.data(), u.data(), dy.data(), (u64)n, dg.data(), du.data()), name);
    close(name + " grad, gate", dg, want_dg, 1e-6);
    close(name + " grad, up", du, want_du, 1e-6);
    // the ends of the numbers
    Floats far = {-200.f, 200.f, 0.f}, ones(3, 1.f), out(3);
    said(launch(gate, 1, 256, 0, far.data(), ones.data(), (u64)3, out.data()), name);
    close("gate, far out", out, {0, 200, 0}, 1e-6);

    Floats sum(n, NAN), more = r.many(n);
    Doubles want_sum(n), want_more = wide(more);
    for (int i = 0; i < n; ++i) want_sum[i] = (double)g[i] + u[i], want_more[i] += g[i];
    said(launch(add, blocks, 256, 0, g.data(), u.data(), (u64)n, sum.data()), name);
    close("add", sum, want_sum, 1e-6);
    said(launch(accumulate, blocks, 256, 0, g.data(), (u64)n, more.data()), name);
    close("accumulate", more, want_more, 1e-6);
}

static void rows_of_tables(int cols) {
    Random r(cols);
    const int table_rows = 9, rows = 4;
    Floats table = r.many(table_rows * cols), y(rows * cols, NAN), z = y, dx = r.many(table_rows * cols);
    Array<u32> which = {8, 0, 3, 5};
    Doubles want(rows * cols), want_dx = wide(dx);
    for (int i = 0; i < rows; ++i)
        for (int c = 0; c < cols; ++c) {
            want[i * cols + c] = table[which[i] * cols + c];
            want_dx[which[i] * cols + c] += want[i * cols + c];
        }
    said(launch(take_rows, rows, 64, 0, (const u8*)table.data(), (int)F32, (u64)4 * cols, cols, which.data(), y.data()),
         "take_rows");
    close("take_rows", y, want, 0);
    said(launch(gather, rows, 64, 0, table.data(), cols, which.data(), z.data()), "gather");
    close("gather", z, want, 0);
    said(launch(scatter, rows, 64, 0, z.data(), cols, which.data(), dx.data()), "scatter");
    close("scatter", dx, want_dx, 1e-6);
}

int main() {
    for (int n : {1, 31, 33, 64, 128, 129, 500}) norms(5, n, n > 128 ? 256 : 128);
    norms(9, 8, 256);
    for (int adjacent : {0, 1}) turns(3, 2, 8, 4, adjacent), turns(7, 3, 16, 5, adjacent), turns(5, 1, 64, 32, adjacent);
    for (int n : {1, 255, 257, 1000}) gates(n);
    for (int cols : {1, 7, 64, 530}) rows_of_tables(cols);
    return finish("rows");
}
