// Vectors element by element, four at a time where all of them can be read so.
#pragma once
#include "numbers.cuh"

template <class T> struct alignas(4 * sizeof(T)) Four {
    T at[4];
};

// Whether four elements from here on can be read at once.
template <class T> TRINE_FN bool is_whole(const T* x) { return (u64)x % sizeof(Four<T>) == 0; }

template <class T> TRINE_FN Four<T> four(const T* x, u64 i) { return *(const Four<T>*)(x + i); }
template <class T> TRINE_FN void put(T* y, u64 i, const Four<T>& values) { *(Four<T>*)(y + i) = values; }

// Two results of one element.
struct Pair {
    float first, second;
};

// y[i] = f(x[i], ...) for i below n, among all threads of the grid's first direction. y may be one of x.
template <class F, class Y, class... X> TRINE_FN void map(Y* y, u64 n, F f, const X*... x) {
    u64 whole = is_whole(y) && (is_whole(x) && ...) ? n / 4 : 0;
    EACH(q, whole) {
        Four<Y> result;
        // The values of each x are read before any is written.
        [&](const Four<X>&... value) {
            for (u32 k = 0; k < 4; k++) narrow(result.at[k], f(widened(value.at[k])...));
        }(four(x, 4 * q)...);
        put(y, 4 * q, result);
    }
    for (u64 i = 4 * whole + trine_index(); i < n; i += trine_all()) narrow(y[i], f(widened(x[i])...));
}

// The same with two results: y[i] and z[i] are those of f.
template <class F, class Y, class... X> TRINE_FN void map_two(Y* y, Y* z, u64 n, F f, const X*... x) {
    u64 whole = is_whole(y) && is_whole(z) && (is_whole(x) && ...) ? n / 4 : 0;
    EACH(q, whole) {
        Four<Y> first, second;
        [&](const Four<X>&... value) {
            for (u32 k = 0; k < 4; k++) {
                Pair both = f(widened(value.at[k])...);
                narrow(first.at[k], both.first);
                narrow(second.at[k], both.second);
            }
        }(four(x, 4 * q)...);
        put(y, 4 * q, first);
        put(z, 4 * q, second);
    }
    for (u64 i = 4 * whole + trine_index(); i < n; i += trine_all()) {
        Pair both = f(widened(x[i])...);
        narrow(y[i], both.first);
        narrow(z[i], both.second);
    }
}
