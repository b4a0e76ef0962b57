// Layer norm and RMS norm over rows, a block a row.
#include "numbers.cuh"

// y = (x - mean) · rstd · gamma + beta; stats[r] = (mean, rstd).
template <class T, class S>
TRINE_FN void layer_norm(T* y, float* stats, const S* x, const T* gamma, const T* beta, u64 rows, u64 cols, float eps) {
    TRINE_SHARED(float, parts, TRINE_WARP);
    EACH_ROW_OF_BLOCK(r, rows) {
        const S* of_x = x + r * cols;
        float sum = 0.0f, squares = 0.0f;
        EACH_COLUMN_OF_THREAD(c, cols) sum += widened(of_x[c]);
        float mean = trine_block_sum(sum, parts) / (float)cols;
        EACH_COLUMN_OF_THREAD(c, cols) {
            float centred = widened(of_x[c]) - mean;
            squares += centred * centred;
        }
        float rstd = 1.0f / trine_sqrt(trine_block_sum(squares, parts) / (float)cols + eps);
        if (trine_thread() == 0) {
            stats[2 * r] = mean;
            stats[2 * r + 1] = rstd;
        }
        EACH_COLUMN_OF_THREAD(c, cols)
            narrow(y[r * cols + c], (widened(of_x[c]) - mean) * rstd * widened(gamma[c]) + widened(beta[c]));
    }
}

// y = x · rstd · gamma.
template <class T, class G, class S>
TRINE_FN void rms_norm(T* y, float* of_rows, const S* x, const G* gamma, u64 rows, u64 cols, float eps) {
    TRINE_SHARED(float, parts, TRINE_WARP);
    EACH_ROW_OF_BLOCK(r, rows) {
        const S* of_x = x + r * cols;
        float squares = 0.0f;
        EACH_COLUMN_OF_THREAD(c, cols) squares += widened(of_x[c]) * widened(of_x[c]);
        float rstd = 1.0f / trine_sqrt(trine_block_sum(squares, parts) / (float)cols + eps);
        if (trine_thread() == 0) of_rows[r] = rstd;
        EACH_COLUMN_OF_THREAD(c, cols) narrow(y[r * cols + c], widened(of_x[c]) * rstd * widened(gamma[c]));
    }
}

// With g = dy · gamma and c = x - mean: dx = rstd · (g - mean(g) - c · rstd² · mean(g · c)). An RMS norm has no means of
// x and g. `stats` holds each row's mean, if there is one, and rstd.
template <bool CENTRED, class T, class G, class S>
TRINE_FN void norm_backward(S* dx, u32 add_to_dx, const S* x, const float* stats, const G* gamma, const T* dy, u64 rows,
                            u64 cols) {
    TRINE_SHARED(float, parts, TRINE_WARP);
    EACH_ROW_OF_BLOCK(r, rows) {
        const S* of_x = x + r * cols;
        const T* of_dy = dy + r * cols;
        float mean = CENTRED ? stats[2 * r] : 0.0f, rstd = CENTRED ? stats[2 * r + 1] : stats[r];
        float sum = 0.0f, dot = 0.0f;
        EACH_COLUMN_OF_THREAD(c, cols) {
            float g = widened(of_dy[c]) * widened(gamma[c]);
            sum += g;
            dot += g * (widened(of_x[c]) - mean);
        }
        float mean_g = CENTRED ? trine_block_sum(sum, parts) / (float)cols : 0.0f;
        float slope = trine_block_sum(dot, parts) / (float)cols * rstd * rstd;
        EACH_COLUMN_OF_THREAD(c, cols) {
            S& d = dx[r * cols + c];
            float g = widened(of_dy[c]) * widened(gamma[c]);
            float own = (g - mean_g - (widened(of_x[c]) - mean) * slope) * rstd;
            narrow(d, add_to_dx ? widened(d) + own : own);
        }
    }
}

// gain[p, c] = Σ dy · (x - mean) · rstd and bias[p, c] = Σ dy over the rows of part p, in their order.
template <bool CENTRED, class T, class S>
TRINE_FN void norm_gain(float* gain, float* bias, const S* x, const float* stats, const T* dy, u64 rows, u64 cols,
                        u64 part_rows) {
    u64 count = (rows + part_rows - 1) / part_rows;
    EACH_ROW(part, count) EACH_COLUMN(c, cols) {
        u64 end = (part + 1) * part_rows < rows ? (part + 1) * part_rows : rows;
        float of_gain = 0.0f, of_bias = 0.0f;
        for (u64 r = part * part_rows; r < end; r++) {
            float mean = CENTRED ? stats[2 * r] : 0.0f, rstd = CENTRED ? stats[2 * r + 1] : stats[r];
            float d = widened(dy[r * cols + c]);
            of_gain += d * ((widened(x[r * cols + c]) - mean) * rstd);
            of_bias += d;
        }
        gain[part * cols + c] = of_gain;
        if (CENTRED) bias[part * cols + c] = of_bias;
    }
}

// T: outputs; S: the stream.
#define STREAM(T, S) \
    TRINE_KERNEL layer_norm_##T##_##S(T* y, float* stats, const S* x, const T* gamma, const T* beta, u64 rows, \
                                      u64 cols, float eps) { \
        layer_norm(y, stats, x, gamma, beta, rows, cols, eps); \
    } \
    TRINE_EXPORT(layer_norm_##T##_##S) \
    TRINE_KERNEL layer_norm_backward_##T##_##S(S* dx, u32 add_to_dx, const S* x, const float* stats, const T* gamma, \
                                               const T* dy, u64 rows, u64 cols) { \
        norm_backward<true>(dx, add_to_dx, x, stats, gamma, dy, rows, cols); \
    } \
    TRINE_EXPORT(layer_norm_backward_##T##_##S) \
    TRINE_KERNEL layer_norm_gain_##T##_##S(float* gain, float* bias, const S* x, const float* stats, const T* dy, \
                                           u64 rows, u64 cols, u64 part_rows) { \
        norm_gain<true>(gain, bias, x, stats, dy, rows, cols, part_rows); \
    } \
    TRINE_EXPORT(layer_norm_gain_##T##_##S) \
    TRINE_KERNEL rms_norm_gain_##T##_##S(float* gain, const S* x, const float* rstd, const T* dy, u64 rows, u64 cols, \
                                         u64 part_rows) { \
        norm_gain<false>(gain, (float*)0, x, rstd, dy, rows, cols, part_rows); \
    } \
    TRINE_EXPORT(rms_norm_gain_##T##_##S)
STREAM(f32, f32)
STREAM(bf16, bf16)
STREAM(bf16, f32)

// G: the gain.
#define GAIN(T, G, S) \
    TRINE_KERNEL rms_norm_##T##_##G##_##S(T* y, float* rstd, const S* x, const G* gamma, u64 rows, u64 cols, \
                                          float eps) { \
        rms_norm(y, rstd, x, gamma, rows, cols, eps); \
    } \
    TRINE_EXPORT(rms_norm_##T##_##G##_##S) \
    TRINE_KERNEL rms_norm_backward_##T##_##G##_##S(S* dx, u32 add_to_dx, const S* x, const float* rstd, \
                                                   const G* gamma, const T* dy, u64 rows, u64 cols) { \
        norm_backward<false>(dx, add_to_dx, x, rstd, gamma, dy, rows, cols); \
    } \
    TRINE_EXPORT(rms_norm_backward_##T##_##G##_##S)
GAIN(f32, f32, f32)
GAIN(bf16, bf16, bf16)
GAIN(bf16, bf16, f32)
GAIN(bf16, f32, bf16)
GAIN(bf16, f32, f32)
