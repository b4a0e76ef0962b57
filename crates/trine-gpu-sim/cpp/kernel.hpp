// Kernels that were compiled into this library, and how they are run: block by block, a fiber for each thread.
#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace sim {

struct Kernel {
    std::string name;
    void (*run)(void**);
    std::vector<unsigned> sizes; // bytes of each argument
};
// In the order of their source.
std::vector<Kernel>& kernels();

struct Size {
    unsigned x, y, z;
    uint64_t all() const { return uint64_t(x) * y * z; }
    unsigned along(unsigned dimension) const { return dimension == 0 ? x : dimension == 1 ? y : z; }
};

struct Launch {
    const Kernel* kernel;
    Size grid, block;
    unsigned shared_bytes;
    std::vector<std::vector<unsigned char>> arguments;
};

constexpr unsigned THREADS_MAX = 1024;
constexpr unsigned SHARED_STATIC_BYTES_MAX = 48 << 10;
constexpr unsigned SHARED_BYTES_MAX = 227 << 10;

// Runs all blocks and their threads in an order drawn from `random`. Returns the code of the driver for what ended it.
int run(const Launch& launch, std::minstd_rand& random);

} // namespace sim
