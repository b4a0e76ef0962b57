// The functions of cuBLASLt: products of matrices by columns, in f32 and bf16, summed in f32.
//
// An element is one chain of fused multiply-adds over ascending k that starts at zero, at the bias, or at the old value:
// the order of the CPU's kernels, so that the bits agree.
#include "memory.hpp"
#include "report.hpp"
#include "streams.hpp"
#include <cmath>
#include <cstring>
#include <map>

using namespace sim;

namespace {

enum Status { NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };

constexpr int F32 = 0, BF16 = 14;      // cudaDataType
constexpr int COMPUTE_F32 = 68;        // cublasComputeType_t
constexpr int DEFAULT = 1, BIAS = 4;   // cublasLtEpilogue_t
constexpr size_t WORKSPACE_BYTES = 1024; // what an algorithm takes if it may

struct Product {
    int transposes_a = 0, transposes_b = 0, epilogue = DEFAULT;
    uintptr_t bias = 0;
};

struct Layout {
    int element;
    uint64_t rows, columns;
    int64_t leading;
    int batch = 1;
    int64_t stride = 0;
};

struct Preference {
    uint64_t workspace_bytes = 0;
    uint32_t alignments[4] = {256, 256, 256, 256}; // of A, B, C and D
};

// What a search writes: which product an algorithm is for, the workspace that it takes, and the alignments that it
// counts on.
struct Algorithm {
    uint64_t data[8];
};

struct Found {
    Algorithm algorithm;
    size_t workspace_bytes;
    int code;
    float waves;
    int reserved[4];
};

std::map<void*, std::unique_ptr<Product>> products;
std::map<void*, std::unique_ptr<Layout>> layouts;
std::map<void*, std::unique_ptr<Preference>> preferences;
std::map<void*, std::unique_ptr<int>> handles; // the device of each

template <class T> int make(std::map<void*, std::unique_ptr<T>>& all, void** handle, T value) {
    auto made = std::make_unique<T>(value);
    *handle = made.get();
    all[*handle] = std::move(made);
    return 0;
}

template <class T> T* find(std::map<void*, std::unique_ptr<T>>& all, void* handle) {
    auto found = all.find(handle);
    return found == all.end() ? nullptr : found->second.get();
}

template <class T> int drop(std::map<void*, std::unique_ptr<T>>& all, void* handle) {
    return all.erase(handle) ? 0 : INVALID_VALUE;
}

int refuse(const char* function, const std::string& what) {
    report(std::string(function) + ": " + what);
    return INVALID_VALUE;
}

// A product with its matrices, as a search and a call see it.
struct Shape {
    Product product;
    Layout a, b, c, d;
    uint64_t k() const { return product.transposes_a ? a.rows : a.columns; }
};

size_t bytes_of(int element) { return element == F32 ? 4 : element == BF16 ? 2 : 0; }

// Null if the product can be computed.
const char* fault(const Shape& shape) {
    const auto& [product, a, b, c, d] = shape;
    uint64_t m = product.transposes_a ? a.columns : a.rows, k = shape.k();
    uint64_t n = product.transposes_b ? b.rows : b.columns, k_of_b = product.transposes_b ? b.columns : b.rows;
    if (k != k_of_b || m != d.rows || n != d.columns || c.rows != m || c.columns != n) return "the shapes do not fit";
    for (const Layout* layout : {&a, &b, &c, &d}) {
        if (layout->leading < int64_t(layout->rows)) return "a leading dimension is smaller than the rows";
        if (layout->batch != d.batch) return "the matrices have different batches";
    }
    if (a.element != b.element) return "A and B have different elements";
    return nullptr;
}

bool is_supported(const Shape& shape) {
    const auto& [product, a, b, c, d] = shape;
    bool has_elements = bytes_of(a.element) && bytes_of(b.element) && bytes_of(d.element) && c.element == d.element &&
                        (a.element == BF16 || d.element == F32);
    return has_elements && (product.epilogue == DEFAULT || product.epilogue == BIAS);
}

// What an algorithm was searched for; two products with one value take the same.
uint64_t signature(const Shape& shape) {
    uint64_t hash = 0xcbf29ce484222325;
    auto add = [&](uint64_t value) { hash = (hash ^ value) * 0x100000001b3; };
    add(shape.product.transposes_a), add(shape.product.transposes_b), add(shape.product.epilogue);
    for (const Layout* layout : {&shape.a, &shape.b, &shape.c, &shape.d}) {
        add(layout->element), add(layout->rows), add(layout->columns), add(layout->leading);
        add(layout->batch), add(layout->stride);
    }
    return hash;
}

float load(uintptr_t matrix, int element, uint64_t index) {
    if (element == F32) return reinterpret_cast<const float*>(matrix)[index];
    uint32_t bits = uint32_t(reinterpret_cast<const uint16_t*>(matrix)[index]) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// bf16 to the nearest, ties to even.
void store(uintptr_t matrix, int element, uint64_t index, float value) {
    if (element == F32) {
        reinterpret_cast<float*>(matrix)[index] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = value != value ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
    reinterpret_cast<uint16_t*>(matrix)[index] = uint16_t(bits >> 16);
}

// One access for each column, as what lies between two columns is not touched. False if one must not be.
bool touch(uintptr_t matrix, const Layout& layout, bool writes) {
    size_t bytes = bytes_of(layout.element);
    bool is_fine = true;
    for (int i = 0; i < layout.batch; i++)
        for (uint64_t column = 0; column < layout.columns; column++) {
            uintptr_t start = matrix + (i * layout.stride + int64_t(column) * layout.leading) * int64_t(bytes);
            is_fine = access(start, layout.rows * bytes, writes, nullptr) && is_fine;
        }
    return is_fine;
}

struct Call {
    Shape shape;
    float alpha, beta;
    uintptr_t a, b, c, d, workspace;
    size_t workspace_bytes;
};

void compute(const Call& call, int batch) {
    const auto& [product, la, lb, lc, ld] = call.shape;
    auto at = [&](uintptr_t matrix, const Layout& layout) {
        return matrix + uintptr_t(batch * layout.stride * int64_t(bytes_of(layout.element)));
    };
    uintptr_t a = at(call.a, la), b = at(call.b, lb), c = at(call.c, lc), d = at(call.d, ld);
    bool goes_on = call.alpha == 1 && call.beta == 1, has_bias = product.epilogue == BIAS;
    for (uint64_t column = 0; column < ld.columns; column++)
        for (uint64_t row = 0; row < ld.rows; row++) {
            uint64_t k_count = call.shape.k();
            float old = call.beta == 0 ? 0 : load(c, lc.element, row + column * lc.leading);
            float bias = has_bias ? load(product.bias, ld.element, row) : 0;
            float sum = goes_on ? old : call.alpha == 1 && call.beta == 0 ? bias : 0;
            for (uint64_t k = 0; k < k_count; k++) {
                float left = load(a, la.element, product.transposes_a ? k + row * la.leading : row + k * la.leading);
                float right = load(b, lb.element, product.transposes_b ? column + k * lb.leading : k + column * lb.leading);
                sum = std::fma(left, right, sum);
            }
            if (goes_on) sum += bias;
            else if (call.alpha != 1 || call.beta != 0) sum = call.alpha * sum + call.beta * old + bias;
            store(d, ld.element, row + column * ld.leading, sum);
        }
}

int multiply(const Call& call) {
    const auto& [product, a, b, c, d] = call.shape;
    bool is_fine = touch(call.a, a, false) & touch(call.b, b, false);
    if (call.beta != 0) is_fine &= touch(call.c, c, false);
    if (product.epilogue == BIAS) is_fine &= access(product.bias, d.rows * bytes_of(d.element), false, nullptr);
    is_fine &= access(call.workspace, call.workspace_bytes, true, nullptr);
    is_fine &= touch(call.d, d, true);
    if (is_fine)
        for (int batch = 0; batch < d.batch; batch++) compute(call, batch);
    return 0;
}

bool shape_of(Shape& shape, void* product, void* a, void* b, void* c, void* d) {
    Product* p = find(products, product);
    Layout *la = find(layouts, a), *lb = find(layouts, b), *lc = find(layouts, c), *ld = find(layouts, d);
    if (!p || !la || !lb || !lc || !ld) return false;
    shape = {*p, *la, *lb, *lc, *ld};
    return true;
}

} // namespace

#define LOCKED std::unique_lock<std::mutex> held(lock)

#pragma GCC visibility push(default)
extern "C" {

size_t cublasLtGetVersion() { return 120000; }
const char* cublasLtGetStatusName(int code) {
    switch (code) {
    case 0: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return nullptr;
    }
}
const char* cublasLtGetStatusString(int) { return "the reports of the simulator say more"; }

int cublasLtCreate(void** handle) {
    LOCKED;
    if (current < 0) return NOT_INITIALIZED;
    return make(handles, handle, current);
}
int cublasLtDestroy(void* handle) { LOCKED; return drop(handles, handle); }
int cublasLtMatmulDescCreate(void** product, int compute, int scale) {
    LOCKED;
    if (compute != COMPUTE_F32 || scale != F32) return NOT_SUPPORTED;
    return make(products, product, Product());
}
int cublasLtMatmulDescDestroy(void* product) { LOCKED; return drop(products, product); }
int cublasLtMatmulDescSetAttribute(void* handle, int attribute, const void* value, size_t bytes) {
    LOCKED;
    Product* product = find(products, handle);
    if (!product) return INVALID_VALUE;
    struct { int attribute; void* to; size_t bytes; } known[] = {
        {3, &product->transposes_a, 4}, {4, &product->transposes_b, 4}, {7, &product->epilogue, 4}, {8, &product->bias, 8},
    };
    for (auto& one : known)
        if (one.attribute == attribute && one.bytes == bytes) return memcpy(one.to, value, bytes), 0;
    return INVALID_VALUE;
}
int cublasLtMatrixLayoutCreate(void** layout, int element, uint64_t rows, uint64_t columns, int64_t leading) {
    LOCKED;
    return make(layouts, layout, Layout{element, rows, columns, leading});
}
int cublasLtMatrixLayoutDestroy(void* layout) { LOCKED; return drop(layouts, layout); }
int cublasLtMatrixLayoutSetAttribute(void* handle, int attribute, const void* value, size_t bytes) {
    LOCKED;
    Layout* layout = find(layouts, handle);
    if (layout && attribute == 5 && bytes == 4) return memcpy(&layout->batch, value, bytes), 0;
    if (layout && attribute == 6 && bytes == 8) return memcpy(&layout->stride, value, bytes), 0;
    return INVALID_VALUE;
}
int cublasLtMatmulPreferenceCreate(void** preference) { LOCKED; return make(preferences, preference, Preference()); }
int cublasLtMatmulPreferenceDestroy(void* preference) { LOCKED; return drop(preferences, preference); }
int cublasLtMatmulPreferenceSetAttribute(void* handle, int attribute, const void* value, size_t bytes) {
    LOCKED;
    Preference* preference = find(preferences, handle);
    if (preference && attribute == 1 && bytes == 8) return memcpy(&preference->workspace_bytes, value, bytes), 0;
    bool is_alignment = preference && attribute >= 5 && attribute <= 8 && bytes == 4;
    return is_alignment ? (memcpy(&preference->alignments[attribute - 5], value, bytes), 0) : INVALID_VALUE;
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* product, void* a, void* b, void* c, void* d, void* preference,
                                   int count_max, Found* found, int* count) {
    LOCKED;
    Shape shape;
    Preference* wanted = find(preferences, preference);
    if (!find(handles, handle) || !wanted || count_max < 1 || !shape_of(shape, product, a, b, c, d)) return INVALID_VALUE;
    *count = 0;
    if (const char* what = fault(shape)) return refuse("cublasLtMatmulAlgoGetHeuristic", what);
    if (!is_supported(shape)) return NOT_SUPPORTED;
    size_t workspace = wanted->workspace_bytes >= WORKSPACE_BYTES ? WORKSPACE_BYTES : 0;
    const uint32_t* alignments = wanted->alignments;
    Algorithm algorithm = {{signature(shape), workspace, alignments[0], alignments[1], alignments[2], alignments[3]}};
    *found = {algorithm, workspace, 0, 1, {}};
    *count = 1;
    return 0;
}

int cublasLtMatmul(void* handle, void* product, const float* alpha, uintptr_t a, void* a_layout, uintptr_t b, void* b_layout,
                   const float* beta, uintptr_t c, void* c_layout, uintptr_t d, void* d_layout, const Algorithm* algorithm,
                   uintptr_t workspace, size_t workspace_bytes, void* stream) {
    LOCKED;
    const char* name = "cublasLtMatmul";
    int* device = find(handles, handle);
    Call call = {{}, *alpha, *beta, a, b, c, d, workspace, 0};
    if (!device || !shape_of(call.shape, product, a_layout, b_layout, c_layout, d_layout)) return INVALID_VALUE;
    if (*device != current) return refuse(name, "the handle is of another device");
    if (const char* what = fault(call.shape)) return refuse(name, what);
    if (!is_supported(call.shape)) return NOT_SUPPORTED;
    if (!algorithm) return refuse(name, "no algorithm: the library would search for one in every call");
    if (algorithm->data[0] != signature(call.shape)) return refuse(name, "the algorithm is of another product");
    call.workspace_bytes = algorithm->data[1];
    if (workspace_bytes < call.workspace_bytes) return refuse(name, "the workspace is smaller than the algorithm needs");
    const uintptr_t places[] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if (places[i] % algorithm->data[2 + i]) return refuse(name, "a matrix is less aligned than the search was told");
    const Layout& shape = call.shape.d;
    std::string text = "product " + std::to_string(shape.rows) + "x" + std::to_string(shape.columns) + "x" +
                       std::to_string(call.shape.k());
    return run_on(stream, name, text, [call] { return multiply(call); }) ? EXECUTION_FAILED : 0;
}
}
#pragma GCC visibility pop
