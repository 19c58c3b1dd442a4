// Does the emulator find what it is there to find? Every kernel here has a mistake in it.
#include "check.h"

// The barrier between writing and reading is missing: wrong in two of the three orders.
KERNEL(64) without_barrier(float* y) {
    SHARED float part[64];
    part[threadIdx.x] = (float)threadIdx.x;
    y[threadIdx.x] = part[(threadIdx.x + 1) % 64];
}
KERNEL(64) two_barriers(float* y) {
    if (threadIdx.x < 32) {
        __syncthreads();
        y[threadIdx.x] = 0.f;
    } else {
        y[threadIdx.x] = 1.f;
        __syncthreads();
    }
}
KERNEL(64) barrier_for_some(float* y) {
    if (threadIdx.x < 40) warp_sum(1.f);
    y[threadIdx.x] = 1.f;
}
KERNEL(32) without_wait(const float* x, float* y) {
    SHARED float room[128];
    copy_16(room + 4 * threadIdx.x, x + 4 * threadIdx.x);
    copies_commit();
    __syncthreads();
    y[threadIdx.x] = room[4 * threadIdx.x];
    copies_wait<0>();
}
KERNEL(32) waits_for_too_few(const float* x, float* y) {
    SHARED float room[256];
    copy_16(room + 4 * threadIdx.x, x + 4 * threadIdx.x);
    copies_commit();
    copy_16(room + 128 + 4 * threadIdx.x, x + 4 * threadIdx.x);
    copies_commit();
    copies_wait<1>();
    y[threadIdx.x] = room[4 * threadIdx.x];                  // this is there
    y[32 + threadIdx.x] = room[128 + 4 * threadIdx.x];       // this is not
    copies_wait<0>();
}
KERNEL(32) never_waits(const float* x) {
    SHARED float room[128];
    copy_16(room + 4 * threadIdx.x, x + 4 * threadIdx.x);
    copies_commit();
}

int main() {
    Floats x(128, 2.f), y(64);
    bool wrong = false;
    const char* orders[] = {"forward", "backward", "shuffled"};
    for (auto order : orders) {
        setenv("ONLAY_EMULATOR_ORDER", order, 1);
        said(launch(without_barrier, 1, 64, 0, y.data()), "without_barrier");
        for (int i = 0; i < 64; ++i) wrong |= !(y[i] == (float)((i + 1) % 64));
        same("two barriers", launch(two_barriers, 1, 64, 0, y.data()) != nullptr);
        same("a collective for some lanes", launch(barrier_for_some, 1, 64, 0, y.data()) != nullptr);
        said(launch(without_wait, 1, 32, 0, x.data(), y.data()), "without_wait");
        same("a copy read before its wait", y[0] != y[0]);
        said(launch(waits_for_too_few, 1, 32, 0, x.data(), y.data()), "waits_for_too_few");
        same("the older of two copies", y[0] == 2.f);
        same("the younger of two copies", y[32] != y[32]);
        same("no wait at all", launch(never_waits, 1, 32, 0, x.data()) != nullptr);
    }
    same("a missing barrier, in one order or another", wrong);
    // half precision, against the definition
    for (u32 h = 0; h < 0x7c00; ++h)
        if (float_to_half(half_to_float((u16)h)) != h) same("half " + std::to_string(h), false);
    same("half of 1/3", half_to_float(float_to_half(1.f / 3.f)) == 0.333251953125f);
    same("half between two, to the even one", float_to_half(1.00048828125f) == 0x3c00);
    same("half beyond the largest", float_to_half(65520.f) == 0x7c00 && float_to_half(65519.f) == 0x7bff);
    unsetenv("ONLAY_EMULATOR_ORDER");
    return finish("emulator");
}
