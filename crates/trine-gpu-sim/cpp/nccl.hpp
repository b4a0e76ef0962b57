// What a test asks of the collectives.
#pragma once
#include <cstdint>

namespace sim {

// The call after so many more fails, and with it its communicator.
void fail_collective(int64_t after);
// A call begins so much later than its last rank has come.
void slow_link(double seconds);

} // namespace sim
