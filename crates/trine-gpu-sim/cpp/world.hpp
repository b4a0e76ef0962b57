// What a test says and asks: devices, seed, failures, reports, counts.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sim {

// Counts allocations down; true for the one that is to fail.
bool is_allocation_refused();

// Counts launches down; true for the one in whose place the device is lost.
bool is_launch_the_last();

// The machine of a process that nobody has started: what the file `machine` beside the library says, if there is one.
void start_by_file();

} // namespace sim
