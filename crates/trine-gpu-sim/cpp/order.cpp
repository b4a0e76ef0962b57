// Which operation knows that which other is done.
#include "order.hpp"

namespace sim {

std::vector<Operation> operations(1);
Running running;

void begin(const std::string& name, uint32_t stream, uint32_t time, int device, const Clock& seen) {
    operations.push_back({name, stream, time});
    running = {uint32_t(operations.size() - 1), device, seen};
}

std::string named(uint32_t number) {
    const Operation& operation = operations[number];
    return "`" + operation.name + "` (stream " + std::to_string(operation.stream) + ")";
}

} // namespace sim
