// Rotary position embedding.
#include "numbers.cuh"

// What is turned: of each of `heads` heads the first `turned` elements, in rows whose positions repeat after `seq`.
struct Turns {
    u64 heads, head_dim, turned, seq, start;
};

// The pairs (i, i + turned / 2) of each head, by the angles of the row's position; `sign` -1 turns back.
template <class T>
TRINE_FN void rope(T* x, const float* table, u64 rows, u64 stride, const Turns& of, float sign) {
    u32 half = (u32)of.turned / 2;
    EACH_ROW(r, rows) EACH_COLUMN(i, of.heads * half) {
        u32 pair = (u32)i % half;
        T* head = x + r * stride + (u32)i / half * of.head_dim;
        const float* angles = table + (of.start + r % of.seq) * of.turned;
        float cosine = angles[pair], sine = sign * angles[half + pair];
        float left = widened(head[pair]), right = widened(head[half + pair]);
        narrow(head[pair], left * cosine - right * sine);
        narrow(head[half + pair], right * cosine + left * sine);
    }
}
#define ROPE(T) \
    TRINE_KERNEL rope_##T(T* x, const float* table, u64 rows, u64 stride, Turns of, float sign) { \
        rope(x, table, rows, stride, of, sign); \
    } \
    TRINE_EXPORT(rope_##T)
ROPE(f32)
ROPE(bf16)
