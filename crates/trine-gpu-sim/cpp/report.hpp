// What the simulator has found, each fault once.
#pragma once
#include <string>
#include <vector>

namespace sim {

// Adds a fault; `key` is what makes two faults the same one, so that a kernel with 1000 threads has one line.
void report(const std::string& key, const std::string& text);
void report(const std::string& text);
// The faults since the last call.
std::vector<std::string> take_reports();

} // namespace sim
