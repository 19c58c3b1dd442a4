// The fake driver (emulator/driver.cpp): does it notice what it is there to notice, and has it every kernel?
//   driver FOLDER      where the committed PTX lies
#include "check.h"
#include <fstream>
#include <functional>
#include <sstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

// As a program that opens the library knows it.
extern "C" {
int cuInit(unsigned);
int cuDriverGetVersion(int*);
int cuGetErrorName(int, const char**);
int cuGetErrorString(int, const char**);
int cuDeviceGetCount(int*);
int cuDeviceGet(int*, int);
int cuDeviceGetName(char*, int, int);
int cuDeviceGetAttribute(int*, int, int);
int cuDeviceTotalMem_v2(size_t*, int);
int cuDevicePrimaryCtxRetain(void**, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(void*);
int cuCtxSynchronize(void);
int cuMemGetInfo_v2(size_t*, size_t*);
int cuMemAlloc_v2(u64*, size_t);
int cuMemAllocManaged(u64*, size_t, unsigned);
int cuMemFree_v2(u64);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemcpyHtoDAsync_v2(u64, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, u64, size_t, void*);
int cuMemcpyDtoDAsync_v2(u64, u64, size_t, void*);
int cuMemsetD8Async(u64, unsigned char, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuEventCreate(void**, unsigned);
int cuEventDestroy_v2(void*);
int cuEventRecord(void*, void*);
int cuEventSynchronize(void*);
int cuEventElapsedTime(float*, void*, void*);
int cuModuleLoadDataEx(void**, const void*, unsigned, int*, void**);
int cuModuleUnload(void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuStreamBeginCapture_v2(void*, unsigned);
int cuStreamEndCapture(void*, void**);
int cuGraphInstantiateWithFlags(void**, void*, u64);
int cuGraphLaunch(void*, void*);
int cuGraphExecDestroy(void*);
int cuGraphDestroy(void*);
}

static std::string folder;

static void gives(const std::string& name, int code, int want = 0) {
    same(name + ": gives " + std::to_string(code) + ", not " + std::to_string(want), code == want);
}

// In a process of its own, so that a failure ends with it; what it says on stderr is meant to be said.
static void apart(const std::string& name, std::vector<std::pair<const char*, const char*>> knobs,
                  std::function<void()> body) {
    fflush(stdout);
    const pid_t child = fork();
    if (!child) {
        if (!freopen("/dev/null", "w", stderr)) _exit(2);
        for (auto& [knob, value] : knobs) setenv((std::string("ONLAY_FAKE_CUDA_") + knob).c_str(), value, 1);
        failed = 0;
        body();
        fflush(stdout);
        _exit(failed ? 1 : 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    same(name, status == 0);
}

static std::string text_of(const std::string& file) {
    std::ifstream in(folder + "/" + file);
    std::stringstream all;
    all << in.rdbuf();
    same("there is " + file, !all.str().empty());
    return all.str();
}
static void* load(const std::string& file) {
    void* module = nullptr;
    gives("loads " + file, cuModuleLoadDataEx(&module, text_of(file).c_str(), 0, nullptr, nullptr));
    return module;
}
static void* function(void* module, const char* name) {
    void* f = nullptr;
    gives(std::string("finds ") + name, cuModuleGetFunction(&f, module, name));
    return f;
}
static void begin() {
    void* context;
    gives("cuInit", cuInit(0));
    gives("a context", cuDevicePrimaryCtxRetain(&context, 0));
    gives("a current context", cuCtxSetCurrent(context));
}
static void* stream() {
    void* s = nullptr;
    gives("a stream", cuStreamCreate(&s, 1));
    return s;
}
static void* event() {
    void* e = nullptr;
    gives("an event", cuEventCreate(&e, 0));
    return e;
}
static u64 memory(size_t bytes) {
    u64 p = 0;
    gives("memory", cuMemAlloc_v2(&p, bytes));
    return p;
}
static float* pinned(size_t numbers) {
    void* p = nullptr;
    gives("pinned memory", cuMemHostAlloc(&p, 4 * numbers, 0));
    return (float*)p;
}
static int start(void* f, void* s, unsigned blocks, unsigned threads, std::vector<void*> arguments) {
    return cuLaunchKernel(f, blocks, 1, 1, threads, 1, 1, 0, s, arguments.data(), nullptr);
}
// y = a + b, or y += a
static int start_add(void* f, void* s, u64 a, u64 b, u64 n, u64 y) { return start(f, s, 1, 256, {&a, &b, &n, &y}); }
static int start_accumulate(void* f, void* s, u64 x, u64 n, u64 y) { return start(f, s, 1, 256, {&x, &n, &y}); }
static float first_of(u64 p, void* s) {
    float x = 0.f;
    gives("a copy back", cuMemcpyDtoHAsync_v2(&x, p, 4, s));
    return x;
}

static void queues() {
    begin();
    void *s = stream(), *add = function(load("rows.75.ptx"), "add");
    const u64 d = memory(16);
    float *there = pinned(4), *back = pinned(4), pageable[4] = {1, 2, 3, 4};
    same("new memory is NaN", first_of(d, s) != first_of(d, s) && there[0] != there[0]);

    gives("a copy", cuMemcpyHtoDAsync_v2(d, pageable, 16, s));
    pageable[0] = 9;
    same("pageable memory is read at once", first_of(d, s) == 1);
    std::fill(there, there + 4, 5.f);
    gives("a copy", cuMemcpyHtoDAsync_v2(d, there, 16, s));
    there[0] = 6;
    same("pinned memory is read late", first_of(d, s) == 6);

    // arguments are copied when the launch is queued
    u64 a = d, n = 4, y = d;
    std::vector<void*> arguments = {&a, &a, &n, &y};
    gives("a launch", cuLaunchKernel(add, 1, 1, 1, 256, 1, 1, 0, s, arguments.data(), nullptr));
    a = y = n = 0;
    arguments.assign(4, nullptr);
    gives("a copy", cuMemcpyDtoHAsync_v2(back, d, 16, s));
    same("nothing runs before somebody waits", back[0] != back[0]);
    gives("cuStreamSynchronize", cuStreamSynchronize(s));
    same("then everything does", back[0] == 12 && back[3] == 10);

    gives("a fill", cuMemsetD8Async(d, 0, 8, s));
    gives("a copy", cuMemcpyDtoDAsync_v2(d + 8, d, 4, s));
    gives("a copy", cuMemcpyDtoHAsync_v2(back, d, 16, s));
    gives("cuCtxSynchronize", cuCtxSynchronize());
    same("fills and copies", back[0] == 0 && back[1] == 0 && back[2] == 0 && back[3] == 10);

    gives("a copy", cuMemcpyHtoDAsync_v2(d, there, 16, s));
    gives("freed pinned memory", cuMemFreeHost(there));
    same("freeing waits", first_of(d, s) == 6);
    gives("a fill", cuMemsetD8Async(d, 0x40, 16, s));
    gives("a copy", cuMemcpyDtoHAsync_v2(back, d, 16, s));
    gives("a stream at its end", cuStreamDestroy_v2(s));
    same("does what it was told first", back[0] > 3);
    gives("a stream twice at its end", cuStreamDestroy_v2(s), 400);
    gives("the null stream", cuMemsetD8Async(d, 0, 16, nullptr), 400);
    gives("freed", cuMemFree_v2(d));
    gives("freed", cuMemFreeHost(back));
}

static void events() {
    begin();
    void *one = stream(), *two = stream(), *done = event(), *later = event(), *never = event();
    const u64 d = memory(8), to = memory(8);
    float* back = pinned(2);
    auto write = [&] { gives("a fill", cuMemsetD8Async(d, 0, 8, one)); };
    auto read = [&] {
        gives("a copy", cuMemcpyDtoDAsync_v2(to, d, 8, two));
        gives("a copy", cuMemcpyDtoHAsync_v2(back, to, 8, two));
        gives("cuStreamSynchronize", cuStreamSynchronize(two));
        return back[0];
    };
    write();
    gives("a wait for nothing", cuStreamWaitEvent(two, never, 0));
    same("a forgotten wait is seen", read() != read());
    gives("a record", cuEventRecord(done, one));
    gives("a fill", cuMemsetD8Async(d + 4, 0x40, 4, one));
    gives("a record", cuEventRecord(later, one));
    gives("a wait", cuStreamWaitEvent(two, done, 0));
    same("a wait is kept", read() == 0);
    same("but no further than its event", back[1] == 0);
    float time = 1;
    gives("time that has not passed", cuEventElapsedTime(&time, done, later), 600);
    gives("a copy", cuMemcpyDtoHAsync_v2(back, d + 4, 4, one));
    gives("cuEventSynchronize", cuEventSynchronize(later));
    same("runs no further than the event", back[0] == 0);
    gives("cuEventElapsedTime", cuEventElapsedTime(&time, done, later));
    gives("time of what was not recorded", cuEventElapsedTime(&time, done, never), 400);
    same("an event waited for", read() == 0 && back[1] > 3 && time == 0);
    // each waits for the other in turn
    for (int i = 0; i < 4; ++i) {
        void *from = i % 2 ? one : two, *onto = i % 2 ? two : one;
        gives("a fill", cuMemsetD8Async(d, (u8)i, 8, from));
        gives("a record", cuEventRecord(done, from));
        gives("a wait", cuStreamWaitEvent(onto, done, 0));
    }
    same("streams that take turns", bits_of(read()) == 0x03030303);
    write();
    gives("a record", cuEventRecord(done, one));
    gives("a stream at its end", cuStreamDestroy_v2(one));
    gives("a wait for a stream that has ended", cuStreamWaitEvent(two, done, 0));
    same("is none", read() == 0);
    gives("an event at its end", cuEventDestroy_v2(done));
    gives("an event twice at its end", cuEventDestroy_v2(done), 400);
    gives("a record of it", cuEventRecord(done, two), 400);
}

static void bounds() {
    begin();
    void* s = stream();
    const u64 d = memory(100), e = memory(100);
    float x[64] = {}, *p = pinned(4);
    gives("a copy to the end", cuMemcpyHtoDAsync_v2(d + 60, x, 40, s));
    gives("a copy beyond it", cuMemcpyHtoDAsync_v2(d + 61, x, 40, s), 1);
    gives("a copy from before", cuMemcpyHtoDAsync_v2(d - 4, x, 8, s), 1);
    gives("a copy from beyond pinned memory", cuMemcpyHtoDAsync_v2(d, p, 20, s), 1);
    gives("a copy back from beyond", cuMemcpyDtoHAsync_v2(x, d, 101, s), 1);
    gives("a copy back to beyond pinned memory", cuMemcpyDtoHAsync_v2(p + 1, d, 16, s), 1);
    gives("a copy within", cuMemcpyDtoDAsync_v2(d, e, 100, s));
    gives("a copy from beyond, within", cuMemcpyDtoDAsync_v2(d, e + 1, 100, s), 1);
    gives("a copy to beyond, within", cuMemcpyDtoDAsync_v2(d + 1, e, 100, s), 1);
    gives("a fill beyond", cuMemsetD8Async(d, 0, 101, s), 1);
    gives("a copy to the host's memory", cuMemcpyHtoDAsync_v2((u64)x, x, 4, s), 1);
    gives("a fill of nothing", cuMemsetD8Async(d + 100, 0, 0, s));
    gives("freeing the middle", cuMemFree_v2(d + 4), 1);
    gives("freeing", cuMemFree_v2(d));
    gives("freeing twice", cuMemFree_v2(d), 1);
    gives("freeing other memory", cuMemFreeHost((void*)e), 1);
    gives("a copy to freed memory", cuMemcpyHtoDAsync_v2(d, x, 4, s), 1);
    u64 none;
    gives("no bytes", cuMemAlloc_v2(&none, 0), 1);
    u64 both = 0;
    gives("managed memory", cuMemAllocManaged(&both, 16, 1));
    gives("managed memory of no bytes", cuMemAllocManaged(&none, 0, 1), 1);
    gives("managed memory for nobody", cuMemAllocManaged(&none, 16, 0), 1);
    float* seen = (float*)both;
    gives("a fill", cuMemsetD8Async(both, 0x40, 16, s));
    same("is seen late", seen[3] != seen[3]);
    gives("cuStreamSynchronize", cuStreamSynchronize(s));
    same("on both sides", seen[3] > 3);
    gives("freed", cuMemFree_v2(both));
}

static void launches() {
    begin();
    void *s = stream(), *rows = load("rows.75.ptx"), *add = function(rows, "add");
    void* attend = function(load("attend.75.ptx"), "attend");
    const u64 d = memory(16);
    u64 p = d, n = 4;
    void* arguments[] = {&p, &p, &n, &p};
    auto launch = [&](unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared) {
        return cuLaunchKernel(add, gx, gy, gz, bx, by, bz, shared, s, arguments, nullptr);
    };
    gives("a launch", launch(1, 1, 1, 256, 1, 1, 0));
    gives("more threads than the kernel takes", launch(1, 1, 1, 257, 1, 1, 0), 1);
    gives("more in two directions", launch(1, 1, 1, 32, 9, 1, 0), 1);
    gives("no threads", launch(1, 1, 1, 0, 1, 1, 0), 1);
    gives("no blocks", launch(1, 0, 1, 256, 1, 1, 0), 1);
    gives("too many rows of blocks", launch(1, 65536, 1, 256, 1, 1, 0), 1);
    gives("too many layers of blocks", launch(1, 1, 65536, 256, 1, 1, 0), 1);
    gives("48 KiB", launch(1, 1, 1, 256, 1, 1, 48 * 1024));
    gives("more than 48 KiB", launch(1, 1, 1, 256, 1, 1, 48 * 1024 + 1), 1);
    gives("more allowed", cuFuncSetAttribute(add, 8, 64 * 1024));
    gives("more than 48 KiB, allowed", launch(1, 1, 1, 256, 1, 1, 64 * 1024));
    gives("more than any has", cuFuncSetAttribute(add, 8, 200 * 1024), 1);
    gives("no arguments", cuLaunchKernel(add, 1, 1, 1, 256, 1, 1, 0, s, nullptr, nullptr), 1);
    arguments[2] = nullptr;
    gives("a missing argument", launch(1, 1, 1, 256, 1, 1, 0), 1);
    gives("no function", cuLaunchKernel(rows, 1, 1, 1, 256, 1, 1, 0, s, arguments, nullptr), 400);
    gives("cuStreamSynchronize", cuStreamSynchronize(s));
    gives("unloaded", cuModuleUnload(rows));
    gives("a function of what is unloaded", launch(1, 1, 1, 256, 1, 1, 0), 400);
    gives("another's is still there", cuFuncSetAttribute(attend, 8, 50000));
}

static void broken_launches() {
    auto fails = [](const char* name, int code, std::function<int(void*, void*, u64)> body) {
        apart(name, {}, [=] {
            begin();
            void *s = stream(), *rows = load("rows.75.ptx");
            const u64 d = memory(64);
            cuMemsetD8Async(d, 0, 64, s);
            gives("is queued", body(rows, s, d));
            gives("fails where it is waited for", cuStreamSynchronize(s), code);
            gives("and everything after it", cuMemsetD8Async(d, 0, 4, s), code);
            gives("everything", cuCtxSynchronize(), code);
            int count;
            gives("everything, too", cuDeviceGetCount(&count), code);
        });
    };
    static float hosts[16] = {};
    fails("a pointer to the host", 700,
          [](void* m, void* s, u64 d) { return start_add(function(m, "add"), s, (u64)hosts, d, 4, d); });
    fails("a misaligned pointer", 716,
          [](void* m, void* s, u64 d) { return start_add(function(m, "add"), s, d + 2, d, 4, d); });
#ifndef __SANITIZE_ADDRESS__
    fails("a kernel that writes behind its memory", 700,
          [](void* m, void* s, u64 d) { return start_add(function(m, "add"), s, d, d, 17, d); });
#endif
    fails("a kernel with a mistake", 719, [](void*, void* s, u64) {
        u64 w = memory(256), row_bytes = 128, x = w + 4, bias = 0, y = w;
        int format = 0, outputs = 1, cols = 32, rows = 1;
        return start(function(load("matmul_tensor.75.ptx"), "tensor_matmul"), s, 1, 128,
                     {&w, &format, &row_bytes, &outputs, &cols, &x, &rows, &bias, &y});
    });
    fails("a graph whose memory was freed", 700, [](void*, void* s, u64 d) {
        void *graph, *executable;
        gives("captures", cuStreamBeginCapture_v2(s, 0));
        gives("a fill", cuMemsetD8Async(d, 0, 4, s));
        gives("captured", cuStreamEndCapture(s, &graph));
        gives("a graph", cuGraphInstantiateWithFlags(&executable, graph, 0));
        gives("freed", cuMemFree_v2(d));
        return cuGraphLaunch(executable, s);
    });
}

static void graphs() {
    begin();
    void *s = stream(), *other = stream(), *rows = load("rows.75.ptx"), *add = function(rows, "add"), *e = event();
    void *accumulate = function(rows, "accumulate"), *graph = nullptr, *executable = nullptr;
    const u64 x = memory(16), y = memory(16);
    float *in = pinned(4), *out = pinned(4), pageable[4] = {};
    std::fill(in, in + 4, 1.f);
    gives("a fill", cuMemsetD8Async(y, 0, 16, s));
    gives("begins", cuStreamBeginCapture_v2(s, 0));
    gives("begins twice", cuStreamBeginCapture_v2(s, 0), 401);
    gives("a copy", cuMemcpyHtoDAsync_v2(x, in, 16, s));
    {
        u64 n = 4, from = x, to = y;
        gives("a launch", start(accumulate, s, 1, 256, {&from, &n, &to}));
        n = 0; // the graph has the four
    }
    gives("a record", cuEventRecord(e, s));
    gives("a wait of its own", cuStreamWaitEvent(s, e, 0));
    gives("a wait of another", cuStreamWaitEvent(other, e, 0), 900);
    gives("waiting for it", cuEventSynchronize(e), 907);
    gives("a copy", cuMemcpyDtoHAsync_v2(out, y, 16, s));
    gives("ends", cuStreamEndCapture(s, &graph));
    gives("ends twice", cuStreamEndCapture(s, &executable), 401);
    gives("cuStreamSynchronize", cuStreamSynchronize(s));
    same("a capture does nothing", out[0] != out[0] && first_of(y, s) == 0);
    gives("a graph to launch", cuGraphInstantiateWithFlags(&executable, graph, 0));
    gives("the graph's end", cuGraphDestroy(graph));
    gives("the graph's second end", cuGraphDestroy(graph), 400);
    gives("a launch of it", cuGraphLaunch(executable, s));
    in[3] = 3;
    gives("another", cuGraphLaunch(executable, s));
    same("is queued like everything", out[0] != out[0]);
    gives("cuStreamSynchronize", cuStreamSynchronize(s));
    same("and does it all, twice", out[0] == 2 && out[3] == 6);
    gives("its end", cuGraphExecDestroy(executable));
    gives("a launch after it", cuGraphLaunch(executable, s), 400);

    auto spoils = [&](const char* name, unsigned mode, int code, bool spoiled, std::function<int()> call) {
        gives("begins", cuStreamBeginCapture_v2(s, mode));
        gives(name, call(), code);
        gives(std::string(name) + ", after it", cuStreamEndCapture(s, &graph), spoiled ? 901 : 0);
        if (!spoiled) gives("its end", cuGraphDestroy(graph));
    };
    u64 p = 0;
    spoils("synchronising", 2, 900, true, [&] { return cuStreamSynchronize(s); });
    spoils("synchronising all", 2, 900, true, [&] { return cuCtxSynchronize(); });
    spoils("synchronising another", 0, 0, false, [&] { return cuStreamSynchronize(other); });
    spoils("pageable memory", 2, 900, true, [&] { return cuMemcpyHtoDAsync_v2(x, pageable, 16, s); });
    spoils("pageable memory, back", 2, 900, true, [&] { return cuMemcpyDtoHAsync_v2(pageable, x, 16, s); });
    spoils("memory", 0, 900, true, [&] { return cuMemAlloc_v2(&p, 16); });
    spoils("memory, relaxed", 2, 0, false, [&] { return cuMemAlloc_v2(&p, 16); });
    spoils("freed memory", 1, 900, true, [&] { return cuMemFree_v2(p); });
    gives("a record", cuEventRecord(e, other));
    spoils("an event from outside", 0, 905, true, [&] { return cuStreamWaitEvent(s, e, 0); });
    spoils("a wrong launch", 0, 1, false, [&] { return start(add, s, 1, 512, {}); });
    void* context;
    gives("a context", cuDevicePrimaryCtxRetain(&context, 0));
    auto elsewhere = [&](std::function<int()> call) {
        int code = -1;
        std::thread([&] { code = cuCtxSetCurrent(context), code = call(); }).join();
        return code;
    };
    auto memory_elsewhere = [&] { return elsewhere([&] { return cuMemAlloc_v2(&p, 4); }); };
    spoils("memory for another thread, global", 0, 900, true, memory_elsewhere);
    spoils("memory for another thread", 1, 0, false, memory_elsewhere);
    spoils("its end from another thread", 1, 908, false,
           [&] { return elsewhere([&] { return cuStreamEndCapture(s, &graph); }); });
}

static void texts() {
    begin();
    int entries = 0;
    for (const char* name : {"attend.75", "layers.75", "learn.75", "matmul.75", "matmul_tensor.75", "matmul_tensor.80",
                             "matvec.75", "rows.75"}) {
        const std::string file = std::string(name) + ".ptx", text = text_of(file);
        void *module = load(file), *f = nullptr;
        for (size_t at = 0; (at = text.find(".entry ", at)) != std::string::npos; ++entries) {
            at += 7;
            const std::string entry = text.substr(at, text.find('(', at) - at);
            gives(file + " has " + entry, cuModuleGetFunction(&f, module, entry.c_str()));
            gives("nothing longer", cuModuleGetFunction(&f, module, (entry + "_").c_str()), 500);
            gives("nothing shorter", cuModuleGetFunction(&f, module, entry.substr(0, entry.size() - 1).c_str()), 500);
        }
    }
    same("many entries: " + std::to_string(entries), entries >= 50);
    void *module, *f;
    auto loads = [&](const char* name, const std::string& text, int code) {
        gives(name, cuModuleLoadDataEx(&module, text.c_str(), 0, nullptr, nullptr), code);
    };
    const std::string head = "// .version 9.9\n.version 7.8\n.target sm_75\n";
    loads("a text", head, 0);
    loads("a text of today", ".version 8.0\n.target sm_80\n", 0);
    loads("a text of tomorrow", ".version 8.1\n.target sm_75\n", 222);
    loads("a text of the day after", ".version 10.0\n.target sm_75\n", 222);
    loads("a text for a later card", ".version 7.8\n.target sm_86\n", 209);
    loads("no version", "// .version 7.8\n.target sm_75\n", 218);
    loads("no target", ".version 7.8\n", 218);
    char log[64] = "";
    int options[] = {5, 6};
    void* values[] = {log, (void*)sizeof log};
    gives("a text of tomorrow", cuModuleLoadDataEx(&module, ".version 8.1\n.target sm_75\n", 2, options, values), 222);
    same("is said in the log", std::string(log).find("8.1") != std::string::npos);
    loads("what the emulator has not", head + ".visible .entry nobody(\n)\n{\n}\n", 0);
    gives("nobody", cuModuleGetFunction(&f, module, "nobody"), 500);
    const std::string three = "(\n.param .u64 a,\n.param .u64 b,\n.param .u64 c";
    loads("an entry of a longer name", head + ".visible .entry accumulates" + three + "\n)\n{\n}\n", 0);
    gives("is not that one", cuModuleGetFunction(&f, module, "accumulate"), 500);
    loads("an entry", head + ".visible .entry accumulate" + three + "\n)\n{\n}\n", 0);
    gives("with its parameters", cuModuleGetFunction(&f, module, "accumulate"));
    loads("one of other days", head + ".visible .entry accumulate" + three + ",\n.param .u32 d\n)\n{\n}\n", 0);
    gives("with one more", cuModuleGetFunction(&f, module, "accumulate"), 500);
    const std::string shorter = "(\n.param .u64 a,\n.param .u32 b,\n.param .u64 c";
    loads("one of other days", head + ".visible .entry accumulate" + shorter + "\n)\n{\n}\n", 0);
    gives("with a shorter one", cuModuleGetFunction(&f, module, "accumulate"), 500);
}

static void attributes() {
    int value = 0, device = -1;
    char name[64];
    size_t free, total;
    u64 p;
    gives("before cuInit", cuDeviceGetCount(&value), 3);
    gives("the version before cuInit", cuDriverGetVersion(&value));
    same("12.0", value == 12000);
    gives("cuInit", cuInit(0));
    gives("cuInit again", cuInit(0));
    gives("cuDeviceGetCount", cuDeviceGetCount(&value));
    same("one device", value == 1);
    gives("cuDeviceGet", cuDeviceGet(&device, 0));
    gives("no second device", cuDeviceGet(&device, 1), 101);
    gives("cuDeviceGetName", cuDeviceGetName(name, 64, device));
    same("its name", !strcmp(name, "fake (CPU fibres)"));
    for (auto [which, want] : {std::pair<int, int>{75, 8}, {76, 0}, {16, 4}, {10, 32}, {97, 99 * 1024}, {1, 1024}}) {
        gives("cuDeviceGetAttribute", cuDeviceGetAttribute(&value, which, device));
        same("attribute " + std::to_string(which), value == want);
    }
    gives("an attribute nobody asked for yet", cuDeviceGetAttribute(&value, 12345, device), 1);
    gives("memory without a context", cuMemAlloc_v2(&p, 4), 201);
    begin();
    memory(1000);
    gives("cuMemGetInfo", cuMemGetInfo_v2(&free, &total));
    same("a GiB", total == 1 << 30 && free == total - 1000);
    const char* words = nullptr;
    gives("too much memory", cuMemAlloc_v2(&p, 1 << 30), 2);
    gives("its name", cuGetErrorName(2, &words));
    same("its name", !strcmp(words, "CUDA_ERROR_OUT_OF_MEMORY"));
    gives("its words", cuGetErrorString(2, &words));
    same("why", !strcmp(words, "out of memory (1073741824 bytes asked for, 1073740824 free)"));
    gives("other words", cuGetErrorString(700, &words));
    same("other words", !strcmp(words, "an illegal memory access was encountered"));
    gives("a code nobody knows", cuGetErrorName(12345, &words), 1);
    std::thread([&] { gives("a thread without a context", cuMemAlloc_v2(&p, 4), 201); }).join();
    gives("no context", cuCtxSetCurrent(nullptr));
    gives("none", cuCtxSynchronize(), 201);
    gives("released", cuDevicePrimaryCtxRelease_v2(0));
}

static void knobs() {
    int value;
    size_t total;
    apart("no devices", {{"DEVICES", "0"}}, [&] {
        gives("cuInit", cuInit(0), 100);
        gives("anything", cuDeviceGetCount(&value), 3);
    });
    apart("three devices", {{"DEVICES", "3"}}, [&] {
        begin();
        gives("cuDeviceGetCount", cuDeviceGetCount(&value));
        same("three", value == 3);
        gives("the third", cuDeviceGet(&value, 2));
    });
    apart("little memory", {{"MEMORY", "4096"}}, [&] {
        begin();
        u64 p = memory(4000), q;
        gives("more of it", cuMemAlloc_v2(&q, 100), 2);
        gives("freed", cuMemFree_v2(p));
        memory(4096);
        gives("cuDeviceTotalMem", cuDeviceTotalMem_v2(&total, 0));
        same("4096", total == 4096);
    });
    apart("an older device", {{"CAPABILITY", "75"}}, [&] {
        begin();
        gives("cuDeviceGetAttribute", cuDeviceGetAttribute(&value, 76, 0));
        same("7.5", value == 5);
        load("matmul_tensor.75.ptx");
        void* module;
        const std::string text = text_of("matmul_tensor.80.ptx");
        gives("a text of Ampere's", cuModuleLoadDataEx(&module, text.c_str(), 0, nullptr, nullptr), 209);
    });
    apart("an older driver", {{"DRIVER", "11070"}}, [&] {
        begin();
        gives("cuDriverGetVersion", cuDriverGetVersion(&value));
        same("11.7", value == 11070);
        void* module;
        const std::string text = text_of("rows.75.ptx");
        gives("a text it does not know", cuModuleLoadDataEx(&module, text.c_str(), 0, nullptr, nullptr), 222);
    });
    apart("a later driver", {{"DRIVER", "12040"}}, [&] {
        begin();
        void* module;
        gives("8.4", cuModuleLoadDataEx(&module, ".version 8.4\n.target sm_80\n", 0, nullptr, nullptr));
        gives("8.5", cuModuleLoadDataEx(&module, ".version 8.5\n.target sm_80\n", 0, nullptr, nullptr), 222);
    });
    apart("the second allocation fails", {{"FAIL", "cuMemAlloc:2:2"}}, [&] {
        begin();
        u64 p;
        memory(4);
        gives("the second", cuMemAlloc_v2(&p, 4), 2);
        memory(4);
    });
    apart("the third launch breaks all", {{"FAIL", "cuMemsetD8Async:3:719"}}, [&] {
        begin();
        void* s = stream();
        const u64 d = memory(4);
        for (int code : {0, 0, 719, 719}) gives("a fill", cuMemsetD8Async(d, 0, 4, s), code);
        gives("all", cuMemFree_v2(d), 719);
        setenv("ONLAY_FAKE_CUDA_FAIL", "", 1);
        gives("a new cuInit with another knob", cuInit(0));
        gives("forgets it", cuMemFree_v2(d));
    });
    apart("a device that cannot be begun with", {{"FAIL", "cuInit:1:999"}}, [&] { gives("cuInit", cuInit(0), 999); });
    const std::pair<const char*, const char*> wrong[] = {
        {"DEVICES", "many"}, {"MEMORY", "-1"}, {"FAIL", "cuNothing:1:2"}, {"FAIL", "cuInit:1"}, {"CAPABILITY", "8.0"}};
    for (auto [knob, text] : wrong)
        apart(std::string("a knob that cannot be read: ") + text, {{knob, text}}, [&] { gives("cuInit", cuInit(0), 1); });
}

static void threads() {
    begin();
    void *context, *accumulate = function(load("rows.75.ptx"), "accumulate");
    gives("a context", cuDevicePrimaryCtxRetain(&context, 0));
    const int many = 4, rounds = 20, n = 300;
    float results[many] = {};
    std::vector<std::thread> all;
    for (int t = 0; t < many; ++t)
        all.emplace_back([&, t] {
            void* s;
            u64 x, y, count = n;
            Floats ones(n, (float)(t + 1)), back(n);
            int code = cuCtxSetCurrent(context);
            code |= cuStreamCreate(&s, 1) | cuMemAlloc_v2(&x, 4 * n) | cuMemAlloc_v2(&y, 4 * n);
            code |= cuMemcpyHtoDAsync_v2(x, ones.data(), 4 * n, s) | cuMemsetD8Async(y, 0, 4 * n, s);
            for (int i = 0; i < rounds; ++i) {
                void* arguments[] = {&x, &count, &y};
                code |= cuLaunchKernel(accumulate, 2, 1, 1, 256, 1, 1, 0, s, arguments, nullptr);
                if (i % 3 == 0) code |= cuStreamSynchronize(s);
            }
            code |= cuMemcpyDtoHAsync_v2(back.data(), y, 4 * n, s);
            code |= cuStreamDestroy_v2(s) | cuMemFree_v2(x) | cuMemFree_v2(y);
            results[t] = code ? -1 : back[n - 1];
        });
    for (auto& one : all) one.join();
    for (int t = 0; t < many; ++t) same("a thread of several", results[t] == (float)(rounds * (t + 1)));
}

int main(int count, char** arguments) {
    if (count != 2) return fprintf(stderr, "driver FOLDER of the PTX\n"), 2;
    folder = arguments[1];
    // each apart, for the state that it leaves
    apart("attributes", {}, attributes);
    apart("queues", {}, queues);
    apart("events", {}, events);
    apart("bounds", {}, bounds);
    apart("launches", {}, launches);
    apart("graphs", {}, graphs);
    apart("texts", {}, texts);
    apart("threads", {}, threads);
    broken_launches();
    knobs();
    return finish("driver");
}
