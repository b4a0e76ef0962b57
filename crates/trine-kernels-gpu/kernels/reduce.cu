// Reductions over ranks that share a device, bit for bit those of the host: a tree that splits behind the largest power
// of two of ranks, sums of bf16 and f16 in f32, rounded once.
#include "numbers.cuh"

typedef unsigned char u8;
struct f16 {
    unsigned short bits;
};

constexpr u32 RANKS_MAX = 16, RANKS_DEPTH = 4;
constexpr u32 SUM = 0, MEAN = 1; // else the largest

// How an element is loaded, added, divided and stored.
template <class T> struct Number {
    typedef T Sum;
    TRINE_METHOD static Sum load(T x) { return x; }
    TRINE_METHOD static T store(Sum x) { return x; }
    TRINE_METHOD static Sum divide(Sum sum, u32 ranks) { return (Sum)(sum / (Sum)ranks); }
};

template <> struct Number<bf16> {
    typedef float Sum;
    TRINE_METHOD static float load(bf16 x) { return widened(x); }
    TRINE_METHOD static bf16 store(float x) {
        bf16 y;
        narrow(y, x);
        return y;
    }
    TRINE_METHOD static float divide(float sum, u32 ranks) { return sum / (float)ranks; }
};

template <> struct Number<f16> {
    typedef float Sum;
    TRINE_METHOD static float load(f16 x) {
        u32 sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31u, fraction = x.bits & 0x3ffu;
        if (exponent == 31u) return trine_float(sign | 0x7f800000u | fraction << 13);
        if (exponent != 0u) return trine_float(sign | (exponent + 112u) << 23 | fraction << 13);
        float small = (float)fraction * 5.9604644775390625e-8f; // 2^-24
        return sign != 0u ? -small : small;
    }
    // To the nearest, ties to even.
    TRINE_METHOD static f16 store(float x) {
        u32 bits = trine_bits(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu, rounded;
        if (size > 0x7f800000u) {
            rounded = 0x7e00u | (size >> 13 & 0x3ffu); // no number
        } else if (size >= 0x477ff000u) {
            rounded = 0x7c00u; // 65520 and more
        } else if (size >= 0x38800000u) {
            u32 rebiased = size - 0x38000000u;
            rounded = (rebiased + 0xfffu + (rebiased >> 13 & 1u)) >> 13;
        } else if (size <= 0x33000000u) {
            rounded = 0u; // 2^-25 and less
        } else {
            u32 fraction = (size & 0x7fffffu) | 0x800000u, shift = 126u - (size >> 23);
            u32 rest = fraction & ((1u << shift) - 1u), half = 1u << (shift - 1u);
            rounded = fraction >> shift;
            rounded += rest > half || (rest == half && (rounded & 1u));
        }
        f16 y;
        y.bits = (unsigned short)(sign | rounded);
        return y;
    }
    TRINE_METHOD static float divide(float sum, u32 ranks) { return sum / (float)ranks; }
};

// A value on either side that is no number wins.
template <class S> TRINE_FN S combined(S left, S right, u32 kind) {
    if (kind <= MEAN) return (S)(left + right);
    return left > right || left != left ? left : right;
}

// Works like a binary counter: `part[k]` is of 2^k ranks.
template <class T> TRINE_FN void reduce(T* y, const T* const (&x)[RANKS_MAX], u32 ranks, u32 kind, u64 n) {
    typedef typename Number<T>::Sum Sum;
    for (u64 i = trine_index(); i < n; i += trine_all()) {
        Sum part[RANKS_DEPTH + 1];
        for (u32 rank = 0; rank < ranks; rank++) {
            Sum top = Number<T>::load(x[rank][i]);
            u32 level = 0;
            for (u32 bits = rank; bits & 1u; bits >>= 1) top = combined(part[level++], top, kind);
            part[level] = top;
        }
        u32 level = 0;
        while (!(ranks >> level & 1u)) level++;
        Sum all = part[level];
        for (level++; ranks >> level; level++)
            if (ranks >> level & 1u) all = combined(part[level], all, kind);
        y[i] = Number<T>::store(kind == MEAN ? Number<T>::divide(all, ranks) : all);
    }
}

// y[i] of x0[i], x1[i] and so on, of 1 to 16 ranks; pointers beyond `ranks` are not followed.
#define REDUCE(T) \
    TRINE_KERNEL reduce_##T(T* y, const T* x0, const T* x1, const T* x2, const T* x3, const T* x4, const T* x5, \
                            const T* x6, const T* x7, const T* x8, const T* x9, const T* x10, const T* x11, \
                            const T* x12, const T* x13, const T* x14, const T* x15, u32 ranks, u32 kind, u64 n) { \
        const T* const x[RANKS_MAX] = {x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15}; \
        reduce<T>(y, x, ranks, kind, n); \
    } \
    TRINE_EXPORT(reduce_##T)
REDUCE(f64)
REDUCE(f32)
REDUCE(bf16)
REDUCE(f16)
REDUCE(u64)
REDUCE(u32)
REDUCE(u8)
