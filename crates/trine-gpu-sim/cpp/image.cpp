// Images of kernels.
#include "image.hpp"
#include "report.hpp"
#include <cstdio>
#include <cstring>
#include <sstream>

namespace sim {

// `.param .u64 .ptr name` has 8 bytes, `.param .align 4 .b8 name[12]` 12.
static unsigned size_of(const std::string& parameter) {
    static const std::map<std::string, unsigned> types = {
        {".u64", 8}, {".s64", 8}, {".b64", 8}, {".f64", 8}, {".u32", 4}, {".s32", 4}, {".b32", 4}, {".f32", 4},
        {".u16", 2}, {".s16", 2}, {".b16", 2}, {".f16", 2}, {".u8", 1},  {".s8", 1},  {".b8", 1},
    };
    std::istringstream words(parameter);
    unsigned size = 0;
    for (std::string word; words >> word;)
        if (auto type = types.find(word); type != types.end()) size = type->second;
    size_t bracket = parameter.find('[');
    return bracket == std::string::npos ? size : size * unsigned(strtoul(parameter.c_str() + bracket + 1, nullptr, 10));
}

std::map<std::string, std::vector<unsigned>> entries_of(const char* text) {
    std::map<std::string, std::vector<unsigned>> entries;
    std::string all = text;
    if (all.find(".version") == std::string::npos || all.find(".target") == std::string::npos) return entries;
    for (size_t at = all.find(".entry"); at != std::string::npos; at = all.find(".entry", at + 1)) {
        size_t open = all.find('(', at), close = all.find(')', at);
        if (open == std::string::npos || close == std::string::npos || close < open) return {};
        std::istringstream head(all.substr(at + strlen(".entry"), open - at - strlen(".entry")));
        std::istringstream parameters(all.substr(open + 1, close - open - 1));
        std::string name, parameter;
        head >> name;
        std::vector<unsigned>& sizes = entries[name];
        while (std::getline(parameters, parameter, ','))
            if (unsigned size = size_of(parameter)) sizes.push_back(size);
    }
    return entries;
}

bool is_old_enough(const char* text, std::string& log) {
    const char* version = strstr(text, ".version");
    unsigned major = 0, minor = 0;
    if (version && sscanf(version, ".version %u.%u", &major, &minor) == 2 && (major < 8 || (major == 8 && minor == 0)))
        return true;
    log = "the PTX is of version " + std::to_string(major) + "." + std::to_string(minor) + ", and this driver takes 8.0";
    return false;
}

static std::string listed(const std::vector<unsigned>& sizes) {
    std::string text;
    for (unsigned size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return "(" + text + ")";
}

const Kernel* kernel_for(const std::string& name, const std::vector<unsigned>& sizes) {
    for (const Kernel& kernel : kernels()) {
        if (kernel.name != name) continue;
        if (kernel.sizes == sizes) return &kernel;
        report("`" + name + "` takes arguments of " + listed(kernel.sizes) + " bytes in the source and of " +
               listed(sizes) + " in the image: the image is stale");
        return nullptr;
    }
    report("`" + name + "` is in the image and not in the source: the image is stale");
    return nullptr;
}

std::string image() {
    std::string text = ".version 8.0\n.target sm_80\n.address_size 64\n";
    for (const Kernel& kernel : kernels()) {
        text += "\n.visible .entry " + kernel.name + "(";
        for (size_t i = 0; i < kernel.sizes.size(); i++) {
            unsigned size = kernel.sizes[i];
            std::string name = kernel.name + "_param_" + std::to_string(i);
            bool is_number = size == 1 || size == 2 || size == 4 || size == 8;
            std::string bytes = std::to_string(size);
            text += i ? ",\n" : "\n";
            text += is_number ? "\t.param .b" + std::to_string(8 * size) + " " + name
                              : "\t.param .align 8 .b8 " + name + "[" + bytes + "]";
        }
        text += "\n)\n{\n\tret;\n}\n";
    }
    return text;
}

} // namespace sim
