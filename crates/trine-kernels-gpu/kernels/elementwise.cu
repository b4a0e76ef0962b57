// Sums, copies, conversions, bias: element by element, each result rounded once; and the sums of columns.
#include "vectors.cuh"

// y = a + b.
template <class S, class T> TRINE_FN void add(S* y, const S* a, const T* b, u64 n) {
    map(y, n, [](float a, float b) { return a + b; }, a, b);
}
#define ADD(S, T) \
    TRINE_KERNEL add_##S##_##T(S* y, const S* a, const T* b, u64 n) { add(y, a, b, n); } \
    TRINE_EXPORT(add_##S##_##T)
ADD(f32, f32)
ADD(f32, bf16)
ADD(bf16, bf16)

// y += a.
template <class S, class T> TRINE_FN void add_assign(S* y, const T* a, u64 n) {
    map(y, n, [](float y, float a) { return y + a; }, y, a);
}
#define ADD_ASSIGN(S, T) \
    TRINE_KERNEL add_assign_##S##_##T(S* y, const T* a, u64 n) { add_assign(y, a, n); } \
    TRINE_EXPORT(add_assign_##S##_##T)
ADD_ASSIGN(f32, f32)
ADD_ASSIGN(f32, bf16)
ADD_ASSIGN(bf16, bf16)

// y[r, c] += bias[c].
template <class S, class T> TRINE_FN void add_bias(S* y, const T* bias, u64 rows, u64 cols, u64 stride) {
    EACH_ROW(r, rows) map(y + r * stride, cols, [](float y, float b) { return y + b; }, y + r * stride, bias);
}
#define ADD_BIAS(S, T) \
    TRINE_KERNEL add_bias_##S##_##T(S* y, const T* bias, u64 rows, u64 cols, u64 stride) { \
        add_bias(y, bias, rows, cols, stride); \
    } \
    TRINE_EXPORT(add_bias_##S##_##T)
ADD_BIAS(f32, f32)
ADD_BIAS(f32, bf16)
ADD_BIAS(bf16, bf16)

// y = x in another type.
template <class S, class T> TRINE_FN void cast(S* y, const T* x, u64 n) {
    map(y, n, [](float x) { return x; }, x);
}
#define CAST(S, T) \
    TRINE_KERNEL cast_##S##_##T(S* y, const T* x, u64 n) { cast(y, x, n); } \
    TRINE_EXPORT(cast_##S##_##T)
CAST(f32, bf16)
CAST(bf16, f32)

// y *= factor; y = cap · tanh(y · inverse), inverse = 1 / cap; y = x + by.
template <class T> TRINE_FN void scale(T* y, u64 n, float factor) {
    map(y, n, [=](float y) { return y * factor; }, y);
}
template <class T> TRINE_FN void softcap(T* y, u64 n, float inverse, float cap) {
    map(y, n, [=](float y) { return cap * hyperbolic_tangent(y * inverse); }, y);
}
template <class T> TRINE_FN void offset(float* y, const T* x, u64 n, float by) {
    map(y, n, [=](float x) { return x + by; }, x);
}
// parts[p, c] = Σ x[r, c] over the rows of part p, in their order: a thread a column, a row of blocks a part.
template <class T>
TRINE_FN void column_parts(float* parts, const T* x, u64 rows, u64 cols, u64 stride, u64 part_rows) {
    u64 count = (rows + part_rows - 1) / part_rows;
    EACH_ROW(part, count) EACH_COLUMN(c, cols) {
        u64 end = (part + 1) * part_rows < rows ? (part + 1) * part_rows : rows;
        float sum = 0.0f;
        for (u64 r = part * part_rows; r < end; r++) sum += widened(x[r * stride + c]);
        parts[part * cols + c] = sum;
    }
}
#define OF_ONE_TYPE(T) \
    TRINE_KERNEL scale_##T(T* y, u64 n, float factor) { scale(y, n, factor); } \
    TRINE_EXPORT(scale_##T) \
    TRINE_KERNEL softcap_##T(T* y, u64 n, float inverse, float cap) { softcap(y, n, inverse, cap); } \
    TRINE_EXPORT(softcap_##T) \
    TRINE_KERNEL offset_##T(float* y, const T* x, u64 n, float by) { offset(y, x, n, by); } \
    TRINE_EXPORT(offset_##T) \
    TRINE_KERNEL column_parts_##T(float* parts, const T* x, u64 rows, u64 cols, u64 stride, u64 part_rows) { \
        column_parts(parts, x, rows, cols, stride, part_rows); \
    } \
    TRINE_EXPORT(column_parts_##T)
OF_ONE_TYPE(f32)
OF_ONE_TYPE(bf16)

// sums[c] += Σ parts[p, c], one after the other from the old sum on.
TRINE_KERNEL column_sums(float* sums, const float* parts, u64 count, u64 cols) {
    EACH_COLUMN(c, cols) {
        float sum = sums[c];
        for (u64 p = 0; p < count; p++) sum += parts[p * cols + c];
        sums[c] = sum;
    }
}
TRINE_EXPORT(column_sums)

// Rows of any stride to rows of any stride, elements by their bytes.
#define COPY(name, T) \
    TRINE_KERNEL name(T* y, const T* x, u64 rows, u64 cols, u64 to, u64 from) { \
        EACH_ROW(r, rows) EACH_COLUMN(c, cols) y[r * to + c] = x[r * from + c]; \
    } \
    TRINE_EXPORT(name)
COPY(copy_1, unsigned char)
COPY(copy_2, unsigned short)
COPY(copy_4, u32)
COPY(copy_8, u64)
