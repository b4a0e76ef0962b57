// Sums, copies, conversions, bias: element by element, each result rounded once.
#include "numbers.cuh"

// y = a + b.
template <class S, class T> TRINE_FN void add(S* y, const S* a, const T* b, u64 n) {
    for (u64 i = trine_index(); i < n; i += trine_all()) narrow(y[i], widened(a[i]) + widened(b[i]));
}
#define ADD(S, T) \
    TRINE_KERNEL add_##S##_##T(S* y, const S* a, const T* b, u64 n) { add(y, a, b, n); } \
    TRINE_EXPORT(add_##S##_##T)
ADD(f32, f32)
ADD(f32, bf16)
ADD(bf16, bf16)
