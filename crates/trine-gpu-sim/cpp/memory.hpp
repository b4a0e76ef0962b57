// The memory of devices and what has touched it: every access is held against the last ones.
#pragma once
#include "order.hpp"
#include <cstddef>

namespace sim {

// A thread of a kernel at a moment: between which barriers of its block and which exchanges of its warp.
struct Place {
    uint32_t block, thread, barrier, exchange;
};

// How far readers of one place are apart that nothing has ordered.
enum Spread : uint8_t { ONE_THREAD, ONE_WARP, ONE_BLOCK, BLOCKS };

// What is known of two neighbouring bytes. All zero: nothing.
struct Cell {
    uint32_t writer, reader; // operations
    Place write, read;       // of threads, if those operations are kernels
    uint8_t written;         // which of the two bytes have a value, as bits
    uint8_t write_bytes, read_bytes; // which of them the last accesses touched, as bits
    Spread spread;           // of the readers since the last write
};

// Whether the accesses of kernels are seen: else nothing is known to be unwritten.
extern bool sees_kernels;

// What memory holds that nothing has written: 3.4e38 in f32 and bf16.
constexpr int POISON = 0x7f;

// The memory of pinned host buffers; others have the number of their device.
constexpr int HOST = -1;

struct Device {
    size_t bytes_total, bytes_free;
    uint32_t peers; // devices whose memory its kernels may touch, as bits
    int error;      // what every call returns since a fault that ends a context; 0 if none
};
extern std::vector<Device> devices;

// Takes `bytes` of a device's memory, or returns 0. No address is ever given twice.
uintptr_t allocate(size_t bytes, int device);
// The running operation is the one that gives a buffer its memory, or takes it: both are ordered with all uses.
void bear(uintptr_t start);
void release(uintptr_t start);
// Frees a buffer for whose uses the host has waited: pinned memory.
bool discard(uintptr_t start);
// The bytes of a buffer that begins here and is not freed; 0 if none does.
size_t size_of_buffer(uintptr_t start);
// Whether all of it lies in one pinned buffer.
bool is_pinned(uintptr_t start, size_t bytes);
// Whether all of it lies in one buffer that is not freed.
bool is_readable(uintptr_t start, size_t bytes);
void name_buffer(uintptr_t start, const std::string& name);
// Gives all memory back but pinned buffers that the host still has. What is asked afterwards does nothing.
void forget();

bool is_device_memory(uintptr_t address);
// An access by the running operation: by one of its threads, or by the whole of it (`place` is null). Returns false
// if it must not be carried out.
bool access(uintptr_t address, size_t bytes, bool writes, const Place* place);

// Holds an access of a thread against the last ones of the same operation; null if it is ordered after them all.
const char* race(Cell& cell, uint8_t bytes, bool writes, const Place& place);

} // namespace sim
