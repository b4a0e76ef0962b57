// Activation functions, alone and as gates.
#include "vectors.cuh"

constexpr float SQRT_2_OVER_PI = 0.7978845608028654f;
constexpr float CUBIC = 0.044715f;

// A value and the derivative.
struct Value {
    float value, slope;
};
// A number s of 0..1, and 1 - s without cancellation.
struct Share {
    float s, rest;
};

// 1 / (1 + 2^t) and 2^t / (1 + 2^t).
TRINE_FN Share share(float t) {
    float e = power_of_two(t > 115.0f ? 115.0f : t);
    float s = 1.0f / (1.0f + e);
    Share both = {s, e * s};
    return both;
}

// (1 + tanh u) / 2 of GELU's u(x), which is the sigmoid of 2u.
TRINE_FN Share tanh_gate(float x) {
    float cubic = CUBIC * x * x * x;
    return share((float)(-2.0 * 0.7978845608028654 * 1.4426950408889634) * (x + cubic));
}

// The normal distribution function.
TRINE_FN float phi(float x) {
    float tail = 0.5f * complement_of_error((x < 0.0f ? -x : x) * 0.70710678118654752440f);
    return x > 0.0f ? 1.0f - tail : tail;
}

struct gelu_tanh {
    TRINE_METHOD static Value of(float x) {
        Share gate = tanh_gate(x);
        float inner = 1.0f + (float)(3.0 * 0.044715) * x * x;
        float value = x * gate.s;
        Value both = {value, gate.s + value * gate.rest * (float)(2.0 * 0.7978845608028654) * inner};
        return both;
    }
};
struct gelu_erf {
    TRINE_METHOD static Value of(float x) {
        float density = exponential(-0.5f * x * x) * (SQRT_2_OVER_PI * 0.5f);
        float p = phi(x);
        Value both = {x * p, p + x * density};
        return both;
    }
};
struct silu {
    TRINE_METHOD static Value of(float x) {
        Share gate = share(x * -LOG2_E);
        float value = x * gate.s;
        Value both = {value, gate.s + value * gate.rest};
        return both;
    }
};
// The derivative at 0 is 0; what is no number stays none.
struct relu {
    TRINE_METHOD static Value of(float x) {
        Value both = {x < 0.0f ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f};
        return both;
    }
};

// y = f(x).
template <class F, class T> TRINE_FN void activation(T* y, const T* x, u64 n) {
    map(y, n, [](float x) { return F::of(x).value; }, x);
}

// dx = dy · f'(x).
template <class F, class T> TRINE_FN void activation_backward(T* dx, const T* x, const T* dy, u64 n) {
    map(dx, n, [](float x, float dy) { return dy * F::of(x).slope; }, x, dy);
}

// Where the matrices of a gate lie: elements from row to row.
struct Strides {
    u64 y, gate, up, dgate, dup;
};

// y = f(gate) · up.
template <class F, class T>
TRINE_FN void gated(T* y, const T* gate, const T* up, u64 rows, u64 cols, const Strides& at) {
    EACH_ROW(r, rows)
        map(y + r * at.y, cols, [](float gate, float up) { return F::of(gate).value * up; }, gate + r * at.gate,
            up + r * at.up);
}

// dup = dy · f(gate), dgate = dy · up · f'(gate); `at.y` is the stride of dy.
template <class F, class T>
TRINE_FN void gated_backward(T* dgate, T* dup, const T* gate, const T* up, const T* dy, u64 rows, u64 cols,
                             const Strides& at) {
    auto gradients = [](float gate, float up, float d) {
        Value f = F::of(gate);
        return Pair{d * up * f.slope, d * f.value};
    };
    EACH_ROW(r, rows)
        map_two(dgate + r * at.dgate, dup + r * at.dup, cols, gradients, gate + r * at.gate, up + r * at.up,
                dy + r * at.y);
}

#define ACTIVATION(F, T) \
    TRINE_KERNEL activation_##F##_##T(T* y, const T* x, u64 n) { activation<F>(y, x, n); } \
    TRINE_EXPORT(activation_##F##_##T) \
    TRINE_KERNEL activation_backward_##F##_##T(T* dx, const T* x, const T* dy, u64 n) { \
        activation_backward<F>(dx, x, dy, n); \
    } \
    TRINE_EXPORT(activation_backward_##F##_##T) \
    TRINE_KERNEL gated_##F##_##T(T* y, const T* gate, const T* up, u64 rows, u64 cols, Strides at) { \
        gated<F>(y, gate, up, rows, cols, at); \
    } \
    TRINE_EXPORT(gated_##F##_##T) \
    TRINE_KERNEL gated_backward_##F##_##T(T* dgate, T* dup, const T* gate, const T* up, const T* dy, u64 rows, \
                                          u64 cols, Strides at) { \
        gated_backward<F>(dgate, dup, gate, up, dy, rows, cols, at); \
    } \
    TRINE_EXPORT(gated_backward_##F##_##T) \
    /* Both gradients in one matrix: gate left, up right. */ \
    TRINE_KERNEL gated_backward_fused_##F##_##T(T* d, const T* gate, const T* up, const T* dy, u64 rows, u64 cols, \
                                                Strides at) { \
        gated_backward<F>(d, d + cols, gate, up, dy, rows, cols, at); \
    } \
    TRINE_EXPORT(gated_backward_fused_##F##_##T)
#define ACTIVATIONS(F) ACTIVATION(F, f32) ACTIVATION(F, bf16)
ACTIVATIONS(gelu_tanh)
ACTIVATIONS(gelu_erf)
ACTIVATIONS(silu)
ACTIVATIONS(relu)
