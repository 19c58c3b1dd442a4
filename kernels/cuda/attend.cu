// Causal attention over cached keys and values with a running softmax (Milakov, Gimelshein, 2018; Dao et al., 2022);
// grouped query heads share a key head (Ainslie et al., 2023). Scores are never kept.
//   Forward   out = sum over j <= p of softmax_j(scale q k_j) v_j         log_sum = log sum_j e^(scale q k_j)
//   Backward  P_j = e^(scale q k_j - log_sum)     delta = out d_out     dS_j = P_j (d_out v_j - delta)
//             dq += scale sum_j dS_j k_j          dk_j += scale sum dS_j q          dv_j += sum P_j d_out
//             over whole sequences, whose rows begin at position 0; the rounding of the cache is taken as the identity
//   Shapes    q, out [rows][heads head]; k, v [rows][key_heads head]; log_sum, delta [rows][heads]; head <= 256
//             cache [tiles][key_heads][2][64][head] of f16, f32 or q8 (kind 0, 1, 2): keys, then values; q8: bytes, and
//             behind those of a head's keys or values the f16 scales [64][head / 32] of 32 columns each
//             a row sees the tiles `tiles[first_tile[row] ..]` up to its position, and with a window only the last
//             `window` positions (0: all)
#include "device.h"

#define TILE 64
#define LINES 8
#define MOST_PARTS 8

enum Kind { HALVES = 0, FLOATS = 1, BYTES = 2 };

// One head's keys or values of a tile, as so many of what lies before them.
DEVICE u64 cached(int tile, int key_heads, int key_head, int values) {
    return ((u64)tile * key_heads + key_head) * 2 + values;
}

// Bytes of one head's keys or values of a tile in q8.
DEVICE u64 bytes_of_head(int head) { return (u64)TILE * (head + head / 32 * 2); }

// Rounds 32 columns to bytes, a lane each, as the host does: the scale is rounded first. All lanes of a warp come here.
DEVICE void keep_bytes(float x, u8* to, int slot, int head, int column) {
    const u16 d = float_to_half(smaller(warp_most(x < 0.f ? -x : x) / 127.f, 65504.f));
    const float scale = half_to_float(d), inverse = scale > 0.f ? 1.f / scale : 0.f;
    ((i8*)to)[slot * head + column] = (i8)smaller(larger(nearest(x * inverse), -127.f), 127.f);
    if (column % 32 == 0) ((u16*)(to + TILE * head))[slot * (head / 32) + column / 32] = d;
}

// Rounds keys and values of rows into the cache. One block a row.
KERNEL(256) keep(const float* __restrict__ k, const float* __restrict__ v, const int* __restrict__ positions,
                 const int* __restrict__ tiles, const int* __restrict__ first_tile, int key_heads, int head, int kind,
                 void* __restrict__ cache) {
    const int row = blockIdx.x, position = positions[row], n = key_heads * head;
    const int tile = tiles[first_tile[row] + position / TILE], slot = position % TILE;
    for (int i = threadIdx.x; i < 2 * n; i += blockDim.x) {
        const int values = i >= n, c = values ? i - n : i;
        const float x = (values ? v : k)[(u64)row * n + c];
        const u64 which = cached(tile, key_heads, c / head, values), at = (which * TILE + slot) * head + c % head;
        if (kind == FLOATS) ((float*)cache)[at] = x;
        else if (kind == BYTES) keep_bytes(x, (u8*)cache + which * bytes_of_head(head), slot, head, c % head);
        else ((u16*)cache)[at] = float_to_half(smaller(larger(x, -65504.f), 65504.f));
    }
}

// Keys and values of `chunk` positions from `from` on, those behind `last` as zeros. `chunk` divides 64.
DEVICE void load_chunk(const void* __restrict__ cache, int kind, int tile, int key_heads, int key_head, int from, int last,
                       int chunk, int head, float* keys, float* values) {
    for (int i = threadIdx.x; i < 2 * chunk * head; i += blockDim.x) {
        const int second = i >= chunk * head, e = second ? i - chunk * head : i, j = e / head, d = e % head;
        const int slot = (from + j) % TILE;
        const u64 which = cached(tile, key_heads, key_head, second), at = (which * TILE + slot) * head + d;
        float x = 0.f;
        if (from + j <= last) {
            if (kind == FLOATS) x = ((const float*)cache)[at];
            else if (kind == HALVES) x = half_to_float(((const u16*)cache)[at]);
            else {
                const u8* bytes = (const u8*)cache + which * bytes_of_head(head);
                const u16 scale = ((const u16*)(bytes + TILE * head))[slot * (head / 32) + d / 32];
                x = (float)((const i8*)bytes)[slot * head + d] * half_to_float(scale);
            }
        }
        (second ? values : keys)[j * (head + 1) + d] = x;
    }
}

DEVICE bool sees(int position, int key, int window) {
    return key <= position && (window == 0 || position - key < window);
}

// Where a line stands: a query head of a row. Lines of a piece (pieces: first row, rows of one sequence) and a key head lie
// side by side, a warp each.
struct Line {
    int row, h, position;
    bool alive;
};
DEVICE Line line_of(const int* __restrict__ positions, int first, int count, int group, int key_head, int line) {
    const bool alive = line < count * group;
    const int row = first + (alive ? line / group : 0);
    return {row, key_head * group + line % group, positions[row], alive};
}

// Softmax over a line's keys, as far as it has come.
struct Running {
    float o[MOST_PARTS], most, sum;
};

// Goes on over the keys `from .. last`, from a multiple of `chunk` on. All threads of a block come here.
DEVICE void go_on(const Line& line, const float* query, const void* __restrict__ cache, int kind, const int* __restrict__ tiles,
                  int key_heads, int key_head, int head, int chunk, float scale, int window, int from, int last, float* keys,
                  float* values, Running& run) {
    const int lane = threadIdx.x & 31;
    for (; from <= last; from += chunk) {
        __syncthreads();
        load_chunk(cache, kind, tiles[from / TILE], key_heads, key_head, from, last, chunk, head, keys, values);
        __syncthreads();
        if (!line.alive || from > line.position) continue;
        const bool seen = lane < chunk && from + lane <= last && sees(line.position, from + lane, window);
        float score = -3.0e38f;
        if (seen) {
            score = 0.f;
#pragma unroll 4
            for (int d = 0; d < head; ++d) score = fused(query[d], keys[lane * (head + 1) + d], score);
            score *= scale;
        }
        const float next = larger(run.most, warp_most(score));
        const float p = seen ? exponential(score - next) : 0.f, fade = exponential(run.most - next);
        run.sum = run.sum * fade + warp_sum(p);
        run.most = next;
#pragma unroll
        for (int i = 0; i < MOST_PARTS; ++i) run.o[i] *= fade;
#pragma unroll 2
        for (int j = 0; j < chunk; ++j) {
            const float pj = shuffle(p, j);
#pragma unroll
            for (int i = 0; i < MOST_PARTS; ++i)
                if (lane + 32 * i < head) run.o[i] = fused(pj, values[j * (head + 1) + lane + 32 * i], run.o[i]);
        }
    }
}

// The first key that a piece sees, rounded down to a chunk.
DEVICE int first_key(int position, int window, int chunk) {
    return window > 0 && position >= window ? (position - window + 1) / chunk * chunk : 0;
}

// grid: pieces, key heads, eights of lines
KERNEL(256, 2) attend(const float* __restrict__ q, const void* __restrict__ cache, int kind, const int* __restrict__ tiles,
                   const int* __restrict__ first_tile, const int* __restrict__ positions,
                   const int* __restrict__ pieces, int heads, int key_heads, int head, int chunk, float scale,
                   int window, float* __restrict__ out, float* __restrict__ log_sum) {
    DYNAMIC_SHARED(float, room); // keys, values [chunk][head + 1]; q [8][head]
    float *keys = room, *values = keys + chunk * (head + 1), *queries = values + chunk * (head + 1);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, key_head = blockIdx.y;
    const int first = pieces[2 * blockIdx.x], count = pieces[2 * blockIdx.x + 1];
    const Line line = line_of(positions, first, count, heads / key_heads, key_head, blockIdx.z * LINES + warp);
    const u64 at = (u64)line.row * heads + line.h;
    float* query = queries + warp * head;
    if (line.alive)
        for (int d = lane; d < head; d += 32) query[d] = q[at * head + d];
    Running run = {{}, -3.0e38f, 0.f};
    go_on(line, query, cache, kind, tiles + first_tile[first], key_heads, key_head, head, chunk, scale, window,
          first_key(positions[first], window, chunk), positions[first + count - 1], keys, values, run);
    if (!line.alive) return;
#pragma unroll
    for (int i = 0; i < MOST_PARTS; ++i)
        if (lane + 32 * i < head) out[at * head + lane + 32 * i] = run.o[i] / run.sum;
    if (lane == 0) log_sum[at] = run.most + logarithm(run.sum);
}

// The same for pieces of at most eight lines, whose keys many blocks share among them: a token alone would keep few of
// them busy. What each finds lies in parts [rows][heads][gridDim.z][head + 2]: o, the largest score, the sum.
// grid: pieces, key heads, parts
KERNEL(256, 2) attend_parts(const float* __restrict__ q, const void* __restrict__ cache, int kind,
                         const int* __restrict__ tiles, const int* __restrict__ first_tile,
                         const int* __restrict__ positions, const int* __restrict__ pieces, int heads, int key_heads,
                         int head, int chunk, float scale, int window, float* __restrict__ parts) {
    DYNAMIC_SHARED(float, room); // as above
    float *keys = room, *values = keys + chunk * (head + 1), *queries = values + chunk * (head + 1);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, key_head = blockIdx.y;
    const int first = pieces[2 * blockIdx.x], count = pieces[2 * blockIdx.x + 1], last = positions[first + count - 1];
    const Line line = line_of(positions, first, count, heads / key_heads, key_head, warp);
    const u64 at = (u64)line.row * heads + line.h;
    float* query = queries + warp * head;
    if (line.alive)
        for (int d = lane; d < head; d += 32) query[d] = q[at * head + d];
    const int begin = first_key(positions[first], window, chunk);
    const int chunks = (last - begin) / chunk + 1, each = (chunks + (int)gridDim.z - 1) / (int)gridDim.z * chunk;
    const int from = begin + (int)blockIdx.z * each, end = from + each - 1 < last ? from + each - 1 : last;
    Running run = {{}, -3.0e38f, 0.f};
    go_on(line, query, cache, kind, tiles + first_tile[first], key_heads, key_head, head, chunk, scale, window, from, end,
          keys, values, run);
    if (!line.alive) return;
    parts += (at * gridDim.z + blockIdx.z) * (u64)(head + 2);
#pragma unroll
    for (int i = 0; i < MOST_PARTS; ++i)
        if (lane + 32 * i < head) parts[lane + 32 * i] = run.o[i];
    if (lane == 0) {
        parts[head] = run.most;
        parts[head + 1] = run.sum;
    }
}

// Puts the parts of a line together, in their order. One warp a line, 8 warps a block.
KERNEL(256) attend_join(const float* __restrict__ parts, int count, int lines, int head, float* __restrict__ out,
                        float* __restrict__ log_sum) {
    const int line = blockIdx.x * LINES + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (line >= lines) return;
    parts += (u64)line * count * (head + 2);
    float most = -3.0e38f, sum = 0.f;
    for (int p = 0; p < count; ++p) most = larger(most, parts[p * (head + 2) + head]);
    for (int p = 0; p < count; ++p) {
        const float* part = parts + p * (head + 2);
        sum += part[head + 1] * exponential(part[head] - most);
    }
    for (int d = lane; d < head; d += 32) {
        float o = 0.f;
        for (int p = 0; p < count; ++p) {
            const float* part = parts + p * (head + 2);
            o = fused(part[d], exponential(part[head] - most), o);
        }
        out[(u64)line * head + d] = o / sum;
    }
    if (lane == 0) log_sum[line] = most + logarithm(sum);
}

// delta = out d_out, one warp a head of a row, 8 warps a block.
KERNEL(256) attend_delta(const float* __restrict__ out, const float* __restrict__ d_out, int lines, int head,
                         float* __restrict__ delta) {
    const int line = blockIdx.x * LINES + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (line >= lines) return;
    float sum = 0.f;
    for (int d = lane; d < head; d += 32) sum += out[(u64)line * head + d] * d_out[(u64)line * head + d];
    sum = warp_sum(sum);
    if (lane == 0) delta[line] = sum;
}

// What a lane finds out about its key: P and dS.
DEVICE void weigh(const float* query, const float* d_query, const float* key, const float* value, int head, float scale,
                  float log_sum, float delta, float& p, float& ds) {
    float score = 0.f, dp = 0.f;
#pragma unroll 4
    for (int d = 0; d < head; ++d) {
        score = fused(query[d], key[d], score);
        dp = fused(d_query[d], value[d], dp);
    }
    p = exponential(score * scale - log_sum);
    ds = p * (dp - delta);
}

// dq, laid out as `attend`.
KERNEL(256) attend_grad_queries(const float* __restrict__ q, const void* __restrict__ cache, int kind,
                                const int* __restrict__ tiles, const int* __restrict__ first_tile,
                                const int* __restrict__ positions, const int* __restrict__ pieces, int heads,
                                int key_heads, int head, int chunk, float scale, int window,
                                const float* __restrict__ d_out, const float* __restrict__ log_sum,
                                const float* __restrict__ delta, float* __restrict__ dq) {
    DYNAMIC_SHARED(float, room); // keys, values [chunk][head + 1]; q, d_out [8][head]
    float *keys = room, *values = keys + chunk * (head + 1), *queries = values + chunk * (head + 1);
    float* d_queries = queries + LINES * head;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, key_head = blockIdx.y, group = heads / key_heads;
    const int first = pieces[2 * blockIdx.x], count = pieces[2 * blockIdx.x + 1];
    const int line = blockIdx.z * LINES + warp;
    const bool alive = line < count * group;
    const int row = first + (alive ? line / group : 0), h = key_head * group + line % group;
    const int position = positions[row], last = positions[first + count - 1];
    const u64 at = (u64)row * heads + h;
    float *query = queries + warp * head, *d_query = d_queries + warp * head;
    float sum = 0.f, d = 0.f;
    if (alive) {
        for (int i = lane; i < head; i += 32) {
            query[i] = q[at * head + i];
            d_query[i] = d_out[at * head + i];
        }
        sum = log_sum[at];
        d = delta[at];
    }
    float g[MOST_PARTS] = {};
    int from = 0;
    if (window > 0 && positions[first] >= window) from = (positions[first] - window + 1) / chunk * chunk;
    for (; from <= last; from += chunk) {
        __syncthreads();
        load_chunk(cache, kind, tiles[first_tile[first] + from / TILE], key_heads, key_head, from, last, chunk, head,
                   keys, values);
        __syncthreads();
        if (!alive || from > position) continue;
        float p = 0.f, ds = 0.f;
        if (lane < chunk && sees(position, from + lane, window))
            weigh(query, d_query, keys + lane * (head + 1), values + lane * (head + 1), head, scale, sum, d, p, ds);
#pragma unroll 2
        for (int j = 0; j < chunk; ++j) {
            const float dsj = shuffle(ds, j);
#pragma unroll
            for (int i = 0; i < MOST_PARTS; ++i)
                if (lane + 32 * i < head) g[i] = fused(dsj, keys[j * (head + 1) + lane + 32 * i], g[i]);
        }
    }
    if (!alive) return;
#pragma unroll
    for (int i = 0; i < MOST_PARTS; ++i)
        if (lane + 32 * i < head) dq[at * head + lane + 32 * i] += scale * g[i];
}

// dk and dv of a chunk of keys: a block goes through all lines that see them, eight at a time, in order; nothing is added
// by two blocks.  chunks: first row of a sequence, its rows, first key.  grid: chunks, key heads.  chunk head <= 4096
KERNEL(256) attend_grad_keys(const float* __restrict__ q, const void* __restrict__ cache, int kind,
                             const int* __restrict__ tiles, const int* __restrict__ first_tile,
                             const int* __restrict__ chunks, int heads, int key_heads, int head, int chunk, float scale,
                             int window, const float* __restrict__ d_out, const float* __restrict__ log_sum,
                             const float* __restrict__ delta, float* __restrict__ dk, float* __restrict__ dv) {
    DYNAMIC_SHARED(float, room); // keys, values [chunk][head + 1]; q, d_out [8][head]; P, dS [8][32]
    float *keys = room, *values = keys + chunk * (head + 1), *queries = values + chunk * (head + 1);
    float *d_queries = queries + LINES * head, *ps = d_queries + LINES * head, *dss = ps + LINES * 32;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, key_head = blockIdx.y, group = heads / key_heads;
    const int first = chunks[3 * blockIdx.x], rows = chunks[3 * blockIdx.x + 1], from = chunks[3 * blockIdx.x + 2];
    int end = rows; // behind the last row that sees any of the keys
    if (window > 0 && from + chunk - 1 + window < rows) end = from + chunk - 1 + window;
    load_chunk(cache, kind, tiles[first_tile[first] + from / TILE], key_heads, key_head, from, rows - 1, chunk, head, keys,
               values);
    float gk[16] = {}, gv[16] = {};
    for (int start = 0; start < (end - from) * group; start += LINES) {
        __syncthreads();
        const int line = start + warp, position = from + line / group;
        const bool alive = position < end;
        const u64 at = (u64)(first + (alive ? position : 0)) * heads + key_head * group + line % group;
        for (int i = lane; i < head; i += 32) {
            queries[warp * head + i] = alive ? q[at * head + i] : 0.f;
            d_queries[warp * head + i] = alive ? d_out[at * head + i] : 0.f;
        }
        sync_lanes();
        float p = 0.f, ds = 0.f;
        if (alive && lane < chunk && sees(position, from + lane, window))
            weigh(queries + warp * head, d_queries + warp * head, keys + lane * (head + 1), values + lane * (head + 1),
                  head, scale, log_sum[at], delta[at], p, ds);
        ps[warp * 32 + lane] = p;
        dss[warp * 32 + lane] = ds;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const int e = threadIdx.x + 256 * i, j = e / head, d = e % head;
            if (e >= chunk * head) break;
            for (int l = 0; l < LINES; ++l) {
                gv[i] = fused(ps[l * 32 + j], d_queries[l * head + d], gv[i]);
                gk[i] = fused(dss[l * 32 + j], queries[l * head + d], gk[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const int e = threadIdx.x + 256 * i, j = e / head, d = e % head;
        if (e >= chunk * head || from + j >= rows) break;
        const u64 at = ((u64)(first + from + j) * key_heads + key_head) * head + d;
        dk[at] += scale * gk[i];
        dv[at] += gv[i];
    }
}
#undef TILE
#undef LINES
#undef MOST_PARTS
