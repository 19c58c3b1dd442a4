// How fast the kernels are on a card, at the shapes of a model of eight billion numbers: the best of several times. Weights
// and caches that are read once for a token are more than a card keeps close by; rows are as the kernel before left them.
//   speed                 a table; only on a card
//   speed --self-check    small shapes and no table: that everything starts. Also on the fake driver
#include "check.h"
#include "kinds.h"
#include "../attend.cu"
#include "../layers.cu"
#include "../matmul.cu"
#include "../matmul_tensor.cu"

static bool small = false;
static double copied = 0; // GB/s

// Memory of the card alone.
struct Memory {
    u8* p;
    size_t bytes;
    explicit Memory(size_t n) : p((u8*)card::make(n)), bytes(n) {}
    Memory(const Memory&) = delete;
    ~Memory() { card::release(p); }
    // Any bytes with two bits cleared: whichever numbers they are read as, none is endless or none at all.
    void bytes_of(Random& r) {
        std::vector<u32> some(std::min(bytes, (size_t)1 << 24) / 4);
        for (auto& word : some) word = r.next() & 0xbbbbbbbb;
        for (size_t at = 0; at < bytes; at += 4 * some.size())
            card::fetch(p + at, some.data(), std::min(4 * some.size(), bytes - at));
    }
    void numbers_of(Random& r) {
        const Floats some = r.many(std::min(bytes, (size_t)1 << 24) / 4);
        for (size_t at = 0; at < bytes; at += 4 * some.size())
            card::fetch(p + at, some.data(), std::min(4 * some.size(), bytes - at));
    }
    float* floats() { return (float*)p; }
};

template <class... A, class... B>
static void go(void (*kernel)(A...), dim3 grid, dim3 block, size_t shared, B... b) {
    said(queue(kernel, grid, block, shared, b...), "speed");
}

// Seconds that `work` takes, of which it does `times` pieces, for one.
template <class F> static double seconds(int times, F work) {
    card::milliseconds(work); // for the driver to compile, and for the card to wake up
    double best = INFINITY;
    for (int i = 0; i < (small ? 1 : 10); ++i) best = std::min(best, card::milliseconds(work));
    done++;
    return best / 1000 / times;
}
static void tell(const std::string& name, double time, double amount, const char* unit, bool beside_copy = false) {
    if (small) return;
    printf("%-52s %10.1f us %9.1f %s", name.c_str(), 1e6 * time, amount / time, unit);
    if (beside_copy) printf(", %.0f%% of a copy", 100 * amount / time / copied);
    printf("\n");
}
static std::string by(int a, int b) { return std::to_string(a) + " x " + std::to_string(b); }

static void copies(Memory& room) {
    const size_t half = room.bytes / 2;
    const double time = seconds(1, [&] { card::copy(room.p, room.p + half, half); });
    copied = 2e-9 * half / time;
    tell("a copy of " + std::to_string(half >> 20) + " MiB", time, 2e-9 * half, "GB/s");
}

static void vectors(Memory& room, const float* x, float* y, int outputs, int cols) {
    for (auto& k : kinds)
        for (int rows : {1, 4}) {
            if (rows == 4 && k.format != Q4_K && k.format != Q8_0) continue;
            const u64 row_bytes = (u64)(cols / k.len * k.bytes), bytes = row_bytes * outputs, apart = (bytes + 255) / 256 * 256;
            const int many = (int)(room.bytes / apart);
            const double time = seconds(many, [&] {
                for (int i = 0; i < many; ++i)
                    go(rows == 1 ? k.one : k.four, dim3((outputs + 3) / 4), 128, 0, room.p + i * apart, row_bytes, outputs,
                       cols, x, rows, nullptr, y);
            });
            tell((rows == 1 ? "matvec_" : "matvec4_") + std::string(k.name) + " " + by(outputs, cols), time, 1e-9 * bytes,
                 "GB/s", true);
        }
}

static void matrices(Memory& room, float* x, float* y, int rows, int outputs, int cols) {
    const double work = 2e-12 * rows * outputs * cols;
    dim3 grid((outputs + 63) / 64, (rows + 63) / 64), back((cols + 63) / 64, (rows + 63) / 64);
    for (auto& k : kinds) {
        if (k.format != Q4_K && k.format != Q8_0) continue;
        const u64 row_bytes = (u64)(cols / k.len * k.bytes);
        const std::string shape = std::string(" ") + k.name + " " + by(outputs, cols) + ", " + std::to_string(rows) + " rows";
        tell("tensor_matmul" + shape, seconds(1, [&] {
            go(tensor_matmul, grid, 128, 0, room.p, k.format, row_bytes, outputs, cols, x, rows, nullptr, y);
        }), work, "TFLOP/s");
        tell("tensor_matmul_grad" + shape, seconds(1, [&] {
            go(tensor_matmul_grad, back, 128, 0, room.p, k.format, row_bytes, outputs, cols, y, rows, 1024.f, x);
        }), work, "TFLOP/s");
        const unsigned talls = (rows + 127) / 128;
        tell("tensor_matmul_tall" + shape, seconds(1, [&] {
            go(tensor_matmul_tall, dim3(grid.x, talls), 256, 0, room.p, k.format, row_bytes, outputs, cols, x, rows, nullptr, y);
        }), work, "TFLOP/s");
        tell("tensor_matmul_grad_tall" + shape, seconds(1, [&] {
            go(tensor_matmul_grad_tall, dim3(back.x, talls), 256, 0, room.p, k.format, row_bytes, outputs, cols, y, rows, 1024.f, x);
        }), work, "TFLOP/s");
        if (k.format != Q4_K) continue;
        tell("matmul" + shape, seconds(1, [&] {
            go(matmul, grid, 256, 0, room.p, k.format, row_bytes, outputs, cols, x, rows, nullptr, y);
        }), work, "TFLOP/s");
        tell("matmul_grad" + shape, seconds(1, [&] {
            go(matmul_grad, back, 256, 0, room.p, k.format, row_bytes, outputs, cols, y, rows, x);
        }), work, "TFLOP/s");
    }
}

static void attention(Memory& room, const float* x, float* y, int rows, int heads, int key_heads, int head) {
    const int group = heads / key_heads, chunk = 32, longest = std::max(1, 8 / group), kind = 0; // f16
    Array<int> tiles, first_tile(rows, 0), positions, pieces, chunks;
    for (int t = 0; t < (rows + 63) / 64; ++t) tiles.push_back(t);
    for (int i = 0; i < rows; ++i) positions.push_back(i);
    for (int i = 0; i < rows; i += longest) pieces.push_back(i), pieces.push_back(std::min(longest, rows - i));
    for (int i = 0; i < rows; i += chunk) chunks.push_back(0), chunks.push_back(rows), chunks.push_back(i);
    Memory sums((size_t)4 * rows * heads), delta((size_t)4 * rows * heads);
    Memory more((size_t)4 * std::max(rows, 32) * heads * head);
    Random r(9);
    sums.numbers_of(r), delta.numbers_of(r), more.numbers_of(r);
    const void* cache = room.p;
    const float scale = 1.f / sqrtf((float)head);
    const double work = 2e-12 * rows * (rows + 1.) / 2 * heads * head; // a product of every row with every key it sees
    const std::string shape = " " + std::to_string(rows) + " rows, heads " + std::to_string(heads) + " over " +
                              by(key_heads, head);
    const dim3 grid((unsigned)pieces.size() / 2, key_heads, std::max(1, (group + 7) / 8));
    size_t shared = 4 * (2 * chunk * (head + 1) + 8 * head);
    tell("attend" + shape, seconds(1, [&] {
        go(attend, grid, 256, shared, x, cache, kind, tiles.data(), first_tile.data(), positions.data(), pieces.data(), heads,
           key_heads, head, chunk, scale, 0, y, sums.floats());
    }), 2 * work, "TFLOP/s");
    shared = 4 * (2 * chunk * (head + 1) + 16 * head);
    tell("attend_grad_queries" + shape, seconds(1, [&] {
        go(attend_grad_queries, grid, 256, shared, x, cache, kind, tiles.data(), first_tile.data(), positions.data(),
           pieces.data(), heads, key_heads, head, chunk, scale, 0, x, sums.floats(), delta.floats(), y);
    }), 3 * work, "TFLOP/s");
    shared += 4 * 2 * 8 * 32;
    tell("attend_grad_keys" + shape, seconds(1, [&] {
        go(attend_grad_keys, dim3((unsigned)chunks.size() / 3, key_heads), 256, shared, x, cache, kind, tiles.data(),
           first_tile.data(), chunks.data(), heads, key_heads, head, chunk, scale, 0, x, sums.floats(), delta.floats(), y,
           more.floats());
    }), 4 * work, "TFLOP/s");
    // the last row alone, as a token is computed, in one layer after another
    positions[0] = rows - 1, pieces[0] = 0, pieces[1] = 1;
    shared = 4 * (2 * chunk * (head + 1) + 8 * head);
    const int layers = 16, parts = 16;
    const size_t layer = 4 * tiles.size() * 64 * key_heads * head;
    tell("attend_parts, attend_join 1 row behind " + std::to_string(rows - 1), seconds(layers, [&] {
        for (int i = 0; i < layers; ++i) {
            go(attend_parts, dim3(1, key_heads, parts), 256, shared, x, (const void*)(room.p + i * layer), kind, tiles.data(),
               first_tile.data(), positions.data(), pieces.data(), heads, key_heads, head, chunk, scale, 0, more.floats());
            go(attend_join, (heads + 7) / 8, 256, 0, more.floats(), parts, heads, head, y, sums.floats());
        }
    }), 4e-9 * rows * key_heads * head, "GB/s", true);
}

static void pairs(float* x, float* y, int rows, int inputs, int outputs, int rank) {
    Memory a(4 * rank * inputs), b(4 * rank * outputs), h(4 * rows * rank), gradient(4 * rank * std::max(inputs, outputs));
    Random r(2);
    a.numbers_of(r), b.numbers_of(r), h.numbers_of(r), gradient.numbers_of(r);
    Array<Pair> table = {{a.floats(), b.floats(), rank, 2.f}};
    Array<int> worn(rows, 0);
    auto shape = [&](int cols) { return " rank " + std::to_string(rank) + ", " + by(rows, cols); };
    const double in = 4e-9 * rows * inputs, out = 4e-9 * rows * outputs; // what is read or written in rows
    tell("lora_hidden" + shape(inputs), seconds(1, [&] {
        go(lora_hidden, rows, 256, 0, x, inputs, table.data(), worn.data(), 0, rank, h.floats());
    }), in, "GB/s", true);
    tell("lora_spread" + shape(outputs), seconds(1, [&] {
        go(lora_spread, dim3((outputs + 255) / 256, rows), 256, 0, h.floats(), rank, table.data(), worn.data(), 1, outputs, y);
    }), 2 * out, "GB/s", true);
    for (int cols : {inputs, outputs})
        tell("lora_outer" + shape(cols), seconds(1, [&] {
            go(lora_outer, dim3((cols + 255) / 256, (rank + 7) / 8), 256, 0, h.floats(), rank, rows, worn.data(), 0, rank, 1.f,
               y, cols, gradient.floats());
        }), cols == inputs ? in : out, "GB/s", true);
}

int main(int count, char** arguments) {
    small = count == 2 && !strcmp(arguments[1], "--self-check");
    if (count > 2 || (count == 2 && !small)) return fprintf(stderr, "speed [--self-check]\n"), 2;
    if (!card::on() || (card::fake() && !small)) card::skip("no card");
    const int rows = small ? 8 : 2048, narrow = small ? 256 : 4096, wide = small ? 512 : 14336;
    Random r(1);
    Memory room(small ? (size_t)1 << 20 : (size_t)768 << 20), x((size_t)4 * rows * wide), y((size_t)4 * rows * wide);
    room.bytes_of(r), x.numbers_of(r), y.numbers_of(r);
    if (!small) printf("%s, the best of 10\n", card::who().c_str());
    copies(room);
    vectors(room, x.floats(), y.floats(), narrow, wide);
    vectors(room, x.floats(), y.floats(), wide, narrow);
    matrices(room, x.floats(), y.floats(), rows, narrow, wide);
    matrices(room, x.floats(), y.floats(), rows, wide, narrow);
    attention(room, x.floats(), y.floats(), rows, small ? 4 : 32, small ? 2 : 8, small ? 32 : 128);
    pairs(x.floats(), y.floats(), rows, narrow, wide, small ? 4 : 16);
    return small ? finish("speed") : failed;
}
