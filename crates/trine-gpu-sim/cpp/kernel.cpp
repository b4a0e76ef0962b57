// How a kernel is run.
#include "kernel.hpp"
#include "codes.hpp"
#include "fiber.hpp"
#include "memory.hpp"
#include "report.hpp"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <link.h>

namespace sim {

namespace {

constexpr unsigned WARP = 32;
constexpr unsigned SLOT = 64; // bytes that a lane exchanges at most

enum State { READY, AT_BARRIER, AT_EXCHANGE, ENDED };

struct Lane {
    void* stack;
    State state;
    Place place;
    Size thread;
    unsigned warp, lane;
};

// What a warp exchanges: two sets of slots in turn, as the slowest lane may still read the last one.
struct Warp {
    unsigned char slots[2][WARP * SLOT];
};

struct Shared {
    unsigned declaration;
    size_t offset;
};

struct Block {
    const Launch* launch;
    Size index;
    uint32_t number;
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    std::vector<Shared> shared;
    size_t shared_bytes;
    int code; // what ends the kernel; 0 if nothing does
};

Block block;
Lane* lane = nullptr; // the thread that runs
void* outside;        // the stack that the fibers were started from
alignas(128) unsigned char shared_memory[SHARED_BYTES_MAX];
Cell shared_cells[SHARED_BYTES_MAX / 2];
alignas(16) unsigned char arguments[4096];
void* argument_addresses[256];

std::string at(const Lane& lane) {
    return ", thread " + std::to_string(lane.place.thread) + " of block " + std::to_string(block.number) + ": ";
}

void fault(const std::string& what) {
    report(block.launch->kernel->name + "|" + what, named(running.number) + at(*lane) + what);
}

void suspend(State state) {
    lane->state = state;
    sim_switch(&lane->stack, outside);
}

// Ends the kernel from inside a thread, which never goes on.
void stop(int code) {
    block.code = code;
    suspend(ENDED);
}

void entry() {
    block.launch->kernel->run(argument_addresses);
    suspend(ENDED);
}

bool has_shared_address(uintptr_t address) {
    uintptr_t start = uintptr_t(shared_memory);
    return address >= start && address < start + SHARED_BYTES_MAX;
}

void access_shared(size_t offset, size_t bytes, bool writes) {
    if (offset + bytes > block.shared_bytes) return fault("touches shared memory beyond what the block has");
    // Tiles go through here in any case; what plain code has written is not seen then.
    if (!sees_kernels) return;
    for (size_t index = offset / 2; index <= (offset + bytes - 1) / 2; index++) {
        Cell& cell = shared_cells[index];
        uint8_t touched = 3;
        if (2 * index < offset) touched &= 2;
        if (2 * index + 1 >= offset + bytes) touched &= 1;
        if (!writes && (cell.written & touched) != touched) {
            fault("reads shared memory that nothing has written");
            cell.written |= touched;
        }
        if (const char* what = race(cell, touched, writes, lane->place))
            fault(std::string(writes ? "writes" : "reads") + " shared memory: " + what);
        (writes ? cell.write : cell.read) = lane->place;
        (writes ? cell.write_bytes : cell.read_bytes) = touched;
        if (writes) cell.written |= touched;
    }
}

struct Range {
    uintptr_t from, to;
};

// The addresses of this library: constants of kernels and their arguments are there.
Range library() {
    Range found = {0, 0};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* found) {
            Range range = {~uintptr_t(0), 0};
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const auto& part = info->dlpi_phdr[i];
                if (part.p_type != PT_LOAD) continue;
                range.from = std::min<uintptr_t>(range.from, info->dlpi_addr + part.p_vaddr);
                range.to = std::max<uintptr_t>(range.to, info->dlpi_addr + part.p_vaddr + part.p_memsz);
            }
            uintptr_t own = uintptr_t(&block);
            if (own < range.from || own >= range.to) return 0;
            *static_cast<Range*>(found) = range;
            return 1;
        },
        &found);
    return found;
}

bool is_of_library(uintptr_t address) {
    static const Range range = library();
    return address >= range.from && address < range.to;
}

void touch(void* pointer, size_t bytes, bool writes, bool is_aligned) {
    if (!lane) return;
    uintptr_t address = uintptr_t(pointer);
    if (is_in_fiber(lane->place.thread, address)) return;
    bool is_shared = has_shared_address(address);
    if (is_aligned && (is_shared || is_device_memory(address)) && address % bytes)
        fault("touches an address that is no multiple of the element's size");
    if (is_shared) return access_shared(address - uintptr_t(shared_memory), bytes, writes);
    if (is_device_memory(address)) {
        access(address, bytes, writes, &lane->place);
        return;
    }
    if (is_of_library(address)) return;
    fault(writes ? "writes to an address of no device" : "reads from an address of no device");
    stop(ILLEGAL_ADDRESS);
}

void is_of_whole_warp(const char* doing) {
    if (block.lanes.size() < (lane->warp + 1) * WARP)
        fault(std::string(doing) + ", which takes 32 lanes, and its warp has fewer");
}

// What the threads do that wait: a warp goes on when all its lanes have come, the block when all its threads have.
void release_warp(const Lane& last, std::vector<unsigned>& ready) {
    unsigned first = last.warp * WARP, end = std::min<unsigned>(first + WARP, block.lanes.size());
    auto begin = block.lanes.begin();
    auto is = [&](State state) {
        return std::count_if(begin + first, begin + end, [&](Lane& lane) { return lane.state == state; });
    };
    if (is(AT_EXCHANGE) + is(ENDED) != end - first || !is(AT_EXCHANGE)) return;
    if (is(ENDED)) fault("threads of a warp exchange values, and others of it have ended");
    for (unsigned i = first; i < end; i++) {
        if (block.lanes[i].state != AT_EXCHANGE) continue;
        block.lanes[i].place.exchange++;
        block.lanes[i].state = READY;
        ready.push_back(i);
    }
}

// False if nothing is left to do.
bool release_block(std::vector<unsigned>& ready) {
    unsigned waiting = 0, ended = 0;
    for (Lane& other : block.lanes) {
        waiting += other.state == AT_BARRIER;
        ended += other.state == ENDED;
    }
    if (ended == block.lanes.size()) return false;
    lane = &*std::find_if(block.lanes.begin(), block.lanes.end(), [](Lane& lane) { return lane.state != ENDED; });
    if (waiting + ended != block.lanes.size()) {
        fault("threads wait for their warp, and others of it at a barrier: they would hang");
        block.code = LAUNCH_TIMEOUT;
        return false;
    }
    if (ended) fault("threads wait at a barrier, and others of the block have ended");
    for (unsigned i = 0; i < block.lanes.size(); i++) {
        Lane& other = block.lanes[i];
        if (other.state != AT_BARRIER) continue;
        other.place.barrier++;
        other.place.exchange = 0;
        other.state = READY;
        ready.push_back(i);
    }
    return true;
}

void run_block(std::minstd_rand& random) {
    std::vector<unsigned> ready(block.lanes.size());
    for (unsigned i = 0; i < ready.size(); i++) ready[i] = i;
    do {
        while (!ready.empty()) {
            std::swap(ready[random() % ready.size()], ready.back());
            lane = &block.lanes[ready.back()];
            ready.pop_back();
            sim_switch(&outside, lane->stack);
            if (block.code) return;
            if (lane->state != AT_BARRIER) release_warp(*lane, ready);
        }
    } while (release_block(ready));
}

bool prepare(const Launch& launch, uint32_t number) {
    unsigned threads = unsigned(launch.block.all());
    Size index = {number % launch.grid.x, number / launch.grid.x % launch.grid.y, number / launch.grid.x / launch.grid.y};
    memset(shared_cells, 0, (block.shared_bytes + 1) / 2 * sizeof(Cell));
    memset(shared_memory, POISON, launch.shared_bytes);
    block = {&launch, index, number, {}, std::vector<Warp>((threads + WARP - 1) / WARP), {}, launch.shared_bytes, 0};
    for (unsigned i = 0; i < threads; i++) {
        void* stack = prepare_fiber(i, entry);
        if (!stack) return false;
        Size size = launch.block, thread = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        block.lanes.push_back({stack, READY, {number, i, 0, 0}, thread, i / WARP, i % WARP});
    }
    return true;
}

} // namespace

std::vector<Kernel>& kernels() {
    static std::vector<Kernel> all;
    return all;
}

int run(const Launch& launch, std::minstd_rand& random) {
    size_t used = 0;
    for (size_t i = 0; i < launch.arguments.size(); i++) {
        const auto& bytes = launch.arguments[i];
        used = (used + 15) / 16 * 16;
        memcpy(arguments + used, bytes.data(), bytes.size());
        argument_addresses[i] = arguments + used;
        used += bytes.size();
    }
    std::vector<uint32_t> order(launch.grid.all());
    for (uint32_t i = 0; i < order.size(); i++) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    for (uint32_t number : order) {
        if (!prepare(launch, number)) return OUT_OF_MEMORY;
        run_block(random);
        lane = nullptr;
        if (block.code) return block.code;
    }
    return 0;
}

} // namespace sim

using namespace sim;

extern "C" {

unsigned sim_thread(unsigned dimension) { return lane->thread.along(dimension); }
unsigned sim_block(unsigned dimension) { return block.index.along(dimension); }
unsigned sim_threads(unsigned dimension) { return block.launch->block.along(dimension); }
unsigned sim_blocks(unsigned dimension) { return block.launch->grid.along(dimension); }

void sim_barrier() { suspend(AT_BARRIER); }

void* sim_shared(unsigned declaration, unsigned long bytes) {
    for (const Shared& shared : block.shared)
        if (shared.declaration == declaration) return shared_memory + shared.offset;
    size_t offset = (block.shared_bytes + 127) / 128 * 128;
    if (offset + bytes > SHARED_BYTES_MAX || offset + bytes - block.launch->shared_bytes > SHARED_STATIC_BYTES_MAX) {
        fault("declares more shared memory than a block may have");
        stop(INVALID_VALUE);
    }
    block.shared.push_back({declaration, offset});
    block.shared_bytes = offset + bytes;
    memset(shared_memory + offset, POISON, bytes);
    return shared_memory + offset;
}

void* sim_shared_of_launch() { return shared_memory; }

const unsigned char* sim_exchange(const void* in, unsigned bytes) {
    unsigned char* slots = block.warps[lane->warp].slots[lane->place.exchange & 1];
    memcpy(slots + lane->lane * SLOT, in, std::min(bytes, SLOT));
    suspend(AT_EXCHANGE);
    return slots;
}

void sim_shuffle(void* out, const void* in, unsigned bytes, unsigned source) {
    const unsigned char* slots = sim_exchange(in, bytes);
    bool is_there = source < WARP && lane->warp * WARP + source < block.lanes.size();
    if (!is_there) fault("takes a value from a lane that its warp does not have");
    memcpy(out, slots + (is_there ? source : lane->lane) * SLOT, bytes);
}

void sim_mma(float* c, const unsigned* a, const unsigned* b) {
    is_of_whole_warp("multiplies tiles");
    unsigned own[] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned char* slots = sim_exchange(own, sizeof own);
    // Of both factors k lies in lane k % 8 / 2 of four, in the lower half of a word first (PTX ISA 8.0, 9.7.13.4.8).
    auto element = [&](unsigned outer, unsigned word, unsigned k) {
        unsigned both;
        memcpy(&both, slots + (outer * 4 + k % 8 / 2) * SLOT + word * sizeof both, sizeof both);
        both = k % 2 ? both & 0xffff0000u : both << 16;
        float value;
        memcpy(&value, &both, sizeof value);
        return value;
    };
    unsigned row = lane->lane / 4, col = lane->lane % 4 * 2;
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 16; k++)
            c[i] = fmaf(element(row, i / 2 + k / 8 * 2, k), element(col + i % 2, 4 + k / 8, k), c[i]);
}

void sim_load_tiles(unsigned* tiles, const void* row, bool is_turned) {
    is_of_whole_warp("loads tiles");
    uint16_t own[8] = {};
    if (has_shared_address(uintptr_t(row))) {
        touch(const_cast<void*>(row), sizeof own, false, true);
        memcpy(own, row, sizeof own);
    } else {
        fault("loads tiles from memory that is not shared");
    }
    const unsigned char* slots = sim_exchange(own, sizeof own);
    unsigned outer = lane->lane / 4, pair = lane->lane % 4 * 2;
    for (unsigned tile = 0; tile < 4; tile++) {
        uint16_t both[2];
        for (unsigned i = 0; i < 2; i++) {
            unsigned row = is_turned ? pair + i : outer, col = is_turned ? outer : pair + i;
            memcpy(&both[i], slots + (tile * 8 + row) * SLOT + col * sizeof both[i], sizeof both[i]);
        }
        memcpy(&tiles[tile], both, sizeof both);
    }
}

void sim_register(const char* name, void (*run)(void**), const unsigned* sizes, unsigned count) {
    kernels().push_back({name, run, std::vector<unsigned>(sizes, sizes + count)});
}

// What g++ calls for each access of a kernel.
#define ACCESS(bytes)                                                                       \
    void __tsan_read##bytes(void* at) { touch(at, bytes, false, true); }                    \
    void __tsan_write##bytes(void* at) { touch(at, bytes, true, true); }                    \
    void __tsan_unaligned_read##bytes(void* at) { touch(at, bytes, false, false); }         \
    void __tsan_unaligned_write##bytes(void* at) { touch(at, bytes, true, false); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* at, size_t bytes) { touch(at, bytes, false, false); }
void __tsan_write_range(void* at, size_t bytes) { touch(at, bytes, true, false); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
// Runs when the library is opened, if there are kernels with these calls.
void __tsan_init() { sees_kernels = true; }
}
