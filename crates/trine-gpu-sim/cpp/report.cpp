// What the simulator has found, each fault once.
#include "report.hpp"
#include <set>
#include <utility>

namespace sim {

static std::set<std::string> known;
static std::vector<std::string> texts;

void report(const std::string& key, const std::string& text) {
    if (known.insert(key).second) texts.push_back(text);
}

void report(const std::string& text) { report(text, text); }

std::vector<std::string> take_reports() {
    known.clear();
    return std::exchange(texts, {});
}

} // namespace sim
