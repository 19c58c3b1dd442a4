// A CUDA driver without a card: the part of the driver's interface that Onlay and its tests call, with launches that run the
// kernels beside it on the emulator. A shared library (build.sh) that is opened in place of libcuda.so.1, for tests.
//
// It is as strict as a driver may be, so that what works by luck on a card fails here:
//   - Streams are queues. Copies, fills, launches and waits happen when somebody synchronises, no sooner: what is read
//     or changed too early is seen. A wait for an event of another stream runs that stream as far as the event, no
//     further. Arguments of a kernel are copied when it is queued.
//   - Host memory not from cuMemHostAlloc is read at once on its way to the device; on its way back the stream is
//     synchronised before the call returns. Memory from cuMemHostAlloc is read and written late.
//   - New memory of either kind is NaN (0xff). Every copy and fill must lie within one allocation that is alive, every
//     pointer a kernel is given must be null or point into one (or right behind it) and fit its type; a kernel that
//     writes beside an allocation is found. Freeing memory first runs all queues.
//   - A launch that fails, 719, 716 or 700, is told on stderr, and all calls from then on return its code.
//   - A thread has no context before cuCtxSetCurrent (201), and the null stream is no stream (400).
//   - While a stream captures, what is queued on it goes to the graph; synchronising it, copies of pageable memory, and,
//     unless the mode is relaxed, making or freeing memory are refused with 900 and spoil the capture (901). A capture
//     has one stream: another that waits for its events is refused with 900.
//   - A text of PTX must name the entry asked for, with the parameters the kernel has. Its version must be no later than
//     the driver's (12.0 knows 8.0, 11.8 knows 7.8), its target no higher than the device.
// cuGetErrorString tells, beside the driver's words, what was wrong with the last call of this thread that failed.
//
// Knobs, read by cuInit, every time. When one has changed, calls are counted anew and a failure is forgotten.
//   ONLAY_FAKE_CUDA_DEVICES      how many devices (1); they share one memory. 0: cuInit finds none, 100
//   ONLAY_FAKE_CUDA_MEMORY       bytes of memory (1073741824)
//   ONLAY_FAKE_CUDA_CAPABILITY   compute capability times ten: 75, 80, 86, .. (80, and with ONLAY_EMULATE_TURING 75). Only
//                                what it says of itself and which texts it takes: on tensor cores every device multiplies
//                                what was chosen when this was compiled, bf16, or f16 with ONLAY_EMULATE_TURING
//   ONLAY_FAKE_CUDA_DRIVER       its version as cuDriverGetVersion tells it (12000)
//   ONLAY_FAKE_CUDA_FAIL         cuFunctionName:N:CODE, the N-th call of that function, from 1, returns CODE, and with
//                                CODE 700, 719 or 999 every call from then on does. The name with or without _v2
// A knob that cannot be read: cuInit says so on stderr and returns 1. ONLAY_EMULATOR_ORDER (emulator.h) also chooses the
// order in which queues run where all of them do: forward, backward, or one piece of work here, one there.
#define ONLAY_EMULATE 1
#define ONLAY_EMULATOR_MAIN 1
#include "../attend.cu"
#include "../layers.cu"
#include "../learn.cu"
#include "../matmul.cu"
#include "../matmul_tensor.cu"
#include "../matvec.cu"
#include "../rows.cu"
#include "../tests/wrappers.cu"
#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

namespace driver {
using std::string;
using std::to_string;

enum Result {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_PTX = 218, UNSUPPORTED_PTX_VERSION = 222, INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, MISALIGNED_ADDRESS = 716,
    LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_ISOLATION = 905,
    CAPTURED_EVENT = 907, CAPTURE_WRONG_THREAD = 908, UNKNOWN = 999
};
struct Meaning {
    int code;
    const char *name, *words;
};
const Meaning meanings[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

// Kernels: the table is made from the entries of the committed PTX, so that none is forgotten.

struct Parameter {
    size_t size, alignment; // of what it points at; 0: it does not
};
struct Kernel {
    const char* name;
    std::vector<Parameter> parameters;
    const char* (*run)(dim3, dim3, size_t, void**);
};
template <class T> Parameter parameter() {
    static_assert(alignof(T) <= 8, "arguments are kept in words of eight bytes");
    if constexpr (!std::is_pointer_v<T>) return {sizeof(T), 0};
    else if constexpr (std::is_void_v<std::remove_pointer_t<T>>) return {sizeof(T), 1};
    else return {sizeof(T), alignof(std::remove_pointer_t<T>)};
}
template <class... A> std::vector<Parameter> parameters(void (*)(A...)) { return {parameter<A>()...}; }

#ifndef ENTRIES
#error "compile this with build.sh, which names the entries of the PTX"
#endif
#define ENTRY(name)                                                                                                    \
    {#name, parameters(::name), [](dim3 grid, dim3 block, size_t shared, void** arguments) {                           \
         return emulator::launch_pointers(::name, grid, block, shared, arguments);                                     \
     }},
const Kernel kernels[] = {ENTRIES};

// What the driver keeps.

typedef std::function<void()> Work;

enum { GLOBAL, THREAD_LOCAL, RELAXED };
struct Capture {
    unsigned mode;
    std::thread::id thread;
    bool spoiled = false;
    std::vector<Work> nodes;
};
struct Stream {
    std::deque<Work> queue;
    u64 done = 0;
    std::unique_ptr<Capture> capture;
    u64 end() const { return done + queue.size(); }
};
struct Event {
    bool timed;
    std::shared_ptr<Stream> stream; // where it was recorded
    u64 at = 0;                     // how much of the stream comes before it
    bool captured = false;
};
struct Graph {
    std::vector<Work> nodes;
};
struct Module {
    string text;
};
struct Function {
    void* module;
    const Kernel* kernel;
    unsigned threads, shared; // the most a launch may have
};
struct Call {
    const char* name;
    u64 times = 0;
    explicit Call(const char* n);
};
typedef std::map<u64, size_t> Memory; // first byte, bytes

struct State {
    std::mutex mutex;
    std::vector<Call*> calls;
    std::vector<string> knobs;
    bool ready = false;
    u64 devices, capability, version, total, used = 0;
    Call* failing = nullptr; // ONLAY_FAKE_CUDA_FAIL
    u64 failing_at = 0, failing_with = 0;
    u64 broken = 0; // what all calls return
    string why_broken;
    Memory device, host;
    std::vector<std::shared_ptr<Stream>> streams;
    std::vector<std::shared_ptr<Event>> events;
    std::vector<std::shared_ptr<Graph>> graphs, executables;
    std::vector<std::shared_ptr<Module>> modules;
    std::vector<std::shared_ptr<Function>> functions;
    std::set<string> said; // what cuGetErrorString has handed out
    u32 random = 1;
};
// never destroyed: threads may still call while the process ends
State& state = *new State;

struct Refusal {
    int code = 0;
    string why;
};
thread_local Refusal last;
thread_local u64 context = 0; // of this thread: the device's number, from 1; 0: none

Call::Call(const char* n) : name(n) { state.calls.push_back(this); }

int refuse(int code, const string& why) {
    last = {code, why};
    return code;
}
void break_down(int code, const string& why) {
    if (state.broken) return;
    state.broken = code;
    state.why_broken = why;
    fprintf(stderr, "fake CUDA driver: %s\n", why.c_str());
}

template <class T> std::shared_ptr<T> find(const std::vector<std::shared_ptr<T>>& all, const void* handle) {
    for (auto& one : all)
        if (one.get() == handle) return one;
    refuse(INVALID_HANDLE, handle ? "a handle that is not alive" : "a null handle");
    return nullptr;
}
template <class T> void* keep_handle(std::vector<std::shared_ptr<T>>& all, T* one) {
    all.emplace_back(one);
    return one;
}
template <class T> void forget(std::vector<std::shared_ptr<T>>& all, const void* handle) {
    all.erase(std::remove_if(all.begin(), all.end(), [&](auto& one) { return one.get() == handle; }), all.end());
}

// Memory. Beside every allocation lies a margin that nobody may write, of NaN that changes when it is computed with; the
// sanitizer has its own.
#ifdef __SANITIZE_ADDRESS__
enum { MARGIN = 0 };
#else
enum { MARGIN = 256 };
#endif
u8 margin_at(const u8* p) { return ((u64)p & 3) == 2 ? 0xbf : 0xff; }

bool within(const Memory& memory, u64 at, size_t bytes) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return false;
    const auto& [first, size] = *--next;
    return at - first <= size && bytes <= size - (at - first);
}
bool known(u64 at, size_t bytes) { return within(state.device, at, bytes) || within(state.host, at, bytes); }

u64 make_memory(Memory& memory, size_t bytes) {
    void* room = nullptr;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&room, 256, bytes + 2 * MARGIN)) return 0;
    u8* first = (u8*)room + MARGIN;
    memset(first, 0xff, bytes);
    for (int i = 0; i < MARGIN; ++i)
        for (u8* p : {first - MARGIN + i, first + bytes + i}) *p = margin_at(p);
    memory[(u64)first] = bytes;
    return (u64)first;
}
bool free_memory(Memory& memory, u64 first) {
    if (!memory.erase(first)) return false;
    free((void*)(first - MARGIN));
    return true;
}
bool margins_untouched() {
    auto untouched = [](const u8* p) {
        for (int i = 0; i < MARGIN; ++i)
            if (p[i] != margin_at(p + i)) return false;
        return true;
    };
    for (auto* memory : {&state.device, &state.host})
        for (auto [first, size] : *memory)
            if (!untouched((u8*)first - MARGIN) || !untouched((u8*)first + size)) return false;
    return true;
}

// Queues.

void run(Stream& s, u64 until) {
    while (s.done < until && !state.broken) {
        Work work = std::move(s.queue.front());
        s.queue.pop_front();
        work();
        ++s.done;
    }
}
void run_all() {
    const int order = emulator::order_of_environment();
    auto streams = state.streams;
    if (order == emulator::BACKWARD) std::reverse(streams.begin(), streams.end());
    while (!streams.empty() && !state.broken) {
        size_t next = 0;
        if (order == emulator::SHUFFLED) {
            state.random = state.random * 1664525u + 1013904223u;
            next = (state.random >> 8) % streams.size();
        }
        Stream& s = *streams[next];
        run(s, order == emulator::SHUFFLED && !s.queue.empty() ? s.done + 1 : s.end());
        if (s.queue.empty()) streams.erase(streams.begin() + next);
    }
}
void put(Stream& s, Work work) {
    if (s.capture) s.capture->nodes.push_back(std::move(work));
    else s.queue.push_back(std::move(work));
}
int refuse_while_capturing(Stream& s, const char* what) {
    s.capture->spoiled = true;
    return refuse(CAPTURE_UNSUPPORTED, what);
}
// What a capture cannot bear anywhere near it, only in the most relaxed mode.
int refuse_near_captures(bool relaxed) {
    for (auto& s : state.streams) {
        if (!s->capture || (s->capture->mode == RELAXED && relaxed)) continue;
        if (s->capture->mode == THREAD_LOCAL && s->capture->thread != std::this_thread::get_id()) continue;
        return refuse_while_capturing(*s, "a stream is capturing");
    }
    return SUCCESS;
}

// A graph may outlive the memory it was made with, so a copy looks again when it runs.
void copy(u64 to, u64 from, size_t bytes) {
    if (known(to, bytes) && known(from, bytes)) memmove((void*)to, (void*)from, bytes);
    else break_down(ILLEGAL_ADDRESS, "a copy of memory that was freed");
}

struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    unsigned shared;
    std::vector<u64> words; // every argument from a new one on
};
void run(Launch l) {
    const string name = l.kernel->name;
    std::vector<void*> pointers;
    u64* word = l.words.data();
    for (auto& p : l.kernel->parameters) {
        const string which = name + ": argument " + to_string(pointers.size() + 1);
        if (p.alignment && *word) {
            if (!known(*word, 0)) return break_down(ILLEGAL_ADDRESS, which + " points at no memory");
            if (*word % p.alignment) return break_down(MISALIGNED_ADDRESS, which + " is misaligned");
        }
        pointers.push_back(word);
        word += (p.size + 7) / 8;
    }
    if (const char* error = l.kernel->run(l.grid, l.block, l.shared, pointers.data()))
        return break_down(LAUNCH_FAILED, name + ": " + error);
    if (!margins_untouched()) break_down(ILLEGAL_ADDRESS, name + ": wrote beside an allocation");
}

// How a call begins.

enum Need { NOTHING, INITIALIZED, CONTEXT };

int enter(Call& call, Need need) {
    ++call.times;
    if (state.broken) return refuse((int)state.broken, state.why_broken);
    if (&call == state.failing && call.times == state.failing_at) {
        const string why = "asked for by ONLAY_FAKE_CUDA_FAIL";
        if (state.failing_with == ILLEGAL_ADDRESS || state.failing_with == LAUNCH_FAILED || state.failing_with == UNKNOWN) {
            state.broken = state.failing_with;
            state.why_broken = why;
        }
        return refuse((int)state.failing_with, why);
    }
    if (need != NOTHING && !state.ready) return refuse(NOT_INITIALIZED, "cuInit was not called");
    if (need == CONTEXT && !context) return refuse(INVALID_CONTEXT, "this thread has no context");
    return SUCCESS;
}

#define API(name, ...)                                                                                                 \
    static Call calls_of_##name(#name);                                                                                \
    extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__)
#define ENTER(name, need)                                                                                              \
    std::lock_guard<std::mutex> lock(state.mutex);                                                                     \
    if (int refused = enter(calls_of_##name, need)) return refused
#define FIND(one, all, handle)                                                                                         \
    auto one = find(state.all, handle);                                                                                \
    if (!one) return INVALID_HANDLE
#define REQUIRE(condition, why)                                                                                        \
    if (!(condition)) return refuse(INVALID_VALUE, why)

// Knobs.

const char* const NAMES[] = {"DEVICES", "MEMORY", "CAPABILITY", "DRIVER", "FAIL"};

bool read_number(const string& text, u64& n) {
    if (text.empty() || text.find_first_not_of("0123456789") != string::npos) return false;
    n = strtoull(text.c_str(), nullptr, 10);
    return true;
}
bool read_failure(const string& text) {
    state.failing = nullptr;
    if (text.empty()) return true;
    const size_t one = text.find(':'), two = text.find(':', one + 1);
    if (one == string::npos || two == string::npos) return false;
    const string name = text.substr(0, one);
    for (Call* call : state.calls)
        if (name == call->name || name + "_v2" == call->name) state.failing = call;
    return state.failing && read_number(text.substr(one + 1, two - one - 1), state.failing_at) &&
           read_number(text.substr(two + 1), state.failing_with);
}
int read_knobs() {
    std::vector<string> knobs;
    for (const char* name : NAMES) {
        const char* value = getenv((string("ONLAY_FAKE_CUDA_") + name).c_str());
        knobs.push_back(value ? value : "");
    }
    if (knobs == state.knobs) return SUCCESS;
    state.knobs = knobs;
    state.broken = 0;
    for (Call* call : state.calls) call->times = 0;
    u64* const numbers[] = {&state.devices, &state.total, &state.capability, &state.version};
#ifdef ONLAY_EMULATE_TURING
    const u64 capability = 75;
#else
    const u64 capability = 80;
#endif
    const u64 otherwise[] = {1, 1 << 30, capability, 12000};
    for (int i = 0; i < 5; ++i) {
        if (i < 4) *numbers[i] = otherwise[i];
        if (i < 4 ? knobs[i].empty() || read_number(knobs[i], *numbers[i]) : read_failure(knobs[i])) continue;
        const string why = string("ONLAY_FAKE_CUDA_") + NAMES[i] + ": cannot read " + knobs[i];
        fprintf(stderr, "fake CUDA driver: %s\n", why.c_str());
        state.knobs.clear();
        return refuse(INVALID_VALUE, why);
    }
    return SUCCESS;
}

// The interface.

API(cuInit, unsigned flags) {
    std::lock_guard<std::mutex> first(state.mutex);
    if (int refused = read_knobs()) return refused;
    if (int refused = enter(calls_of_cuInit, NOTHING)) return refused;
    REQUIRE(!flags, "flags");
    state.ready = state.devices > 0;
    return state.ready ? SUCCESS : refuse(NO_DEVICE, "ONLAY_FAKE_CUDA_DEVICES is 0");
}
API(cuDriverGetVersion, int* version) {
    ENTER(cuDriverGetVersion, NOTHING);
    const char* knob = getenv("ONLAY_FAKE_CUDA_DRIVER"); // may be asked before cuInit
    *version = (int)(state.ready ? state.version : knob ? strtoull(knob, nullptr, 10) : 12000);
    return SUCCESS;
}
// not part of what can fail: an error must be tellable
extern "C" __attribute__((visibility("default"))) int cuGetErrorName(int code, const char** name) {
    for (auto& m : meanings)
        if (m.code == code) return *name = m.name, SUCCESS;
    *name = nullptr;
    return INVALID_VALUE;
}
extern "C" __attribute__((visibility("default"))) int cuGetErrorString(int code, const char** words) {
    std::lock_guard<std::mutex> lock(state.mutex);
    for (auto& m : meanings)
        if (m.code == code) {
            string all = m.words;
            if (code && last.code == code) all += " (" + last.why + ")";
            *words = state.said.insert(all).first->c_str();
            return SUCCESS;
        }
    *words = nullptr;
    return INVALID_VALUE;
}

API(cuDeviceGetCount, int* count) {
    ENTER(cuDeviceGetCount, INITIALIZED);
    *count = (int)state.devices;
    return SUCCESS;
}
API(cuDeviceGet, int* device, int which) {
    ENTER(cuDeviceGet, INITIALIZED);
    if (which < 0 || (u64)which >= state.devices) return refuse(INVALID_DEVICE, "no such device");
    *device = which;
    return SUCCESS;
}
API(cuDeviceGetName, char* name, int room, int device) {
    ENTER(cuDeviceGetName, INITIALIZED);
    if (device < 0 || (u64)device >= state.devices) return refuse(INVALID_DEVICE, "no such device");
    snprintf(name, room, "fake (CPU fibres)");
    return SUCCESS;
}
API(cuDeviceGetAttribute, int* value, int which, int device) {
    ENTER(cuDeviceGetAttribute, INITIALIZED);
    if (device < 0 || (u64)device >= state.devices) return refuse(INVALID_DEVICE, "no such device");
    switch (which) {
    case 1: *value = emulator::MOST_THREADS; break; // threads of a block
    case 8: *value = 48 * 1024; break;              // shared memory of a block
    case 10: *value = 32; break;                    // lanes of a warp
    case 16: *value = 4; break;                     // multiprocessors
    case 75: *value = (int)(state.capability / 10); break;
    case 76: *value = (int)(state.capability % 10); break;
    case 97: *value = emulator::MOST_SHARED; break; // shared memory of a block that asks for more
    default: return refuse(INVALID_VALUE, "attribute " + to_string(which) + " is not known here");
    }
    return SUCCESS;
}
API(cuDeviceTotalMem_v2, size_t* bytes, int device) {
    ENTER(cuDeviceTotalMem_v2, INITIALIZED);
    if (device < 0 || (u64)device >= state.devices) return refuse(INVALID_DEVICE, "no such device");
    *bytes = state.total;
    return SUCCESS;
}

API(cuDevicePrimaryCtxRetain, void** handle, int device) {
    ENTER(cuDevicePrimaryCtxRetain, INITIALIZED);
    if (device < 0 || (u64)device >= state.devices) return refuse(INVALID_DEVICE, "no such device");
    *handle = (void*)(u64)(device + 1);
    return SUCCESS;
}
API(cuDevicePrimaryCtxRelease_v2, int) {
    ENTER(cuDevicePrimaryCtxRelease_v2, INITIALIZED);
    return SUCCESS;
}
API(cuCtxSetCurrent, void* handle) {
    ENTER(cuCtxSetCurrent, INITIALIZED);
    if ((u64)handle > state.devices) return refuse(INVALID_CONTEXT, "no such context");
    context = (u64)handle;
    return SUCCESS;
}
API(cuCtxGetCurrent, void** handle) {
    ENTER(cuCtxGetCurrent, INITIALIZED);
    *handle = (void*)context;
    return SUCCESS;
}
API(cuCtxSynchronize, void) {
    ENTER(cuCtxSynchronize, CONTEXT);
    if (int refused = refuse_near_captures(false)) return refused;
    run_all();
    return (int)state.broken;
}

API(cuMemGetInfo_v2, size_t* free, size_t* total) {
    ENTER(cuMemGetInfo_v2, CONTEXT);
    *total = state.total;
    *free = state.total - state.used;
    return SUCCESS;
}
int make_device_memory(u64* p, size_t bytes) {
    if (int refused = refuse_near_captures(true)) return refused;
    REQUIRE(bytes, "no bytes");
    const string why = to_string(bytes) + " bytes asked for, " + to_string(state.total - state.used) + " free";
    if (bytes > state.total - state.used || !(*p = make_memory(state.device, bytes))) return refuse(OUT_OF_MEMORY, why);
    state.used += bytes;
    return SUCCESS;
}
API(cuMemAlloc_v2, u64* p, size_t bytes) {
    ENTER(cuMemAlloc_v2, CONTEXT);
    return make_device_memory(p, bytes);
}
// All memory here is the host's also.
API(cuMemAllocManaged, u64* p, size_t bytes, unsigned flags) {
    ENTER(cuMemAllocManaged, CONTEXT);
    REQUIRE(flags == 1, "flags"); // for any stream
    return make_device_memory(p, bytes);
}
API(cuMemFree_v2, u64 p) {
    ENTER(cuMemFree_v2, CONTEXT);
    if (int refused = refuse_near_captures(true)) return refused;
    auto found = state.device.find(p);
    REQUIRE(found != state.device.end(), "not the first byte of memory that is alive");
    run_all();
    state.used -= found->second;
    free_memory(state.device, p);
    return (int)state.broken;
}
API(cuMemHostAlloc, void** p, size_t bytes, unsigned) {
    ENTER(cuMemHostAlloc, CONTEXT);
    if (int refused = refuse_near_captures(true)) return refused;
    REQUIRE(bytes, "no bytes");
    *p = (void*)make_memory(state.host, bytes);
    return *p ? SUCCESS : refuse(OUT_OF_MEMORY, "the machine has no more");
}
API(cuMemFreeHost, void* p) {
    ENTER(cuMemFreeHost, CONTEXT);
    if (int refused = refuse_near_captures(true)) return refused;
    REQUIRE(state.host.count((u64)p), "not the first byte of memory that is alive");
    run_all();
    free_memory(state.host, (u64)p);
    return (int)state.broken;
}

API(cuMemcpyHtoDAsync_v2, u64 to, const void* from, size_t bytes, void* stream) {
    ENTER(cuMemcpyHtoDAsync_v2, CONTEXT);
    FIND(s, streams, stream);
    REQUIRE(within(state.device, to, bytes), "the destination is not within one allocation");
    REQUIRE(from || !bytes, "a null pointer");
    const u64 source = (u64)from;
    if (within(state.host, source, bytes)) {
        put(*s, [=] { copy(to, source, bytes); });
        return SUCCESS;
    }
    REQUIRE(!within(state.host, source, 1), "the source is not within one allocation");
    if (s->capture) return refuse_while_capturing(*s, "a copy of pageable memory cannot be captured");
    std::vector<u8> staged((const u8*)from, (const u8*)from + bytes);
    put(*s, [to, staged = std::move(staged)] { memcpy((void*)to, staged.data(), staged.size()); });
    return SUCCESS;
}
API(cuMemcpyDtoHAsync_v2, void* to, u64 from, size_t bytes, void* stream) {
    ENTER(cuMemcpyDtoHAsync_v2, CONTEXT);
    FIND(s, streams, stream);
    REQUIRE(within(state.device, from, bytes), "the source is not within one allocation");
    REQUIRE(to || !bytes, "a null pointer");
    const u64 destination = (u64)to;
    if (within(state.host, destination, bytes)) {
        put(*s, [=] { copy(destination, from, bytes); });
        return SUCCESS;
    }
    REQUIRE(!within(state.host, destination, 1), "the destination is not within one allocation");
    if (s->capture) return refuse_while_capturing(*s, "a copy to pageable memory cannot be captured");
    run(*s, s->end());
    if (!state.broken && bytes) memcpy(to, (void*)from, bytes);
    return (int)state.broken;
}
API(cuMemcpyDtoDAsync_v2, u64 to, u64 from, size_t bytes, void* stream) {
    ENTER(cuMemcpyDtoDAsync_v2, CONTEXT);
    FIND(s, streams, stream);
    REQUIRE(within(state.device, from, bytes), "the source is not within one allocation");
    REQUIRE(within(state.device, to, bytes), "the destination is not within one allocation");
    put(*s, [=] { copy(to, from, bytes); });
    return SUCCESS;
}
API(cuMemsetD8Async, u64 to, unsigned char value, size_t bytes, void* stream) {
    ENTER(cuMemsetD8Async, CONTEXT);
    FIND(s, streams, stream);
    REQUIRE(within(state.device, to, bytes), "the destination is not within one allocation");
    put(*s, [=] {
        if (known(to, bytes)) memset((void*)to, value, bytes);
        else break_down(ILLEGAL_ADDRESS, "a fill of memory that was freed");
    });
    return SUCCESS;
}

API(cuStreamCreate, void** stream, unsigned flags) {
    ENTER(cuStreamCreate, CONTEXT);
    REQUIRE(flags <= 1, "flags");
    *stream = keep_handle(state.streams, new Stream);
    return SUCCESS;
}
API(cuStreamDestroy_v2, void* stream) {
    ENTER(cuStreamDestroy_v2, CONTEXT);
    FIND(s, streams, stream);
    run(*s, s->end()); // what is queued still happens
    forget(state.streams, stream);
    return (int)state.broken;
}
API(cuStreamSynchronize, void* stream) {
    ENTER(cuStreamSynchronize, CONTEXT);
    FIND(s, streams, stream);
    if (s->capture) return refuse_while_capturing(*s, "the stream is capturing");
    run(*s, s->end());
    return (int)state.broken;
}
API(cuStreamWaitEvent, void* stream, void* event, unsigned flags) {
    ENTER(cuStreamWaitEvent, CONTEXT);
    FIND(s, streams, stream);
    FIND(e, events, event);
    REQUIRE(!flags, "flags");
    if (!e->stream) return SUCCESS;
    if (e->captured && (e->stream != s || !s->capture)) return refuse(CAPTURE_UNSUPPORTED, "a capture has one stream here");
    if (s->capture && !e->captured) {
        s->capture->spoiled = true;
        return refuse(CAPTURE_ISOLATION, "the event was recorded outside of the capture");
    }
    if (e->stream == s) return SUCCESS;
    put(*s, [other = e->stream, until = e->at] { run(*other, until); });
    return SUCCESS;
}

API(cuEventCreate, void** event, unsigned flags) {
    ENTER(cuEventCreate, CONTEXT);
    REQUIRE(flags <= 3, "flags");
    *event = keep_handle(state.events, new Event{!(flags & 2), nullptr});
    return SUCCESS;
}
API(cuEventDestroy_v2, void* event) {
    ENTER(cuEventDestroy_v2, CONTEXT);
    FIND(e, events, event);
    forget(state.events, event);
    return SUCCESS;
}
API(cuEventRecord, void* event, void* stream) {
    ENTER(cuEventRecord, CONTEXT);
    FIND(e, events, event);
    FIND(s, streams, stream);
    e->stream = s;
    e->at = s->end();
    e->captured = s->capture != nullptr;
    return SUCCESS;
}
API(cuEventSynchronize, void* event) {
    ENTER(cuEventSynchronize, CONTEXT);
    FIND(e, events, event);
    if (e->captured) return refuse(CAPTURED_EVENT, "the event belongs to a capture");
    if (e->stream) run(*e->stream, e->at);
    return (int)state.broken;
}
API(cuEventElapsedTime, float* milliseconds, void* start, void* end) {
    ENTER(cuEventElapsedTime, CONTEXT);
    for (void* handle : {start, end}) {
        FIND(e, events, handle);
        if (!e->stream || !e->timed) return refuse(INVALID_HANDLE, "an event not recorded, or without time");
        if (e->captured) return refuse(CAPTURED_EVENT, "the event belongs to a capture");
        if (e->stream->done < e->at) return refuse(NOT_READY, "what comes before the event has not run");
    }
    *milliseconds = 0.f;
    return SUCCESS;
}

// The text behind a directive at the beginning of a line.
string directive(const string& text, const string& name) {
    size_t at = text.compare(0, name.size(), name) ? text.find("\n" + name) : 0;
    if (at == string::npos) return "";
    at = text.find(name, at) + name.size();
    return text.substr(at, text.find('\n', at) - at);
}
int refuse_text(int code, const string& why, unsigned options, const int* which, void** values) {
    char* log = nullptr;
    size_t room = 0;
    for (unsigned i = 0; i < options; ++i) {
        if (which[i] == 5) log = (char*)values[i]; // error log buffer, and its bytes
        if (which[i] == 6) room = (u32)(u64)values[i];
    }
    if (log && room) snprintf(log, room, "%s", why.c_str());
    return refuse(code, why);
}
API(cuModuleLoadDataEx, void** module, const void* image, unsigned options, int* which, void** values) {
    ENTER(cuModuleLoadDataEx, CONTEXT);
    REQUIRE(image, "no text");
    const string text = (const char*)image, version = directive(text, ".version "), target = directive(text, ".target sm_");
    auto no = [&](int code, const string& why) { return refuse_text(code, why, options, which, values); };
    if (version.empty() || target.empty()) return no(INVALID_PTX, "a text without .version or .target");
    // CUDA 11.8 came with PTX 7.8, 12.0 with 8.0, 12.4 with 8.4
    const int most = (int)(state.version / 1000 - 4) * 10 + (int)(state.version % 1000 / 10);
    const size_t point = version.find('.');
    const int minor = point == string::npos ? 0 : atoi(version.c_str() + point + 1);
    if (atoi(version.c_str()) * 10 + minor > most)
        return no(UNSUPPORTED_PTX_VERSION, "PTX " + version + " is later than this driver");
    if (atoi(target.c_str()) > (int)state.capability)
        return no(NO_BINARY_FOR_GPU, "made for sm_" + target + ", the device is sm_" + to_string(state.capability));
    *module = keep_handle(state.modules, new Module{text});
    return SUCCESS;
}
API(cuModuleUnload, void* module) {
    ENTER(cuModuleUnload, CONTEXT);
    FIND(m, modules, module);
    run_all();
    auto& all = state.functions;
    all.erase(std::remove_if(all.begin(), all.end(), [&](auto& f) { return f->module == module; }), all.end());
    forget(state.modules, module);
    return (int)state.broken;
}
// Whether the parameters in the head of an entry are those of the kernel here.
bool fits(const string& head, const Kernel& kernel) {
    size_t at = 0;
    for (auto& p : kernel.parameters) {
        at = head.find(".param .", at);
        if (at == string::npos || atoi(head.c_str() + at + 9) != (int)p.size * 8) return false;
        at += 9;
    }
    return head.find(".param .", at) == string::npos;
}
API(cuModuleGetFunction, void** function, void* module, const char* name) {
    ENTER(cuModuleGetFunction, CONTEXT);
    FIND(m, modules, module);
    const size_t at = m->text.find(string(".entry ") + name + "(");
    if (at == string::npos) return refuse(NOT_FOUND, string("the text has no entry ") + name);
    const string head = m->text.substr(at, m->text.find('{', at) - at);
    for (auto& kernel : kernels) {
        if (strcmp(kernel.name, name)) continue;
        if (!fits(head, kernel)) return refuse(NOT_FOUND, string("the text has other parameters: ") + name);
        unsigned x = emulator::MOST_THREADS, y = 1, z = 1;
        const size_t bound = head.find(".maxntid ");
        if (bound != string::npos) sscanf(head.c_str() + bound, ".maxntid %u, %u, %u", &x, &y, &z);
        *function = keep_handle(state.functions, new Function{module, &kernel, x * y * z, 48 * 1024});
        return SUCCESS;
    }
    return refuse(NOT_FOUND, string("the emulator has no kernel ") + name);
}
API(cuFuncSetAttribute, void* function, int which, int value) {
    ENTER(cuFuncSetAttribute, CONTEXT);
    FIND(f, functions, function);
    REQUIRE(which == 8, "attribute " + to_string(which) + " is not known here"); // dynamic shared memory
    REQUIRE(value >= 0 && value <= emulator::MOST_SHARED, "more shared memory than the device has");
    f->shared = (unsigned)value;
    return SUCCESS;
}

API(cuLaunchKernel, void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared, void* stream, void** arguments, void** extra) {
    ENTER(cuLaunchKernel, CONTEXT);
    FIND(f, functions, function);
    FIND(s, streams, stream);
    const string name = string(f->kernel->name) + ": ";
    REQUIRE(grid_x && grid_y && grid_z && block_x && block_y && block_z, name + "nothing to launch");
    REQUIRE(grid_x <= 0x7fffffff && grid_y <= 65535 && grid_z <= 65535, name + "the grid is too large");
    REQUIRE(block_x <= 1024 && block_y <= 1024 && block_z <= 64, name + "the block is too large");
    const u64 threads = (u64)block_x * block_y * block_z;
    REQUIRE(threads <= f->threads, name + to_string(threads) + " threads, " + to_string(f->threads) + " is the most");
    REQUIRE(shared <= f->shared, name + to_string(shared) + " bytes shared, " + to_string(f->shared) + " is the most");
    REQUIRE(arguments && !extra, name + "arguments are given by their addresses");
    Launch launch{f->kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, {}};
    for (size_t i = 0; i < f->kernel->parameters.size(); ++i) {
        const size_t size = f->kernel->parameters[i].size, first = launch.words.size();
        REQUIRE(arguments[i], name + "argument " + to_string(i + 1) + " is not given");
        launch.words.resize(first + (size + 7) / 8);
        memcpy(&launch.words[first], arguments[i], size);
    }
    put(*s, [launch = std::move(launch)] { run(launch); });
    return SUCCESS;
}

API(cuStreamBeginCapture_v2, void* stream, unsigned mode) {
    ENTER(cuStreamBeginCapture_v2, CONTEXT);
    FIND(s, streams, stream);
    REQUIRE(mode <= RELAXED, "mode");
    if (s->capture) return refuse(ILLEGAL_STATE, "the stream is capturing");
    s->capture.reset(new Capture{mode, std::this_thread::get_id(), false, {}});
    return SUCCESS;
}
API(cuStreamEndCapture, void* stream, void** graph) {
    ENTER(cuStreamEndCapture, CONTEXT);
    FIND(s, streams, stream);
    *graph = nullptr;
    if (!s->capture) return refuse(ILLEGAL_STATE, "the stream is not capturing");
    if (s->capture->mode != RELAXED && s->capture->thread != std::this_thread::get_id())
        return refuse(CAPTURE_WRONG_THREAD, "another thread began the capture");
    auto capture = std::move(s->capture);
    if (capture->spoiled) return refuse(CAPTURE_INVALIDATED, "a call between spoiled the capture");
    *graph = keep_handle(state.graphs, new Graph{std::move(capture->nodes)});
    return SUCCESS;
}
API(cuGraphInstantiateWithFlags, void** executable, void* graph, u64 flags) {
    ENTER(cuGraphInstantiateWithFlags, CONTEXT);
    FIND(g, graphs, graph);
    REQUIRE(!flags, "flags");
    *executable = keep_handle(state.executables, new Graph{g->nodes});
    return SUCCESS;
}
API(cuGraphLaunch, void* executable, void* stream) {
    ENTER(cuGraphLaunch, CONTEXT);
    FIND(x, executables, executable);
    FIND(s, streams, stream);
    for (auto& node : x->nodes) put(*s, node);
    return SUCCESS;
}
API(cuGraphExecDestroy, void* executable) {
    ENTER(cuGraphExecDestroy, CONTEXT);
    FIND(x, executables, executable);
    forget(state.executables, executable);
    return SUCCESS;
}
API(cuGraphDestroy, void* graph) {
    ENTER(cuGraphDestroy, CONTEXT);
    FIND(g, graphs, graph);
    forget(state.graphs, graph);
    return SUCCESS;
}
} // namespace driver
