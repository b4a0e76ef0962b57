// Images of kernels: the entries of a text in PTX, held against the kernels in this library.
#pragma once
#include "kernel.hpp"
#include <map>

namespace sim {

// The names of the kernels in a PTX text with the bytes of their arguments; empty if it is no PTX.
std::map<std::string, std::vector<unsigned>> entries_of(const char* text);
// Whether a PTX text is of a version that the driver of CUDA 12.0 takes; else `log` says what it is.
bool is_old_enough(const char* text, std::string& log);
// The kernel of this name. Null, and a report, if there is none or its arguments are others: then the text is stale.
const Kernel* kernel_for(const std::string& name, const std::vector<unsigned>& sizes);
// A text in PTX with the entries of this library's kernels, and nothing in them.
std::string image();

} // namespace sim
