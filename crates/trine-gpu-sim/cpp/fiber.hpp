// Fibers: a stack for each thread of a block, and the step from one to another.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sim {

// Stacks are made once they are needed, each with a page before it that nothing may touch.
constexpr size_t FIBERS_MAX = 1024;

// Keeps this stack's place in `from`, goes on at `to`.
extern "C" __attribute__((visibility("hidden"))) void sim_switch(void** from, void* to);
// A stack that calls `entry`, which does not return, when it is switched to; null if there is no memory.
void* prepare_fiber(size_t fiber, void (*entry)());
// Gives all stacks back, while no fiber runs: each is two mappings, of which a process has 65,530 at most.
void release_fibers();
// Whether an address lies in the stack of a fiber.
bool is_in_fiber(size_t fiber, uintptr_t address);

} // namespace sim
