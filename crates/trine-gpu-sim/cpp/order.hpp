// Which operation knows that which other is done: vector clocks over streams (Mattern 1989).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace sim {

// Of each stream, how many of its operations are known to be done. What is beyond the end is 0.
using Clock = std::vector<uint32_t>;

inline void join(Clock& clock, const Clock& other) {
    if (clock.size() < other.size()) clock.resize(other.size());
    for (size_t i = 0; i < other.size(); i++)
        if (clock[i] < other[i]) clock[i] = other[i];
}

// An operation that has begun: the `time`th of its stream.
struct Operation {
    std::string name;
    uint32_t stream, time;
};

// The operations so far by number; number 0 is none.
extern std::vector<Operation> operations;

// The operation that runs now, and what it knows to be done: itself and what is ordered before it.
struct Running {
    uint32_t number = 0;
    int device = 0;
    Clock seen;
};
extern Running running;

// Begins an operation, which then is the running one.
void begin(const std::string& name, uint32_t stream, uint32_t time, int device, const Clock& seen);

// Whether operation `number` is done before the running one begins, or is the running one.
inline bool is_ordered(uint32_t number) {
    const Operation& other = operations[number];
    return number == 0 || (other.stream < running.seen.size() && running.seen[other.stream] >= other.time);
}

// `name` (stream 3)
std::string named(uint32_t number);

} // namespace sim
