// See card.h. Compiled by programs.sh, which names the texts (TEXTS) and their entries (ENTRIES).
#include "card.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <map>
#include <utility>

#if !defined(TEXTS) || !defined(ENTRIES)
#error "compile this with programs.sh, which names the texts and their entries"
#endif

// A program has the twins of the kernels it tests; those of the others are null.
namespace twins {
#define ENTRY(name) extern "C" void name() __attribute__((weak));
ENTRIES
#undef ENTRY
} // namespace twins

#define TEXT(name, capability)                                                                                         \
    asm(".pushsection .rodata\n"                                                                                       \
        "onlay_text_" #name "_" #capability ":\n"                                                                      \
        ".incbin \"" #name "." #capability ".ptx\"\n"                                                                  \
        ".byte 0\n"                                                                                                    \
        ".popsection");                                                                                                \
    extern "C" __attribute__((visibility("hidden"))) const char onlay_text_##name##_##capability[];
TEXTS
#undef TEXT

namespace card {
namespace {
typedef unsigned long long u64;
typedef void (*Twin)();

struct Kernel {
    const char* name;
    Twin twin;
};
#define ENTRY(name) {#name, twins::name},
const Kernel kernels[] = {ENTRIES};
#undef ENTRY

struct Text {
    const char* name;
    int capability;
    const char* text;
};
#define TEXT(name, capability) {#name, capability, onlay_text_##name##_##capability},
const Text texts[] = {TEXTS};
#undef TEXT

// The part of the driver's interface that is called here.
#define FUNCTIONS(F)                                                                                                   \
    F(cuInit, unsigned)                                                                                                \
    F(cuGetErrorName, int, const char**)                                                                               \
    F(cuGetErrorString, int, const char**)                                                                             \
    F(cuDeviceGet, int*, int)                                                                                          \
    F(cuDeviceGetName, char*, int, int)                                                                                \
    F(cuDeviceGetAttribute, int*, int, int)                                                                            \
    F(cuDevicePrimaryCtxRetain, void**, int)                                                                           \
    F(cuCtxSetCurrent, void*)                                                                                          \
    F(cuMemAlloc_v2, u64*, size_t)                                                                                     \
    F(cuMemAllocManaged, u64*, size_t, unsigned)                                                                       \
    F(cuMemFree_v2, u64)                                                                                               \
    F(cuMemcpyHtoDAsync_v2, u64, const void*, size_t, void*)                                                           \
    F(cuMemcpyDtoDAsync_v2, u64, u64, size_t, void*)                                                                   \
    F(cuStreamCreate, void**, unsigned)                                                                                \
    F(cuStreamSynchronize, void*)                                                                                      \
    F(cuEventCreate, void**, unsigned)                                                                                 \
    F(cuEventRecord, void*, void*)                                                                                     \
    F(cuEventSynchronize, void*)                                                                                       \
    F(cuEventElapsedTime, float*, void*, void*)                                                                        \
    F(cuModuleLoadDataEx, void**, const void*, unsigned, int*, void**)                                                 \
    F(cuModuleGetFunction, void**, void*, const char*)                                                                 \
    F(cuFuncSetAttribute, void*, int, int)                                                                             \
    F(cuLaunchKernel, void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**)

struct Card {
    bool open = false;
    int number = 0, capability = 0;
    char name[128] = "";
    void *stream = nullptr, *first = nullptr, *last = nullptr; // and two events
    std::map<const Text*, void*> modules;
    std::map<std::pair<const Kernel*, const Text*>, void*> functions;
    std::string latest = "nothing"; // what was started last
#define MEMBER(name, ...) int (*name)(__VA_ARGS__) = nullptr;
    FUNCTIONS(MEMBER)
#undef MEMBER
};
// never destroyed: arrays may outlive it
Card& it = *new Card;

std::string told(const char* function, int code) {
    const char *name = nullptr, *words = nullptr;
    it.cuGetErrorName(code, &name);
    it.cuGetErrorString(code, &words);
    return std::string(function) + ": " + (name ? name : std::to_string(code).c_str()) + (words ? ", " : "") +
           (words ? words : "");
}
[[noreturn]] void end(const std::string& why) {
    printf("FAILED %s: %s\n", program_invocation_short_name, why.c_str());
    exit(1);
}
#define CALL(function, ...)                                                                                            \
    if (int code = it.function(__VA_ARGS__)) end(told(#function, code))

const char* variable(const char* name) {
    const char* value = getenv(name);
    return value && *value ? value : nullptr;
}
void open(const char* place) {
    setvbuf(stdout, nullptr, _IOLBF, 0); // a program that dies has said what it did
    const char *digits = strncmp(place, "cuda:", 5) ? place : place + 5, *library = variable("ONLAY_CUDA_LIBRARY");
    if (!*digits || strspn(digits, "0123456789") != strlen(digits) || strlen(digits) > 4)
        end(std::string("ONLAY_TEST_CARD: expected cuda:N, found ") + place);
    it.number = atoi(digits);
    void* driver = dlopen(library ? library : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    const char* why = driver ? "" : dlerror();
    if (!driver && library) end(std::string("ONLAY_CUDA_LIBRARY: ") + why);
    if (!driver) skip(std::string("no device (") + why + ")");
#define FIND(name, ...)                                                                                                \
    if (!(it.name = (int (*)(__VA_ARGS__))dlsym(driver, #name))) end("a driver without " #name);
    FUNCTIONS(FIND)
#undef FIND
    if (int code = it.cuInit(0)) skip("no device (" + told("cuInit", code) + ")");
    int device = 0, major = 0, minor = 0;
    if (int code = it.cuDeviceGet(&device, it.number)) skip("no device (" + told("cuDeviceGet", code) + ")");
    CALL(cuDeviceGetName, it.name, sizeof it.name, device);
    CALL(cuDeviceGetAttribute, &major, 75, device);
    CALL(cuDeviceGetAttribute, &minor, 76, device);
    it.capability = 10 * major + minor;
    void* context = nullptr;
    CALL(cuDevicePrimaryCtxRetain, &context, device);
    CALL(cuCtxSetCurrent, context);
    CALL(cuStreamCreate, &it.stream, 1);
    CALL(cuEventCreate, &it.first, 0);
    CALL(cuEventCreate, &it.last, 0);
}

// Compiles a text, once.
void* module_of(const Text& text, std::string& wrong) {
    void*& module = it.modules[&text];
    if (module) return module;
    static char log[8192];
    log[0] = 0;
    int options[] = {5, 6}; // where errors go, and the room there
    void* values[] = {log, (void*)sizeof log};
    if (int code = it.cuModuleLoadDataEx(&module, text.text, 2, options, values)) {
        module = nullptr;
        wrong = std::string(text.name) + "." + std::to_string(text.capability) + ".ptx: " + told("cuModuleLoadDataEx", code) +
                " " + log;
    }
    return module;
}
void* function_of(Twin twin, int most, std::string& wrong) {
    const Kernel* kernel = nullptr;
    for (auto& k : kernels)
        if (k.twin == twin) kernel = &k;
    if (!kernel) return wrong = "no text has this kernel", nullptr;
    it.latest = kernel->name;
    const Text* text = nullptr;
    for (auto& t : texts)
        if (t.capability <= most && (!text || t.capability > text->capability) &&
            strstr(t.text, (std::string(".entry ") + kernel->name + "(").c_str()))
            text = &t;
    if (!text) return wrong = std::string("no text for this card has ") + kernel->name, nullptr;
    void*& function = it.functions[{kernel, text}];
    if (function) return function;
    void* module = module_of(*text, wrong);
    if (!module) return nullptr;
    if (int code = it.cuModuleGetFunction(&function, module, kernel->name)) {
        function = nullptr;
        wrong = std::string(kernel->name) + ": " + told("cuModuleGetFunction", code);
    }
    return function;
}
} // namespace

bool on() {
    static const char* const place = variable("ONLAY_TEST_CARD");
    if (place && !it.open) {
        it.open = true;
        open(place);
    }
    return place;
}
bool fake() { return !strncmp(it.name, "fake", 4); }
int capability() { return it.capability; }
std::string who() {
    return std::string(it.name) + " (cuda:" + std::to_string(it.number) + ", " + std::to_string(it.capability / 10) + "." +
           std::to_string(it.capability % 10) + ")";
}
void skip(const std::string& why) {
    printf("%s: skipped: %s\n", program_invocation_short_name, why.c_str());
    exit(0);
}

void* share(size_t bytes) {
    u64 p = 0;
    CALL(cuMemAllocManaged, &p, bytes, 1); // for any stream
    return (void*)p;
}
void* make(size_t bytes) {
    u64 p = 0;
    CALL(cuMemAlloc_v2, &p, bytes);
    return (void*)p;
}
void release(void* p) { CALL(cuMemFree_v2, (u64)p); }
void fetch(void* to, const void* from, size_t bytes) {
    CALL(cuMemcpyHtoDAsync_v2, (u64)to, from, bytes, it.stream);
    wait();
}
void copy(void* to, const void* from, size_t bytes) {
    CALL(cuMemcpyDtoDAsync_v2, (u64)to, (u64)from, bytes, it.stream);
}

const char* start(void (*twin)(), const Shape& s, void** arguments, int most) {
    static std::string wrong;
    void* function = function_of(twin, most, wrong);
    if (!function) return wrong.c_str();
    int code = 0;
    if (s.shared > 48 * 1024) code = it.cuFuncSetAttribute(function, 8, (int)s.shared); // only if asked for
    if (code) return wrong = told("cuFuncSetAttribute", code), wrong.c_str();
    code = it.cuLaunchKernel(function, s.grid[0], s.grid[1], s.grid[2], s.block[0], s.block[1], s.block[2],
                             (unsigned)s.shared, it.stream, arguments, nullptr);
    if (!code) return nullptr;
    wrong = told("cuLaunchKernel", code);
    const bool broken = code >= 700 && code < 800 && code != 701; // not even memory can be read then; 701 is a launch too large
    if (broken || code == 999) end(it.latest + ": " + wrong);
    return wrong.c_str();
}
void wait() {
    if (int code = it.cuStreamSynchronize(it.stream)) end(it.latest + ": " + told("cuStreamSynchronize", code));
}
double milliseconds(const std::function<void()>& work) {
    float time = 0;
    wait();
    CALL(cuEventRecord, it.first, it.stream);
    work();
    CALL(cuEventRecord, it.last, it.stream);
    if (int code = it.cuEventSynchronize(it.last)) end(it.latest + ": " + told("cuEventSynchronize", code));
    CALL(cuEventElapsedTime, &time, it.first, it.last);
    return time;
}
} // namespace card
