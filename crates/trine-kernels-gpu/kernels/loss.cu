// Softmax cross-entropy over a part of the vocabulary, a block a row: maximum, sum, loss, gradient.
#include "numbers.cuh"

// The target of a token that does not count.
constexpr u32 IGNORE = 0xffffffffu;

// Columns that are real, and the vocabulary's index of the first one.
struct Part {
    u64 valid_cols, first_col;
};

// The column of a target; beyond the valid ones if it lies elsewhere.
TRINE_FN u64 column_of(u32 target, const Part& of) {
    return target == IGNORE ? of.valid_cols : (u64)target - of.first_col; // below the first column it wraps around
}

// max[r] = the largest valid logit of the row, minus infinity if there is none.
template <class T> TRINE_FN void ce_max(float* max, const T* logits, u64 rows, u64 stride, const Part& of) {
    TRINE_SHARED(float, parts, TRINE_WARP);
    EACH_ROW_OF_BLOCK(r, rows) {
        float most = -infinity();
        EACH_COLUMN_OF_THREAD(c, of.valid_cols) most = larger(widened(logits[r * stride + c]), most);
        u32 lane = trine_thread() % TRINE_WARP;
        for (u32 half = TRINE_WARP / 2; half > 0; half /= 2) most = larger(trine_from_lane(most, lane ^ half), most);
        if (lane == 0) parts[trine_thread() / TRINE_WARP] = most;
        trine_barrier();
        if (trine_thread() == 0) {
            for (u32 warp = 1; warp < trine_threads() / TRINE_WARP; warp++) most = larger(parts[warp], most);
            max[r] = most;
        }
        trine_barrier();
    }
}

// sum_exp[r] = Σ e^(logit - max[r]), a balanced tree over `blocks` ranges of `width` columns; target_logit[r] is 0 where
// the target is elsewhere.
template <class T>
TRINE_FN void ce_sum(float* sum_exp, float* target_logit, const T* logits, const float* max, const u32* targets,
                     u64 rows, u64 stride, u64 blocks, u64 width, const Part& of) {
    TRINE_SHARED(float, parts, TRINE_WARP);
    TRINE_SHARED(float, sums, BLOCKS_MAX);
    EACH_ROW_OF_BLOCK(r, rows) {
        const T* row = logits + r * stride;
        float most = max[r];
        for (u64 block = 0; block < blocks; block++) {
            float sum = 0.0f;
            EACH_COLUMN_OF_THREAD(c, width) {
                u64 at = block * width + c;
                if (at < of.valid_cols) sum += exponential(widened(row[at]) - most);
            }
            sum = trine_block_sum(sum, parts);
            if (trine_thread() == 0) sums[block] = sum;
        }
        if (trine_thread() == 0) {
            u64 column = column_of(targets[r], of);
            sum_exp[r] = tree_sum(sums, 1, (u32)blocks);
            target_logit[r] = column < of.valid_cols ? widened(row[column]) : 0.0f;
        }
    }
}

// loss[r] = ln(sum_exp[r]) + (max[r] - target_logit[r]), 0 for a token that does not count.
TRINE_KERNEL ce_loss(float* loss, const float* max, const float* sum_exp, const float* target_logit, const u32* targets,
                     u64 rows) {
    EACH(r, rows) loss[r] = targets[r] == IGNORE ? 0.0f : trine_log(sum_exp[r]) + (max[r] - target_logit[r]);
}
TRINE_EXPORT(ce_loss)

// logits = (softmax - onehot) · scale, zero in padding and for tokens that do not count. With `inverse` above 0, which is
// 1 / cap, also times the slope of the bound, 1 - (logit / cap)².
template <class T>
TRINE_FN void ce_grad(T* logits, const float* max, const float* sum_exp, const u32* targets, u64 rows, u64 cols,
                      u64 stride, const Part& of, float scale, float inverse) {
    EACH_ROW_OF_BLOCK(r, rows) {
        T* row = logits + r * stride;
        bool counts = targets[r] != IGNORE;
        u64 column = column_of(targets[r], of);
        float factor = scale / sum_exp[r], most = max[r];
        EACH_COLUMN_OF_THREAD(c, cols) {
            float grad = 0.0f;
            if (counts && c < of.valid_cols) {
                float logit = widened(row[c]), bounded = logit * inverse;
                grad = exponential(logit - most) * factor;
                if (c == column) grad = grad - scale;
                if (inverse > 0.0f) grad *= 1.0f - bounded * bounded;
            }
            narrow(row[c], grad);
        }
    }
}

#define LOSS(T) \
    TRINE_KERNEL ce_max_##T(float* max, const T* logits, u64 rows, u64 stride, Part of) { \
        ce_max(max, logits, rows, stride, of); \
    } \
    TRINE_EXPORT(ce_max_##T) \
    TRINE_KERNEL ce_sum_##T(float* sum_exp, float* target_logit, const T* logits, const float* max, \
                            const u32* targets, u64 rows, u64 stride, u64 blocks, u64 width, Part of) { \
        ce_sum(sum_exp, target_logit, logits, max, targets, rows, stride, blocks, width, of); \
    } \
    TRINE_EXPORT(ce_sum_##T) \
    TRINE_KERNEL ce_grad_##T(T* logits, const float* max, const float* sum_exp, const u32* targets, u64 rows, \
                             u64 cols, u64 stride, Part of, float scale, float inverse) { \
        ce_grad(logits, max, sum_exp, targets, rows, cols, stride, of, scale, inverse); \
    } \
    TRINE_EXPORT(ce_grad_##T)
LOSS(f32)
LOSS(bf16)
