// RMS norms of groups of columns, in steps between which ranks can add sums: a block a group of a row.
#include "numbers.cuh"

// Of x, y and d each row has `groups` groups of `group` columns; a sum is a balanced tree over `blocks` of a group.
struct Groups {
    u64 rows, groups, group, blocks;
};

// sums[r, g] = Σ f(column) over a group's columns.
template <class F> TRINE_FN void sum_groups(float* sums, const Groups& of, F f) {
    TRINE_SHARED(float, parts, TRINE_WARP);
    TRINE_SHARED(float, of_blocks, BLOCKS_MAX);
    u64 width = of.group / of.blocks;
    EACH_ROW_OF_BLOCK(at, of.rows * of.groups) {
        u64 row = at / of.groups, first = at % of.groups * of.group;
        for (u64 block = 0; block < of.blocks; block++) {
            float sum = 0.0f;
            EACH_COLUMN_OF_THREAD(c, width) sum += f(row, first, block * width + c);
            sum = trine_block_sum(sum, parts);
            if (trine_thread() == 0) of_blocks[block] = sum;
        }
        if (trine_thread() == 0) sums[at] = tree_sum(of_blocks, 1, (u32)of.blocks);
    }
}

template <class T> struct Squares {
    const T* x;
    u64 stride;
    TRINE_METHOD float operator()(u64 row, u64 first, u64 c) const {
        float value = widened(x[row * stride + first + c]);
        return value * value;
    }
};
template <class T> struct Dots {
    const T *x, *gamma, *dy;
    u64 of_x, of_dy;
    TRINE_METHOD float operator()(u64 row, u64 first, u64 c) const {
        return widened(dy[row * of_dy + first + c]) * widened(gamma[c]) * widened(x[row * of_x + first + c]);
    }
};

// stats holds sums of squares of `elements` numbers and receives rstd; y = x · rstd · gamma.
template <class T>
TRINE_FN void rms_scale(T* y, float* stats, const T* x, const T* gamma, u64 to, u64 from, const Groups& of,
                        float elements, float eps) {
    EACH_ROW_OF_BLOCK(at, of.rows * of.groups) {
        u64 row = at / of.groups, first = at % of.groups * of.group;
        float rstd = 1.0f / trine_sqrt(stats[at] / elements + eps);
        trine_barrier(); // all threads have read the sum
        if (trine_thread() == 0) stats[at] = rstd;
        EACH_COLUMN_OF_THREAD(c, of.group)
            narrow(y[row * to + first + c], widened(x[row * from + first + c]) * rstd * widened(gamma[c]));
    }
}

// d = (d · gamma - x · rstd² · products / elements) · rstd.
template <class T>
TRINE_FN void rms_backward(T* d, const T* x, const float* rstds, const float* products, const T* gamma, u64 to,
                           u64 from, const Groups& of, float elements) {
    EACH_ROW_OF_BLOCK(at, of.rows * of.groups) {
        u64 row = at / of.groups, first = at % of.groups * of.group;
        float rstd = rstds[at], slope = products[at] / elements * rstd * rstd;
        EACH_COLUMN_OF_THREAD(c, of.group) {
            T& own = d[row * to + first + c];
            narrow(own, (widened(own) * widened(gamma[c]) - widened(x[row * from + first + c]) * slope) * rstd);
        }
    }
}

// parts[p, c] = Σ dy · x · rstd over the rows of part p, in their order; c counts the columns of all groups.
template <class T>
TRINE_FN void rms_gain(float* parts, const T* x, const float* rstd, const T* dy, u64 of_x, u64 of_dy, const Groups& of,
                       u64 part_rows) {
    u64 count = (of.rows + part_rows - 1) / part_rows, cols = of.groups * of.group;
    EACH_ROW(part, count) EACH_COLUMN(c, cols) {
        u64 end = (part + 1) * part_rows < of.rows ? (part + 1) * part_rows : of.rows;
        float sum = 0.0f;
        for (u64 r = part * part_rows; r < end; r++)
            sum += widened(dy[r * of_dy + c]) * (widened(x[r * of_x + c]) * rstd[r * of.groups + c / of.group]);
        parts[part * cols + c] = sum;
    }
}

#define RMS(T) \
    TRINE_KERNEL rms_squares_##T(float* sums, const T* x, u64 stride, Groups of) { \
        Squares<T> squares = {x, stride}; \
        sum_groups(sums, of, squares); \
    } \
    TRINE_EXPORT(rms_squares_##T) \
    TRINE_KERNEL rms_products_##T(float* sums, const T* x, const T* gamma, const T* dy, u64 of_x, u64 of_dy, \
                                  Groups of) { \
        Dots<T> dots = {x, gamma, dy, of_x, of_dy}; \
        sum_groups(sums, of, dots); \
    } \
    TRINE_EXPORT(rms_products_##T) \
    TRINE_KERNEL rms_scale_##T(T* y, float* stats, const T* x, const T* gamma, u64 to, u64 from, Groups of, \
                               float elements, float eps) { \
        rms_scale(y, stats, x, gamma, to, from, of, elements, eps); \
    } \
    TRINE_EXPORT(rms_scale_##T) \
    TRINE_KERNEL rms_backward_##T(T* d, const T* x, const float* rstd, const float* products, const T* gamma, u64 to, \
                                  u64 from, Groups of, float elements) { \
        rms_backward(d, x, rstd, products, gamma, to, from, of, elements); \
    } \
    TRINE_EXPORT(rms_backward_##T) \
    TRINE_KERNEL rms_gain_##T(float* parts, const T* x, const float* rstd, const T* dy, u64 of_x, u64 of_dy, \
                              Groups of, u64 part_rows) { \
        rms_gain(parts, x, rstd, dy, of_x, of_dy, of, part_rows); \
    } \
    TRINE_EXPORT(rms_gain_##T)
RMS(f32)
RMS(bf16)

// dgamma[c] += a balanced tree over the groups of sums[g, c], which are lost.
TRINE_KERNEL rms_gain_tree(float* dgamma, float* sums, u64 groups, u64 group) {
    EACH_COLUMN(c, group) dgamma[c] += tree_sum(sums + c, group, (u32)groups);
}
TRINE_EXPORT(rms_gain_tree)
