// Fibers.
#include "fiber.hpp"
#include <sys/mman.h>

// The registers that a call keeps (System V ABI, x86-64), then the stack.
asm(R"(
    .text
    .globl sim_switch
    .hidden sim_switch
    .type sim_switch, @function
sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size sim_switch, .-sim_switch
)");

namespace sim {

static constexpr size_t PAGE = 4096;
static constexpr size_t STACK = 16 * PAGE;
static constexpr size_t REGISTERS = 6;
static uintptr_t stacks = 0; // addresses for all, memory for the first `made`
static size_t made = 0;

static uintptr_t stack_of(size_t fiber) { return stacks + fiber * (PAGE + STACK) + PAGE; }

static bool make_stack(size_t fiber) {
    if (!stacks) {
        size_t bytes = FIBERS_MAX * (PAGE + STACK);
        void* all = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (all == MAP_FAILED) return false;
        stacks = uintptr_t(all);
    }
    return mprotect(reinterpret_cast<void*>(stack_of(fiber)), STACK, PROT_READ | PROT_WRITE) == 0;
}

void* prepare_fiber(size_t fiber, void (*entry)()) {
    for (; made <= fiber; made++)
        if (!make_stack(made)) return nullptr;
    // A function begins with its stack 8 bytes off a multiple of 16.
    uintptr_t* place = reinterpret_cast<uintptr_t*>(stack_of(fiber) + STACK - 16);
    *place = uintptr_t(entry);
    for (size_t i = 0; i < REGISTERS; i++) *--place = 0;
    return place;
}

void release_fibers() {
    if (stacks) munmap(reinterpret_cast<void*>(stacks), FIBERS_MAX * (PAGE + STACK));
    stacks = 0;
    made = 0;
}

bool is_in_fiber(size_t fiber, uintptr_t address) {
    uintptr_t stack = stack_of(fiber);
    return address >= stack && address < stack + STACK;
}

} // namespace sim
