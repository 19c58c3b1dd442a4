#include "check.h"
#include "../attend.cu"

struct Case {
    const char* name;
    int heads, key_heads, head, window, kind; // of the cache
    std::vector<int> lengths; // of sequences from position 0
    std::vector<int> before;  // forward only: positions already in the cache
};

static void attention(const Case& c) {
    Random r(c.head + c.heads);
    const int group = c.heads / c.key_heads, sequences = (int)c.lengths.size(), width = c.heads * c.head;
    const int keys = c.key_heads * c.head;
    std::string name = std::string("attend, ") + c.name;
    Array<int> tiles, first_tile, positions, starts, pieces, chunks;
    const int chunk = c.head <= 128 ? 32 : 16, back_chunk = c.head <= 128 ? 32 : 8, longest = std::max(1, 8 / group);
    int rows = 0, used = 0;
    std::vector<int> tables(sequences);
    for (int s = 0; s < sequences; ++s) {
        int end = c.before[s] + c.lengths[s];
        tables[s] = (int)tiles.size();
        for (int t = 0; t < (end + 63) / 64; ++t) tiles.push_back(used++);
        starts.push_back(rows);
        for (int i = 0; i < c.lengths[s]; ++i) first_tile.push_back(tables[s]), positions.push_back(c.before[s] + i);
        for (int i = 0; i < c.lengths[s]; i += longest) {
            pieces.push_back(rows + i);
            pieces.push_back(std::min(longest, c.lengths[s] - i));
        }
        for (int i = 0; i < c.lengths[s]; i += back_chunk)
            chunks.push_back(rows), chunks.push_back(c.lengths[s]), chunks.push_back(i);
        rows += c.lengths[s];
    }
    std::reverse(tiles.begin(), tiles.end()); // no tile lies where its number would say
    const float scale = 1.f / sqrtf((float)c.head);
    Floats q = r.many(rows * width, 2), k = r.many(rows * keys, 2), v = r.many(rows * keys);
    const size_t tile = c.kind == BYTES ? 64 * (c.head + c.head / 32 * 2) : 64 * c.head * (c.kind == FLOATS ? 4 : 2);
    Array<u8> cache(used * c.key_heads * 2 * tile, 0xff);
    // everything in f64, from keys and values as the cache rounds them
    std::vector<std::vector<Doubles>> ks(sequences), vs(sequences);
    Floats before_k, before_v;
    Array<int> before_positions, before_tile;
    for (int s = 0; s < sequences; ++s)
        for (int i = 0; i < c.before[s]; ++i) {
            Floats one = r.many(keys, 2), two = r.many(keys);
            before_k.insert(before_k.end(), one.begin(), one.end());
            before_v.insert(before_v.end(), two.begin(), two.end());
            before_positions.push_back(i), before_tile.push_back(tables[s]);
        }
    auto rounded = [&](const Floats& x, int row) {
        Doubles to(keys);
        for (int i = 0; i < keys; ++i) {
            const float v = x[row * keys + i];
            if (c.kind == FLOATS) to[i] = v;
            else if (c.kind == HALVES) to[i] = half_to_float(float_to_half(v));
            else {
                const float* columns = &x[row * keys + i / 32 * 32];
                float most = 0.f;
                for (int n = 0; n < 32; ++n) most = std::max(most, fabsf(columns[n]));
                const float d = half_to_float(float_to_half(most / 127.f));
                to[i] = d > 0.f ? (double)d * std::min(std::max(nearbyintf(v * (1.f / d)), -127.f), 127.f) : 0.;
            }
        }
        return to;
    };
    int from = 0;
    for (int s = 0; s < sequences; ++s) {
        for (int i = 0; i < c.before[s]; ++i, ++from) ks[s].push_back(rounded(before_k, from)), vs[s].push_back(rounded(before_v, from));
        for (int i = 0; i < c.lengths[s]; ++i) ks[s].push_back(rounded(k, starts[s] + i)), vs[s].push_back(rounded(v, starts[s] + i));
    }
    if (!before_positions.empty())
        said(launch(keep, (unsigned)before_positions.size(), 64, 0, before_k.data(), before_v.data(), before_positions.data(),
                    tiles.data(), before_tile.data(), c.key_heads, c.head, c.kind, (void*)cache.data()), name);
    said(launch(keep, rows, 64, 0, k.data(), v.data(), positions.data(), tiles.data(), first_tile.data(), c.key_heads, c.head,
                c.kind, (void*)cache.data()), name);

    Floats d_out = r.many(rows * width), out(rows * width, NAN), log_sum(rows * c.heads, NAN), delta(rows * c.heads, NAN);
    Floats dq = r.many(rows * width), dk = r.many(rows * keys), dv = r.many(rows * keys);
    Doubles want_out(out.size()), want_log(log_sum.size()), want_dq = wide(dq), want_dk = wide(dk), want_dv = wide(dv);
    for (int s = 0; s < sequences; ++s)
        for (int i = 0; i < c.lengths[s]; ++i)
            for (int h = 0; h < c.heads; ++h) {
                const int row = starts[s] + i, p = c.before[s] + i, kh = h / group;
                const int low = c.window ? std::max(0, p - c.window + 1) : 0;
                const float* query = &q[row * width + h * c.head];
                const float* d = &d_out[row * width + h * c.head];
                Doubles e(p + 1, 0.0);
                double sum = 0, inner = 0;
                for (int j = low; j <= p; ++j) {
                    for (int x = 0; x < c.head; ++x) e[j] += query[x] * ks[s][j][kh * c.head + x];
                    e[j] = exp(e[j] * scale);
                    sum += e[j];
                }
                double* o = &want_out[row * width + h * c.head];
                for (int j = low; j <= p; ++j)
                    for (int x = 0; x < c.head; ++x) o[x] += e[j] / sum * vs[s][j][kh * c.head + x];
                for (int x = 0; x < c.head; ++x) inner += o[x] * d[x];
                want_log[row * c.heads + h] = log(sum);
                for (int j = low; c.before[s] == 0 && j <= p; ++j) {
                    double dp = 0;
                    for (int x = 0; x < c.head; ++x) dp += d[x] * vs[s][j][kh * c.head + x];
                    double ds = e[j] / sum * (dp - inner);
                    for (int x = 0; x < c.head; ++x) {
                        want_dq[row * width + h * c.head + x] += scale * ds * ks[s][j][kh * c.head + x];
                        want_dk[(starts[s] + j) * keys + kh * c.head + x] += scale * ds * query[x];
                        want_dv[(starts[s] + j) * keys + kh * c.head + x] += e[j] / sum * d[x];
                    }
                }
            }
    const unsigned piece_count = (unsigned)pieces.size() / 2, eights = std::max(1, (group + 7) / 8);
    size_t room = 4 * (2 * chunk * (c.head + 1) + 8 * c.head);
    said(launch(attend, dim3(piece_count, c.key_heads, eights), 256, room, q.data(), (const void*)cache.data(), c.kind,
                tiles.data(), first_tile.data(), positions.data(), pieces.data(), c.heads, c.key_heads, c.head, chunk, scale,
                c.window, out.data(), log_sum.data()), name);
    close(name, out, want_out, 2e-6);
    close(name + " log_sum", log_sum, want_log, 2e-6);
    for (int parts : {1, 3, 16}) {
        if (group > 8) break;
        const std::string apart = name + " in " + std::to_string(parts) + " parts";
        Floats found((size_t)rows * c.heads * parts * (c.head + 2), NAN), joined(out.size(), NAN), its_sum(log_sum.size(), NAN);
        said(launch(attend_parts, dim3(piece_count, c.key_heads, parts), 256, room, q.data(), (const void*)cache.data(), c.kind,
                    tiles.data(), first_tile.data(), positions.data(), pieces.data(), c.heads, c.key_heads, c.head, chunk,
                    scale, c.window, found.data()), apart);
        said(launch(attend_join, (rows * c.heads + 7) / 8, 256, 0, found.data(), parts, rows * c.heads, c.head, joined.data(),
                    its_sum.data()), apart);
        close(apart, joined, want_out, 2e-6);
        close(apart + " log_sum", its_sum, want_log, 2e-6);
    }
    if (*std::max_element(c.before.begin(), c.before.end()) > 0) return;
    said(launch(attend_delta, (rows * c.heads + 7) / 8, 256, 0, out.data(), d_out.data(), rows * c.heads, c.head,
                delta.data()), name);
    room = 4 * (2 * back_chunk * (c.head + 1) + 16 * c.head);
    said(launch(attend_grad_queries, dim3(piece_count, c.key_heads, eights), 256, room, q.data(), (const void*)cache.data(),
                c.kind, tiles.data(), first_tile.data(), positions.data(), pieces.data(), c.heads, c.key_heads, c.head,
                back_chunk, scale, c.window, d_out.data(), log_sum.data(), delta.data(), dq.data()), name);
    close(name + " dq", dq, want_dq, 3e-6);
    room += 4 * 2 * 8 * 32;
    said(launch(attend_grad_keys, dim3((unsigned)chunks.size() / 3, c.key_heads), 256, room, q.data(),
                (const void*)cache.data(), c.kind, tiles.data(), first_tile.data(), chunks.data(), c.heads, c.key_heads, c.head,
                back_chunk, scale, c.window, d_out.data(), log_sum.data(), delta.data(), dk.data(), dv.data()), name);
    close(name + " dk", dk, want_dk, 3e-6);
    close(name + " dv", dv, want_dv, 3e-6);
}

int main() {
    attention({"one head", 1, 1, 16, 0, FLOATS, {5}, {0}});
    attention({"grouped, ragged, across tiles", 4, 2, 8, 0, FLOATS, {70, 1, 33}, {0, 0, 0}});
    attention({"f16", 6, 2, 32, 0, HALVES, {40, 9}, {0, 0}});
    attention({"q8", 6, 2, 32, 0, BYTES, {40, 9}, {0, 0}});
    attention({"q8, wide heads, continued", 4, 2, 128, 0, BYTES, {3, 1}, {70, 130}});
    attention({"a window", 2, 1, 16, 7, FLOATS, {90, 3}, {0, 0}});
    attention({"more heads than a block has warps", 11, 1, 8, 0, FLOATS, {12}, {0}});
    attention({"wide heads", 2, 1, 128, 0, HALVES, {37}, {0}});
    attention({"the widest heads", 2, 2, 256, 0, FLOATS, {19}, {0}});
    attention({"heads of odd width", 3, 3, 33, 0, FLOATS, {35}, {0}});
    attention({"continued", 4, 2, 16, 0, HALVES, {1, 5, 3}, {64, 100, 0}});
    attention({"continued, with a window", 4, 2, 16, 10, FLOATS, {1, 20}, {130, 63}});
    return finish("attention");
}
