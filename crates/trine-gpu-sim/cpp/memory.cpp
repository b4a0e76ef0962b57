// The memory of devices and what has touched it.
#include "memory.hpp"
#include "report.hpp"
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <sys/mman.h>

namespace sim {

std::vector<Device> devices;
bool sees_kernels = false;

namespace {

constexpr size_t SPACE = size_t(1) << 34; // reserved addresses, not memory: a process has room for thousands of these
constexpr size_t ALIGNMENT = 256;         // what CUDA promises
constexpr size_t RED_ZONE = 4096;         // behind each buffer: an access that misses a little hits nothing else
constexpr uint32_t WARP = 32;
constexpr uintptr_t PAGE = 4096;          // of the host

struct Free {
    void operator()(Cell* cells) const { free(cells); }
};

struct Buffer {
    size_t bytes;
    int device;
    uint32_t number;
    std::string name;
    uint32_t born = 0, freed = 0; // operations; 0: not yet
    bool is_live = true;
    std::unique_ptr<Cell[], Free> cells;
    // Earlier readers of a cell that its last reader is not ordered after.
    std::map<size_t, std::vector<uint32_t>> readers;
};

std::map<uintptr_t, Buffer> buffers;
uintptr_t space = 0, next = 0;
uint32_t count = 0;
bool is_forgotten = false;

std::string described(const Buffer& buffer) {
    std::string name = buffer.name.empty() ? "buffer " + std::to_string(buffer.number) : "`" + buffer.name + "`";
    return name + " (" + std::to_string(buffer.bytes) + " bytes)";
}

// Gives back the whole pages of a range, whose contents nobody needs.
void give_back(uintptr_t from, uintptr_t to) {
    uintptr_t first = (from + PAGE - 1) / PAGE * PAGE, last = to / PAGE * PAGE;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

// An access that is reported.
struct Access {
    size_t offset, bytes;
    bool writes;
    const Place* place;
};

// `axpy` (stream 1) reads bytes 0..4 of buffer 2 (4000 bytes)fault
void fault(const Access& access, const Buffer& buffer, const char* what, uint32_t other = 0) {
    std::string key = operations[running.number].name + "|" + std::to_string(buffer.number) + "|" + what + "|" +
                      operations[other].name;
    std::string text = named(running.number) + (access.writes ? " writes" : " reads") + " bytes " +
                       std::to_string(access.offset) + ".." + std::to_string(access.offset + access.bytes) + " of " +
                       described(buffer);
    if (access.place)
        text += ", thread " + std::to_string(access.place->thread) + " of block " + std::to_string(access.place->block);
    text += std::string(": ") + what;
    if (other) text += " " + named(other) + ", and no event orders the two";
    report(key, text);
}

Buffer* find(uintptr_t address, uintptr_t* start) {
    auto after = buffers.upper_bound(address);
    if (after == buffers.begin()) return nullptr;
    --after;
    *start = after->first;
    return &after->second;
}

// An access of a kernel's thread at an address in no buffer's reach.
void stray(size_t bytes, bool writes) {
    report(named(running.number) + (writes ? " writes " : " reads ") + std::to_string(bytes) +
           " bytes outside every buffer");
}

// Whether a buffer may be touched at all by the running operation.
void check_life(const Access& access, const Buffer& buffer) {
    if (buffer.freed && is_ordered(buffer.freed)) fault(access, buffer, "it was freed before");
    else if (buffer.freed) fault(access, buffer, "it is freed by", buffer.freed);
    else if (!buffer.is_live) fault(access, buffer, "it was freed before");
    else if (!buffer.born && buffer.device != HOST) fault(access, buffer, "its allocation has not been reached");
    else if (!is_ordered(buffer.born)) fault(access, buffer, "it is allocated by", buffer.born);
    bool is_near = buffer.device == HOST || buffer.device == running.device ||
                   (devices[running.device].peers >> buffer.device & 1);
    if (!is_near) fault(access, buffer, "it is on another device, to which access was not enabled");
}

void check_streams(const Access& access, Buffer& buffer, size_t index, Cell& cell, uint8_t bytes) {
    if (cell.writer != running.number && (cell.write_bytes & bytes) && !is_ordered(cell.writer))
        fault(access, buffer, access.writes ? "it is also written by" : "it is written by", cell.writer);
    if (!access.writes) return;
    if (cell.reader != running.number && !is_ordered(cell.reader)) fault(access, buffer, "it is read by", cell.reader);
    auto others = buffer.readers.find(index);
    if (others == buffer.readers.end()) return;
    for (uint32_t other : others->second)
        if (!is_ordered(other)) fault(access, buffer, "it is read by", other);
    buffer.readers.erase(others);
}

// The running operation becomes the last reader or writer.
void remember(Buffer& buffer, size_t index, Cell& cell, uint8_t bytes, const Access& access) {
    static const Place whole = {};
    const Place& place = access.place ? *access.place : whole;
    if (access.writes) {
        cell.writer = running.number;
        cell.write = place;
        cell.write_bytes = bytes;
        cell.written |= bytes;
        return;
    }
    if (cell.reader && cell.reader != running.number && !is_ordered(cell.reader))
        buffer.readers[index].push_back(cell.reader);
    cell.reader = running.number;
    cell.read = place;
    cell.read_bytes = bytes;
}

void check_cell(const Access& access, Buffer& buffer, size_t index, uint8_t bytes) {
    Cell& cell = buffer.cells[index];
    // What the host writes into pinned memory is not seen.
    bool sees_writes = sees_kernels && buffer.device != HOST;
    if (!access.writes && sees_writes && (cell.written & bytes) != bytes) {
        fault(access, buffer, "nothing has written it");
        cell.written |= bytes;
    }
    check_streams(access, buffer, index, cell, bytes);
    if (access.place) {
        // Threads of earlier operations are no part of this one's races.
        if (cell.writer != running.number) cell.write_bytes = 0;
        if (cell.reader != running.number) cell.read_bytes = 0, cell.spread = ONE_THREAD;
        if (const char* what = race(cell, bytes, access.writes, *access.place)) fault(access, buffer, what);
    }
    remember(buffer, index, cell, bytes, access);
}

} // namespace

static bool is_ordered_in_block(const Place& first, const Place& second) {
    bool is_same_warp = first.thread / WARP == second.thread / WARP;
    return first.thread == second.thread || first.barrier != second.barrier ||
           (is_same_warp && first.exchange != second.exchange);
}

// The readers so far and one more.
static Spread spread_with(const Cell& cell, uint8_t bytes, const Place& place) {
    if (!cell.read_bytes || !(cell.read_bytes & bytes)) return ONE_THREAD;
    if (cell.spread == BLOCKS || cell.read.block != place.block) return BLOCKS;
    if (cell.read.barrier != place.barrier) return ONE_THREAD;
    if (cell.read.thread / WARP != place.thread / WARP) return ONE_BLOCK;
    if (cell.spread == ONE_BLOCK) return ONE_BLOCK;
    if (cell.read.exchange != place.exchange) return ONE_THREAD;
    return cell.read.thread == place.thread ? cell.spread : ONE_WARP;
}

static bool is_after_readers(const Cell& cell, const Place& place) {
    if (cell.read.block != place.block || cell.spread == BLOCKS) return false;
    if (cell.read.barrier != place.barrier) return true;
    if (cell.spread == ONE_BLOCK) return false;
    bool is_same_warp = cell.read.thread / WARP == place.thread / WARP;
    if (cell.spread == ONE_WARP) return is_same_warp && cell.read.exchange != place.exchange;
    return is_ordered_in_block(cell.read, place);
}

const char* race(Cell& cell, uint8_t bytes, bool writes, const Place& place) {
    if (cell.write_bytes & bytes) {
        if (cell.write.block != place.block)
            return writes ? "another block writes it too" : "another block writes it";
        if (!is_ordered_in_block(cell.write, place))
            return writes ? "another thread writes it too, and no barrier orders the two"
                          : "another thread writes it, and no barrier orders the two";
    }
    if (!writes) {
        cell.spread = spread_with(cell, bytes, place);
        return nullptr;
    }
    if (!(cell.read_bytes & bytes) || is_after_readers(cell, place)) return nullptr;
    bool is_other_block = cell.spread == BLOCKS || cell.read.block != place.block;
    return is_other_block ? "another block reads it" : "another thread reads it, and no barrier orders the two";
}

uintptr_t allocate(size_t bytes, int device) {
    if (!space) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* all = mmap(nullptr, SPACE, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (all == MAP_FAILED) return 0;
        space = uintptr_t(all);
        next = space + RED_ZONE;
    }
    size_t taken = (bytes + RED_ZONE + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (is_forgotten || bytes == 0 || bytes > SPACE || next + taken > space + SPACE) return 0;
    uintptr_t start = next;
    next += taken;
    Buffer buffer;
    buffer.bytes = bytes;
    buffer.device = device;
    buffer.number = ++count;
    buffer.cells.reset(static_cast<Cell*>(calloc((bytes + 1) / 2, sizeof(Cell))));
    if (!buffer.cells) return 0;
    memset(reinterpret_cast<void*>(start), POISON, bytes);
    buffers[start] = std::move(buffer);
    return start;
}

void bear(uintptr_t start) { buffers.at(start).born = running.number; }

void release(uintptr_t start) {
    Buffer& buffer = buffers.at(start);
    access(start, buffer.bytes, true, nullptr);
    buffer.freed = running.number;
    devices[buffer.device].bytes_free += buffer.bytes;
    discard(start);
}

bool discard(uintptr_t start) {
    auto found = buffers.find(start);
    if (found == buffers.end() || !found->second.is_live) return false;
    Buffer& buffer = found->second;
    buffer.is_live = false;
    buffer.cells.reset();
    buffer.readers.clear();
    if (is_forgotten) give_back(start, start + buffer.bytes);
    else memset(reinterpret_cast<void*>(start), POISON, buffer.bytes);
    return true;
}

void forget() {
    is_forgotten = true;
    uintptr_t from = space;
    for (auto& [start, buffer] : buffers) {
        buffer.cells.reset();
        buffer.readers.clear();
        if (buffer.device != HOST || !buffer.is_live) continue;
        give_back(from, start);
        from = start + buffer.bytes;
    }
    give_back(from, next);
}

size_t size_of_buffer(uintptr_t start) {
    auto found = buffers.find(start);
    return found == buffers.end() || !found->second.is_live ? 0 : found->second.bytes;
}

bool is_readable(uintptr_t address, size_t bytes) {
    uintptr_t start;
    Buffer* buffer = find(address, &start);
    return buffer && buffer->is_live && address + bytes <= start + buffer->bytes;
}

bool is_pinned(uintptr_t address, size_t bytes) {
    uintptr_t start;
    return is_readable(address, bytes) && find(address, &start)->device == HOST;
}

void name_buffer(uintptr_t start, const std::string& name) {
    auto found = buffers.find(start);
    if (found != buffers.end()) found->second.name = name;
}

bool is_device_memory(uintptr_t address) { return space && address >= space && address < space + SPACE; }

bool access(uintptr_t address, size_t bytes, bool writes, const Place* place) {
    if (is_forgotten) return false;
    uintptr_t start;
    Buffer* buffer = is_device_memory(address) ? find(address, &start) : nullptr;
    if (bytes == 0) return true;
    if (!buffer || address >= start + buffer->bytes + RED_ZONE) {
        stray(bytes, writes);
        return false;
    }
    Access access = {address - start, bytes, writes, place};
    if (address + bytes > start + buffer->bytes) {
        fault(access, *buffer, "it ends before");
        return false;
    }
    check_life(access, *buffer);
    if (!buffer->is_live) return false;
    size_t first = access.offset / 2, last = (access.offset + bytes - 1) / 2;
    for (size_t index = first; index <= last; index++) {
        uint8_t touched = 3;
        if (2 * index < access.offset) touched &= 2;
        if (2 * index + 1 >= access.offset + bytes) touched &= 1;
        check_cell(access, *buffer, index, touched);
    }
    return true;
}

} // namespace sim
