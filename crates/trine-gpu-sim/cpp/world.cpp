// What a test says and asks. Every test has a library of its own, so this is the state of one test.
#include "world.hpp"
#include "codes.hpp"
#include "fiber.hpp"
#include "image.hpp"
#include "memory.hpp"
#include "nccl.hpp"
#include "report.hpp"
#include "streams.hpp"
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <string>
#include <unistd.h>

namespace sim {

// Below 0: none will fail.
static int64_t allocations_left = -1, launches_left = -1;

bool is_allocation_refused() {
    if (allocations_left < 0) return false;
    return allocations_left-- == 0;
}

bool is_launch_the_last() {
    if (launches_left < 0) return false;
    return launches_left-- == 0;
}

// Copies as much as there is room for; returns how much there is.
static size_t give(const std::string& text, char* to, size_t room) {
    memcpy(to, text.data(), text.size() < room ? text.size() : room);
    return text.size();
}

// Comes before cuInit.
static void start(unsigned count, size_t bytes, uint64_t seed, double patience) {
    std::lock_guard<std::mutex> held(lock);
    devices.assign(count, {bytes, bytes, 0, 0});
    random_source.seed(unsigned(seed * 0x9e3779b97f4a7c15u >> 33) | 1);
    patience_seconds = patience;
}

static std::string beside_library(const char* name) {
    Dl_info found;
    if (!dladdr(&allocations_left, &found)) return name;
    std::string path = found.dli_fname;
    return path.substr(0, path.rfind('/') + 1) + name;
}

static bool is_started_by_file = false;

void start_by_file() {
    std::ifstream file(beside_library("machine"));
    unsigned count = 0;
    size_t bytes = 0;
    uint64_t seed = 0;
    double patience = 0;
    if (!(file >> count >> bytes >> seed >> patience)) return;
    devices.assign(count, {bytes, bytes, 0, 0});
    random_source.seed(unsigned(seed * 0x9e3779b97f4a7c15u >> 33) | 1);
    patience_seconds = patience;
    is_started_by_file = true;
    std::string fault;
    for (int64_t after = 0; file >> fault >> after;) (fault == "lose" ? launches_left : allocations_left) = after;
}

// At the end of such a process its reports and counters are in files of its own beside the library, in any case.
__attribute__((destructor)) static void leave_reports() {
    if (!is_started_by_file) return;
    std::ofstream file(beside_library("reports.") + std::to_string(getpid()));
    for (const std::string& report : take_reports()) file << report << "\n";
    std::ofstream numbers(beside_library("counters.") + std::to_string(getpid()));
    numbers << counters.allocations << " " << counters.host_waits << " " << counters.launches << " " << counters.copies;
}

// The next reports, a line each; their bytes, or 0 if there are none. What has no room stays.
static size_t reports(char* to, size_t room) {
    std::lock_guard<std::mutex> held(lock);
    static std::string text;
    for (const std::string& report : take_reports()) text += report + "\n";
    size_t bytes = give(text, to, room);
    if (bytes <= room) text.clear();
    return bytes;
}

static size_t image_of_kernels(char* to, size_t room) { return give(image(), to, room); }

static void count(Counters* to) {
    std::lock_guard<std::mutex> held(lock);
    *to = counters;
}

static void name(uint64_t address, const char* text) {
    std::lock_guard<std::mutex> held(lock);
    name_buffer(address, text);
}

// The allocation after so many more fails.
static void refuse_allocation(int64_t after) {
    std::lock_guard<std::mutex> held(lock);
    allocations_left = after;
}

// Every later call that reaches the device fails.
static void lose_device(unsigned device) {
    std::lock_guard<std::mutex> held(lock);
    if (device < devices.size()) devices[device].error = DEVICE_UNAVAILABLE;
}

static void fail_call(int64_t after) {
    std::lock_guard<std::mutex> held(lock);
    fail_collective(after);
}

static void delay_calls(double seconds) {
    std::lock_guard<std::mutex> held(lock);
    slow_link(seconds);
}

// The test needs the machine no more. What it still asks is answered.
static void rest() {
    std::lock_guard<std::mutex> held(lock);
    release_fibers();
    forget();
}

// The same as `Functions` of `simulator.rs`.
struct Functions {
    void (*start)(unsigned, size_t, uint64_t, double);
    size_t (*reports)(char*, size_t);
    size_t (*image)(char*, size_t);
    void (*count)(Counters*);
    void (*name)(uint64_t, const char*);
    void (*refuse_allocation)(int64_t);
    void (*lose_device)(unsigned);
    void (*fail_call)(int64_t);
    void (*slow_link)(double);
    void (*rest)();
};

} // namespace sim

extern "C" __attribute__((visibility("default"))) const sim::Functions sim_functions = {
    sim::start, sim::reports, sim::image_of_kernels, sim::count, sim::name, sim::refuse_allocation, sim::lose_device,
    sim::fail_call, sim::delay_calls, sim::rest,
};
