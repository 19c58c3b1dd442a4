// Every block format as the kernels decode it, against the hashes of what gguf-py and ggml decode (kernels/tests/data/decode.txt):
// the same bits. Blocks are those of kernels/tests/data/make_formats.py: random bytes with finite f16 numbers, special ones first.
#include "check.h"
#include "../rows.cu"
#include <cstring>
#include <fstream>
#include <sstream>

struct Layout {
    const char* name;
    int format, len, bytes;
    std::vector<int> halves; // where f16 numbers are
};
static const Layout LAYOUTS[] = {
    {"Q4_0", Q4_0, 32, 18, {0}},      {"Q4_1", Q4_1, 32, 20, {0, 2}},   {"Q5_0", Q5_0, 32, 22, {0}},
    {"Q5_1", Q5_1, 32, 24, {0, 2}},   {"Q8_0", Q8_0, 32, 34, {0}},      {"Q2_K", Q2_K, 256, 84, {80, 82}},
    {"Q3_K", Q3_K, 256, 110, {108}},  {"Q4_K", Q4_K, 256, 144, {0, 2}}, {"Q5_K", Q5_K, 256, 176, {0, 2}},
    {"Q6_K", Q6_K, 256, 210, {208}},  {"IQ4_NL", IQ4_NL, 32, 18, {0}},  {"IQ4_XS", IQ4_XS, 256, 136, {0}}};
static const int BLOCKS = 192;

static u64 word(u64 stream, u64 i) {
    u64 z = ((stream << 32) + i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static Array<u16> blocks_of(const Layout& layout, u64 stream) {
    static const u16 special[12] = {0, 0x8000, 1, 0x8001, 0x3ff, 0x83ff, 0x400, 0x8400, 0x3c00, 0xbc00, 0x7bff, 0xfbff};
    Array<u16> room((size_t)BLOCKS * layout.bytes / 2);
    u8* bytes = (u8*)room.data();
    for (int i = 0; i < BLOCKS * layout.bytes; ++i) bytes[i] = (u8)(word(stream, (u64)i) >> 40);
    for (int b = 0; b < BLOCKS; ++b)
        for (size_t field = 0; field < layout.halves.size(); ++field) {
            u16 h = (u16)word(stream + 100, (u64)(2 * b) + field);
            if ((h & 0x7c00) == 0x7c00) h ^= 0x4000;
            if (b < 144) h = special[field ? b / 12 % 12 : b % 12];
            memcpy(bytes + b * layout.bytes + layout.halves[field], &h, 2);
        }
    return room;
}

int main(int count, char** args) {
    if (count < 2) return printf("usage: decoders decode.txt\n"), 2;
    std::ifstream file(args[1]);
    std::string line;
    size_t seen = 0;
    while (std::getline(file, line)) {
        std::istringstream words(line);
        std::string name, hash;
        words >> name;
        u64 stream = 0;
        while (stream < 12 && name != LAYOUTS[stream].name) ++stream;
        same("a format called " + name, stream < 12);
        if (stream == 12) continue;
        const Layout& layout = LAYOUTS[stream];
        Array<u16> blocks = blocks_of(layout, stream);
        // one row of the table a block, read in the opposite order
        Array<u32> which(BLOCKS);
        for (int b = 0; b < BLOCKS; ++b) which[b] = (u32)(BLOCKS - 1 - b);
        Floats y((size_t)BLOCKS * layout.len, NAN);
        said(launch(take_rows, BLOCKS, 64, 0, (const u8*)blocks.data(), layout.format, (u64)layout.bytes, layout.len,
                    which.data(), y.data()), name);
        int wrong = 0;
        for (int b = 0; b < BLOCKS; ++b) {
            u64 got = 0xcbf29ce484222325u;
            for (int i = 0; i < layout.len; ++i) {
                u32 bits;
                memcpy(&bits, &y[(size_t)(BLOCKS - 1 - b) * layout.len + i], 4);
                for (int k = 0; k < 4; ++k) got = (got ^ (bits >> 8 * k & 255u)) * 0x100000001b3u;
            }
            words >> hash;
            wrong += got != strtoull(hash.c_str(), nullptr, 16);
        }
        same("decode " + name + ": " + std::to_string(wrong) + " blocks of other bits", wrong == 0);
        ++seen;
    }
    same("twelve formats in " + std::string(args[1]), seen == 12);
    return finish("decoders");
}
