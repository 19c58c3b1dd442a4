#include "check.h"
#include "../learn.cu"

static void losses(int vocabulary, int threads, float spread) {
    std::string name = "cross_entropy over " + std::to_string(vocabulary);
    Random r(vocabulary);
    const int rows = 3;
    Floats z = r.many(rows * vocabulary, spread), kept = z, loss(rows, NAN), scales = {0.25f, 1.f, 0.f};
    Array<u32> targets(rows), best(rows);
    for (auto& t : targets) t = (u32)r.below(vocabulary);
    Doubles want(rows), want_z(z.size()), want_log(rows);
    Array<u32> want_best(rows);
    for (int i = 0; i < rows; ++i) {
        const float* row = &kept[i * vocabulary];
        double most = *std::max_element(row, row + vocabulary), sum = 0;
        for (int j = 0; j < vocabulary; ++j) sum += exp(row[j] - most);
        want_log[i] = most + log(sum);
        want[i] = want_log[i] - row[targets[i]];
        want_best[i] = (u32)(std::max_element(row, row + vocabulary) - row);
        for (int j = 0; j < vocabulary; ++j)
            want_z[i * vocabulary + j] = scales[i] * (exp(row[j] - want_log[i]) - (j == (int)targets[i]));
    }
    said(launch(cross_entropy, rows, threads, 0, z.data(), vocabulary, targets.data(), scales.data(), 0, loss.data()), name);
    close(name, loss, want, 2e-6);
    same(name + ": logits stay", !memcmp(z.data(), kept.data(), 4 * z.size()));
    Floats log_sum(rows, NAN);
    said(launch(pick, rows, threads, 0, z.data(), vocabulary, best.data(), log_sum.data()), "pick");
    same("pick over " + std::to_string(vocabulary), best == want_best);
    close("pick's log_sum", log_sum, want_log, 2e-6);
    std::fill(loss.begin(), loss.end(), NAN);
    said(launch(cross_entropy, rows, threads, 0, z.data(), vocabulary, targets.data(), scales.data(), 1, loss.data()), name);
    close(name + ", learning", loss, want, 2e-6);
    close(name + " grad", z, want_z, 2e-6);
}

static void steps(int n) {
    std::string name = "adamw " + std::to_string(n);
    Random r(n);
    Floats p = r.many(n), g = r.many(n), m = r.many(n, 0.1f), v = r.many(n, 0.1f), sums(4, NAN);
    for (auto& x : v) x = fabsf(x);
    const float rate = 0.01f, beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f, decay = 0.1f, clip = 0.5f;
    const float c1 = 1 - powf(beta1, 3), c2 = sqrtf(1 - powf(beta2, 3));
    double norm = 0;
    Doubles wp(n), wm(n), wv(n);
    for (int i = 0; i < n; ++i) {
        double gi = (double)clip * g[i];
        norm += (double)g[i] * g[i];
        wm[i] = m[i] + (double)(1.f - beta1) * (gi - m[i]);
        wv[i] = (double)beta2 * v[i] + (double)(1.f - beta2) * gi * gi;
        wp[i] = p[i] * (1 - (double)rate * decay) - (double)rate / c1 * (wm[i] / (sqrt(wv[i]) / c2 + epsilon));
    }
    said(launch(squares, 4, 256, 0, g.data(), (u64)n, sums.data()), "squares");
    close("squares of " + std::to_string(n), {sums[0] + sums[1] + sums[2] + sums[3]}, {norm}, 1e-6);
    said(launch(adamw, (n + 255) / 256, 256, 0, p.data(), g.data(), m.data(), v.data(), (u64)n, rate, beta1, beta2, epsilon,
                decay, c1, c2, clip), name);
    close(name + " p", p, wp, 1e-6);
    close(name + " m", m, wm, 4e-6);
    close(name + " v", v, wv, 1e-6);
}

int main() {
    for (int v : {1, 31, 33, 1000, 2049}) losses(v, 1024, 4.f), losses(v, 64, 40.f);
    for (int n : {1, 255, 257, 3000}) steps(n);
    // equals: the first; NaN: never, unless nothing else is there
    Floats z = {1, 5, NAN, 5, 2}, log_sum(1);
    Array<u32> best(1);
    said(launch(pick, 1, 32, 0, z.data(), 5, best.data(), log_sum.data()), "pick");
    same("the first of equals", best[0] == 1);
    Floats many(300, 0.f);
    many[40] = many[290] = 7.f; // in different warps
    said(launch(pick, 1, 256, 0, many.data(), 300, best.data(), log_sum.data()), "pick");
    same("the first of equals, across warps", best[0] == 40);
    return finish("learning");
}
