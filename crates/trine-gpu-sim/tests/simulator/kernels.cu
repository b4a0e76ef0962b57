// Kernels of the tests: sound ones, and each fault that the simulator knows.
#include "trine_sim.hpp"

static unsigned index_in_grid() { return sim_block(0) * sim_threads(0) + sim_thread(0); }

TRINE_KERNEL axpy(float* y, const float* x, float a, unsigned n) {
    unsigned i = index_in_grid();
    if (i < n) y[i] = a * x[i] + y[i];
}
TRINE_EXPORT(axpy)

// The sum of each row, a block a row: warps by exchange, then the block through shared memory.
TRINE_KERNEL row_sums(float* sums, const float* x, unsigned cols) {
    TRINE_SHARED(float, parts, 32);
    unsigned row = sim_block(0), thread = sim_thread(0);
    float sum = 0;
    for (unsigned c = thread; c < cols; c += sim_threads(0)) sum += x[row * cols + c];
    for (unsigned mask = 16; mask > 0; mask >>= 1) {
        float other;
        sim_shuffle(&other, &sum, sizeof sum, (thread & 31) ^ mask);
        sum += other;
    }
    if ((thread & 31) == 0) parts[thread / 32] = sum;
    sim_barrier();
    if (thread != 0) return;
    float whole = 0;
    for (unsigned w = 0; w < sim_threads(0) / 32; w++) whole += parts[w];
    sums[row] = whole;
}
TRINE_EXPORT(row_sums)

// Bytes, so that two threads share what is looked at together.
TRINE_KERNEL bytes_up(unsigned char* bytes, unsigned n) {
    unsigned i = index_in_grid();
    if (i < n) bytes[i]++;
}
TRINE_EXPORT(bytes_up)

struct Pair {
    float a, b;
    unsigned char rest[4];
};

TRINE_KERNEL structure(float* y, Pair pair) {
    if (index_in_grid() == 0) y[0] = pair.a + pair.b;
}
TRINE_EXPORT(structure)

TRINE_KERNEL volume(unsigned* y) {
    unsigned i = sim_block(0) + sim_blocks(0) * (sim_block(1) + sim_blocks(1) * sim_block(2));
    unsigned t = sim_thread(0) + sim_threads(0) * (sim_thread(1) + sim_threads(1) * sim_thread(2));
    y[i * sim_threads(0) * sim_threads(1) * sim_threads(2) + t] = i * 100 + t;
}
TRINE_EXPORT(volume)

// Shared memory of the launch: each thread reads what its neighbour wrote.
TRINE_KERNEL neighbours(unsigned* y) {
    TRINE_SHARED_OF_LAUNCH(unsigned, values);
    unsigned thread = sim_thread(0), threads = sim_threads(0);
    values[thread] = thread;
    sim_barrier();
    y[thread] = values[(thread + 1) % threads];
}
TRINE_EXPORT(neighbours)

TRINE_KERNEL without_barrier(float* sums, const float* x) {
    TRINE_SHARED(float, parts, 64);
    parts[sim_thread(0)] = x[sim_thread(0)];
    sums[sim_thread(0)] = parts[sim_thread(0) ^ 1];
}
TRINE_EXPORT(without_barrier)

TRINE_KERNEL without_second_barrier(float* sums, const float* x) {
    TRINE_SHARED(float, parts, 64);
    unsigned thread = sim_thread(0);
    parts[thread] = x[thread];
    sim_barrier();
    float other = parts[63 - thread];
    parts[thread] = other;
    sums[thread] = other;
}
TRINE_EXPORT(without_second_barrier)

TRINE_KERNEL unwritten_shared(float* y) {
    TRINE_SHARED(float, parts, 32);
    y[sim_thread(0)] = parts[sim_thread(0)];
}
TRINE_EXPORT(unwritten_shared)

TRINE_KERNEL beyond_shared(float* y) {
    TRINE_SHARED(float, parts, 32);
    parts[sim_thread(0) + 1] = 0;
    y[sim_thread(0)] = 0;
}
TRINE_EXPORT(beyond_shared)

TRINE_KERNEL same_element(float* y) { y[0] = float(sim_thread(0)); }
TRINE_EXPORT(same_element)

TRINE_KERNEL blocks_share(float* y) { y[0] += 1; }
TRINE_EXPORT(blocks_share)

// Two threads read an element twice, and the second writes it.
TRINE_KERNEL reader_and_writer(float* y, unsigned first, unsigned second) {
    unsigned i = index_in_grid();
    if (i != first && i != second) return;
    volatile float* element = y;
    float value = element[0] + element[0];
    y[1 + i] = value;
    if (i == second) y[0] = value + 1;
}
TRINE_EXPORT(reader_and_writer)

TRINE_KERNEL unaligned(float* y) { *(float*)((char*)y + 2) = 1; }
TRINE_EXPORT(unaligned)

TRINE_KERNEL divergent_barrier(float* y) {
    if (sim_thread(0) < 3) return;
    sim_barrier();
    y[sim_thread(0)] = 1;
}
TRINE_EXPORT(divergent_barrier)

TRINE_KERNEL divergent_exchange(float* y) {
    float value = 1;
    if (sim_thread(0) == 3) return;
    sim_shuffle(&value, &value, sizeof value, 0);
    y[sim_thread(0)] = value;
}
TRINE_EXPORT(divergent_exchange)

TRINE_KERNEL hangs(float* y) {
    float value = 1;
    if (sim_thread(0) == 0) sim_barrier();
    sim_shuffle(&value, &value, sizeof value, 0);
    y[sim_thread(0)] = value;
}
TRINE_EXPORT(hangs)

TRINE_KERNEL null_address(float* y, float* nowhere) {
    if (sim_thread(0) == 5) *nowhere = 1;
    y[sim_thread(0)] = 1;
}
TRINE_EXPORT(null_address)
