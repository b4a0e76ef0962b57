// The functions of the CUDA driver.
#include "codes.hpp"
#include "image.hpp"
#include "kernel.hpp"
#include "memory.hpp"
#include "report.hpp"
#include "streams.hpp"
#include "world.hpp"
#include <cstring>
#include <map>
#include <utility>

using namespace sim;

namespace {

// A flag of cuEventCreate.
constexpr unsigned EVENT_DISABLE_TIMING = 2;

struct Event {
    std::shared_ptr<Mark> mark; // null until it is recorded
    bool is_open = true;
    bool tells_time = true;
};

struct Function {
    const Kernel* kernel;
    int shared_bytes_max = SHARED_STATIC_BYTES_MAX;
};

struct Module {
    std::map<std::string, std::vector<unsigned>> entries;
    std::map<std::string, std::unique_ptr<Function>> functions;
    bool is_open = true;
};

// Handles stay valid addresses after they are closed, so that a use of one is told and not a crash.
std::map<void*, std::unique_ptr<Event>> events;
std::map<void*, std::unique_ptr<Module>> modules;
std::map<void*, Function*> functions;
bool is_initialized = false;

void* context_of(int device) { return reinterpret_cast<void*>(uintptr_t(0x1000 + device * 16)); }

int device_of(void* context) {
    uintptr_t offset = uintptr_t(context) - 0x1000;
    bool is_one = context && offset % 16 == 0 && offset / 16 < devices.size();
    return is_one ? int(offset / 16) : -1;
}

bool is_device(int device) { return device >= 0 && device < int(devices.size()); }

// What a call finds wrong before it does anything: no start, no context, a context that has ended.
int state() {
    if (!is_initialized) return NOT_INITIALIZED;
    if (current < 0) return INVALID_CONTEXT;
    return devices[current].error;
}

int refuse(int code, const char* function, const std::string& what) {
    report(std::string(function) + ": " + what);
    return code;
}

Event* event_of(void* handle) {
    auto found = events.find(handle);
    return found == events.end() || !found->second->is_open ? nullptr : found->second.get();
}

template <class T> std::unique_ptr<T>& keep(std::map<void*, std::unique_ptr<T>>& all, void** handle) {
    auto made = std::make_unique<T>();
    *handle = made.get();
    return all[*handle] = std::move(made);
}

// A copy when its turn comes. An access that must not be is reported and left out.
int copy_now(uintptr_t to, uintptr_t from, size_t bytes) {
    bool can_read = access(from, bytes, false, nullptr);
    if (access(to, bytes, true, nullptr) && can_read) memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
    return 0;
}

int copy(const char* function, const char* name, uintptr_t to, uintptr_t from, size_t bytes, void* stream) {
    if (int code = state()) return code;
    counters.copies++;
    return run_on(stream, function, name, [=] { return copy_now(to, from, bytes); });
}

// Memory of the host that is not pinned: a real driver stops the host, or reads it at another time.
void check_pinned(const char* function, const void* address, size_t bytes) {
    if (bytes && !is_pinned(uintptr_t(address), bytes))
        report(std::string(function) + ": the memory of the host is not pinned, so the copy stops the host");
}

int free_now(uintptr_t address) {
    if (!size_of_buffer(address)) report(named(running.number) + ": the buffer was freed before");
    else release(address);
    return 0;
}

// What a compiler refuses goes where the options say: 5 is the address, 6 the bytes that are there.
void write_log(const std::string& log, unsigned count, int* options, void** values) {
    char* to = nullptr;
    size_t room = 0;
    for (unsigned i = 0; i < count; i++) {
        if (options[i] == 5) to = static_cast<char*>(values[i]);
        if (options[i] == 6) room = size_t(values[i]);
    }
    if (to && room) snprintf(to, room, "%s", log.c_str());
}

int check_launch(const Launch& launch, const Function& function) {
    const Size &grid = launch.grid, &block = launch.block;
    bool has_grid = grid.all() && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
    bool has_block = block.all() && block.all() <= THREADS_MAX && block.z <= 64;
    if (!has_grid || !has_block) return refuse(INVALID_VALUE, "cuLaunchKernel", "a grid or a block of an impossible size");
    if (int(launch.shared_bytes) > function.shared_bytes_max)
        return refuse(INVALID_VALUE, "cuLaunchKernel", "more shared memory than the kernel may have");
    return 0;
}

} // namespace

#define LOCKED std::unique_lock<std::mutex> held(lock)
#define READY                           \
    LOCKED;                             \
    if (int code = state()) return code

#pragma GCC visibility push(default)
extern "C" {

int cuInit(unsigned flags) {
    LOCKED;
    if (flags) return INVALID_VALUE;
    if (devices.empty()) start_by_file();
    if (devices.empty()) return NO_DEVICE;
    is_initialized = true;
    return 0;
}
int cuDriverGetVersion(int* version) { return *version = 12000, 0; }
int cuGetErrorName(int code, const char** name) {
    *name = code_name(code);
    return *name ? 0 : INVALID_VALUE;
}
int cuGetErrorString(int code, const char** text) {
    *text = code_text(code);
    return *text ? 0 : INVALID_VALUE;
}

int cuDeviceGetCount(int* count) { return *count = int(devices.size()), is_initialized ? 0 : NOT_INITIALIZED; }
int cuDeviceGet(int* device, int index) {
    if (!is_device(index)) return INVALID_DEVICE;
    return *device = index, 0;
}
int cuDeviceGetName(char* name, int len, int device) {
    if (!is_device(device)) return INVALID_DEVICE;
    snprintf(name, size_t(len), "simulated GPU");
    return 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    if (!is_device(device)) return INVALID_DEVICE;
    return *bytes = devices[device].bytes_total, 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (!is_device(device)) return INVALID_DEVICE;
    switch (attribute) {
    case 16: return *value = 2, 0; // multiprocessors
    case 75: return *value = 8, 0; // capability 8.0
    case 76: return *value = 0, 0;
    case 97: return *value = SHARED_BYTES_MAX, 0;
    default: return INVALID_VALUE;
    }
}
int cuDeviceGetPCIBusId(char* text, int len, int device) {
    if (!is_device(device)) return INVALID_DEVICE;
    snprintf(text, size_t(len), "0000:%02x:00.0", device + 1);
    return 0;
}
int cuDeviceCanAccessPeer(int* can, int device, int peer) {
    if (!is_device(device) || !is_device(peer)) return INVALID_DEVICE;
    return *can = device != peer, 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
    LOCKED;
    if (!is_initialized) return NOT_INITIALIZED;
    if (!is_device(device)) return INVALID_DEVICE;
    return *context = context_of(device), devices[device].error;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return is_device(device) ? 0 : INVALID_DEVICE; }
int cuCtxSetCurrent(void* context) {
    LOCKED;
    current = device_of(context);
    if (context && current < 0) return INVALID_CONTEXT;
    return 0;
}
int cuCtxEnablePeerAccess(void* peer, unsigned flags) {
    READY;
    int other = device_of(peer);
    if (flags || other < 0) return INVALID_VALUE;
    if (other == current) return PEER_ACCESS_UNSUPPORTED;
    uint32_t bit = 1u << other;
    if (devices[current].peers & bit) return PEER_ACCESS_ALREADY_ENABLED;
    devices[current].peers |= bit;
    return 0;
}
int cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    READY;
    return *least = 0, *greatest = -5, 0;
}

int cuStreamCreateWithPriority(void** stream, unsigned flags, int) {
    READY;
    if (flags != 1) return refuse(INVALID_VALUE, "cuStreamCreateWithPriority", "a stream that the default stream stops");
    return *stream = make_stream(current), 0;
}
int cuStreamDestroy_v2(void* handle) {
    LOCKED;
    Stream* stream = stream_of(handle);
    if (!stream) return refuse(INVALID_HANDLE, "cuStreamDestroy", "the stream is closed, or the default stream");
    stream->is_open = false; // what it has queued still runs
    return 0;
}
int cuStreamSynchronize(void* handle) {
    READY;
    Stream* stream = stream_of(handle);
    if (!stream) return refuse(INVALID_HANDLE, "cuStreamSynchronize", "the stream is closed, or the default stream");
    counters.host_waits++;
    auto mark = post_mark(*stream);
    int code = run_until(held, stream->device, [&] { return mark->is_reached; });
    if (!code) join(host, mark->seen);
    return code;
}
int cuStreamQuery(void* handle) {
    READY;
    Stream* stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->done == stream->posted) return join(host, stream->seen), 0;
    step();
    return devices[current].error ? devices[current].error : NOT_READY;
}
int cuStreamWaitEvent(void* handle, void* event, unsigned) {
    READY;
    Stream* stream = stream_of(handle);
    Event* waited = event_of(event);
    if (!stream || !waited) return refuse(INVALID_HANDLE, "cuStreamWaitEvent", "the stream or the event is closed");
    if (!waited->mark) return refuse(0, "cuStreamWaitEvent", "the event was never recorded, so nothing is waited for");
    post_wait(*stream, waited->mark);
    return 0;
}

int cuEventCreate(void** event, unsigned flags) {
    READY;
    keep(events, event)->tells_time = !(flags & EVENT_DISABLE_TIMING);
    return 0;
}
int cuEventDestroy_v2(void* handle) {
    LOCKED;
    Event* event = event_of(handle);
    if (!event) return refuse(INVALID_HANDLE, "cuEventDestroy", "the event is closed");
    event->is_open = false;
    return 0;
}
int cuEventRecord(void* handle, void* on) {
    READY;
    Event* event = event_of(handle);
    Stream* stream = stream_of(on);
    if (!stream || !event) return refuse(INVALID_HANDLE, "cuEventRecord", "the stream or the event is closed");
    event->mark = post_mark(*stream);
    return 0;
}
int cuEventQuery(void* handle) {
    READY;
    Event* event = event_of(handle);
    if (!event) return INVALID_HANDLE;
    if (!event->mark) return 0;
    if (event->mark->is_reached) return join(host, event->mark->seen), 0;
    step();
    return devices[current].error ? devices[current].error : NOT_READY;
}
int cuEventSynchronize(void* handle) {
    READY;
    Event* event = event_of(handle);
    if (!event) return refuse(INVALID_HANDLE, "cuEventSynchronize", "the event is closed");
    auto mark = event->mark;
    if (!mark) return refuse(0, "cuEventSynchronize", "the event was never recorded, so nothing is waited for");
    counters.host_waits++;
    int code = run_until(held, current, [&] { return mark->is_reached; });
    if (!code) join(host, mark->seen);
    return code;
}
// There is no time here: a step of the clock for each operation.
int cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    READY;
    Event *first = event_of(from), *last = event_of(to);
    if (!first || !last || !first->mark || !last->mark) return INVALID_HANDLE;
    if (!first->tells_time || !last->tells_time)
        return refuse(INVALID_HANDLE, "cuEventElapsedTime", "one of the events was made to tell no time");
    if (!first->mark->is_reached || !last->mark->is_reached) return NOT_READY;
    auto steps = [](const Clock& clock) { uint64_t sum = 0; for (uint32_t time : clock) sum += time; return sum; };
    return *milliseconds = float(steps(last->mark->seen)) - float(steps(first->mark->seen)), 0;
}

int cuMemGetInfo_v2(size_t* free, size_t* total) {
    READY;
    return *free = devices[current].bytes_free, *total = devices[current].bytes_total, 0;
}
int cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
    READY;
    if (bytes == 0) return INVALID_VALUE;
    if (is_allocation_refused()) return OUT_OF_MEMORY;
    // What is freed in a stream is free when the stream has come there.
    while (devices[current].bytes_free < bytes && step()) {}
    if (devices[current].bytes_free < bytes) return OUT_OF_MEMORY;
    uintptr_t start = allocate(bytes, current);
    if (!start) return OUT_OF_MEMORY;
    int code = run_on(stream, "cuMemAllocAsync", "alloc", [=] { return bear(start), 0; });
    if (code) return discard(start), code;
    devices[current].bytes_free -= bytes;
    counters.allocations++;
    return *address = start, 0;
}
int cuMemFreeAsync(uint64_t address, void* stream) {
    READY;
    return run_on(stream, "cuMemFreeAsync", "free", [=] { return free_now(address); });
}
int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void* stream) {
    READY;
    return run_on(stream, "cuMemsetD8Async", "set", [=] {
        if (access(address, bytes, true, nullptr)) memset(reinterpret_cast<void*>(address), value, bytes);
        return 0;
    });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    LOCKED;
    check_pinned("cuMemcpyHtoDAsync", from, bytes);
    return copy("cuMemcpyHtoDAsync", "copy to device", to, uintptr_t(from), bytes, stream);
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    LOCKED;
    check_pinned("cuMemcpyDtoHAsync", to, bytes);
    return copy("cuMemcpyDtoHAsync", "copy to host", uintptr_t(to), from, bytes, stream);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    LOCKED;
    if (to < from + bytes && from < to + bytes) report("cuMemcpyDtoDAsync: the two ranges overlap");
    return copy("cuMemcpyDtoDAsync", "copy", to, from, bytes, stream);
}
int cuMemcpyPeerAsync(uint64_t to, void* to_context, uint64_t from, void* from_context, size_t bytes, void* stream) {
    READY;
    int one = device_of(to_context), other = device_of(from_context);
    if (one < 0 || other < 0) return INVALID_CONTEXT;
    counters.copies++;
    return run_on(stream, "cuMemcpyPeerAsync", "copy between", [=] {
        // The driver reaches both devices, whatever was enabled.
        uint32_t& peers = devices[running.device].peers;
        uint32_t enabled = std::exchange(peers, peers | 1u << one | 1u << other);
        copy_now(to, from, bytes);
        devices[running.device].peers = enabled;
        return 0;
    });
}
int cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    READY;
    uintptr_t start = allocate(bytes, HOST);
    if (!start) return OUT_OF_MEMORY;
    counters.allocations++;
    return *address = reinterpret_cast<void*>(start), 0;
}
int cuMemFreeHost(void* address) {
    LOCKED;
    return discard(uintptr_t(address)) ? 0 : refuse(INVALID_VALUE, "cuMemFreeHost", "the memory is no pinned buffer");
}
int cuDeviceGetDefaultMemPool(void** pool, int device) {
    if (!is_device(device)) return INVALID_DEVICE;
    return *pool = context_of(device), 0;
}
int cuMemPoolSetAttribute(void* pool, int attribute, void*) {
    return device_of(pool) < 0 || attribute != 4 ? INVALID_VALUE : 0;
}

int cuModuleLoadDataEx(void** module, const void* image, unsigned count, int* options, void** values) {
    READY;
    auto entries = entries_of(static_cast<const char*>(image));
    if (entries.empty()) return INVALID_PTX;
    std::string log;
    if (!is_old_enough(static_cast<const char*>(image), log))
        return write_log(log, count, options, values), UNSUPPORTED_PTX_VERSION;
    keep(modules, module)->entries = std::move(entries);
    return 0;
}
int cuModuleUnload(void* handle) {
    LOCKED;
    auto found = modules.find(handle);
    if (found == modules.end() || !found->second->is_open) return INVALID_HANDLE;
    found->second->is_open = false;
    return 0;
}
int cuModuleGetFunction(void** function, void* handle, const char* name) {
    READY;
    auto found = modules.find(handle);
    if (found == modules.end() || !found->second->is_open) return INVALID_HANDLE;
    auto entry = found->second->entries.find(name);
    if (entry == found->second->entries.end()) return NOT_FOUND;
    const Kernel* kernel = kernel_for(name, entry->second);
    if (!kernel) return INVALID_IMAGE;
    auto& made = found->second->functions[name];
    if (!made) made.reset(new Function{kernel});
    *function = made.get();
    functions[*function] = made.get();
    return 0;
}
int cuFuncGetAttribute(int* value, int attribute, void* handle) {
    LOCKED;
    auto found = functions.find(handle);
    if (found == functions.end()) return INVALID_HANDLE;
    switch (attribute) {
    case 0: return *value = THREADS_MAX, 0;
    case 8: return *value = found->second->shared_bytes_max, 0;
    default: return INVALID_VALUE;
    }
}
int cuFuncSetAttribute(void* handle, int attribute, int value) {
    LOCKED;
    auto found = functions.find(handle);
    if (found == functions.end()) return INVALID_HANDLE;
    if (attribute != 8 || value < 0 || value > int(SHARED_BYTES_MAX)) return INVALID_VALUE;
    found->second->shared_bytes_max = value;
    return 0;
}
int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void* stream, void** arguments, void** extra) {
    READY;
    auto found = functions.find(handle);
    if (found == functions.end()) return INVALID_HANDLE;
    const Kernel* kernel = found->second->kernel;
    Launch launch = {kernel, {gx, gy, gz}, {bx, by, bz}, shared_bytes, {}};
    if (extra || (!arguments && !kernel->sizes.empty())) return INVALID_VALUE;
    if (int code = check_launch(launch, *found->second)) return code;
    for (size_t i = 0; i < kernel->sizes.size(); i++) {
        auto* bytes = static_cast<unsigned char*>(arguments[i]);
        launch.arguments.emplace_back(bytes, bytes + kernel->sizes[i]);
    }
    if (is_launch_the_last()) return devices[current].error = DEVICE_UNAVAILABLE;
    counters.launches++;
    return run_on(stream, "cuLaunchKernel", kernel->name, [launch] { return run(launch, random_source); });
}
}
#pragma GCC visibility pop
