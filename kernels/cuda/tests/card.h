// A card under the tests: where ONLAY_TEST_CARD names one, as cuda:N or N, kernels are started there and not on the
// emulator. The driver is opened at run time (libcuda.so.1, or what ONLAY_CUDA_LIBRARY names); the PTX is in the program.
// Where there is no driver or no such device, the program says `skipped: no device` and ends with 0.
#pragma once
#include <stddef.h>
#include <functional>
#include <string>

namespace card {
// Whether the tests are on a card. The first call opens it.
bool on();
bool fake();            // the emulator's driver
int capability();       // compute capability times ten
std::string who();      // its name, number and capability
[[noreturn]] void skip(const std::string& why);

// Memory that the program and the card both see, and memory of the card alone.
void* share(size_t bytes);
void* make(size_t bytes);
void release(void* p);
void fetch(void* to, const void* from, size_t bytes); // from the program's to the card's
void copy(void* to, const void* from, size_t bytes);  // within the card's

struct Shape {
    unsigned grid[3], block[3];
    size_t shared;
};
// Queues the kernel whose twin on the emulator is given, from the latest text that has it and is for no later capability
// than `most`. What is wrong, or null.
const char* start(void (*twin)(), const Shape& shape, void** arguments, int most);
// Until everything queued is done. A card on which that fails does nothing more: the program ends with 1.
void wait();
// How long the card is busy with what `work` queues.
double milliseconds(const std::function<void()>& work);
} // namespace card
