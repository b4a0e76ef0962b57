// What kernels see of the simulator: the dialect of `trine.cuh` where there is no GPU. Included by their source, which
// g++ compiles with the calls of its thread sanitizer: these end in the simulator, which looks at every access.
#pragma once

extern "C" {
unsigned sim_thread(unsigned dimension) __attribute__((const));
unsigned sim_block(unsigned dimension) __attribute__((const));
unsigned sim_threads(unsigned dimension) __attribute__((const));
unsigned sim_blocks(unsigned dimension) __attribute__((const));
void sim_barrier();
// The block's memory for the declaration with this number in the source.
void* sim_shared(unsigned declaration, unsigned long bytes);
// The block's memory of which a launch says the size.
void* sim_shared_of_launch();
// `out` gets what lane `source` of the warp has in `in`; at most 64 bytes. All lanes of the warp call it.
void sim_shuffle(void* out, const void* in, unsigned bytes, unsigned source);
// The same for all lanes: 64 bytes for each, until the next exchange but one.
const unsigned char* sim_exchange(const void* in, unsigned bytes);
// `mma.sync.m16n8k16` of bf16: each lane hands in its parts of the factors and has its part of the sums. Each sum goes
// on from `c`, a fused multiply-add for each k, ascending. All lanes of a whole warp call it.
void sim_mma(float* c, const unsigned* a, const unsigned* b);
// `ldmatrix.x4`: four tiles of 8 rows of 8 elements of two bytes. Lane i names row i % 8 of tile i / 8, 16 bytes of
// shared memory, and receives of each tile the elements 2 · (i % 4) and the next one of row i / 4; of a turned tile,
// of column i / 4. All lanes of a whole warp call it.
void sim_load_tiles(unsigned* tiles, const void* row, bool is_turned);
void sim_register(const char* name, void (*run)(void**), const unsigned* sizes, unsigned count);
}

namespace sim_kernels {

template <unsigned... I> struct Indices {};
template <unsigned N, unsigned... I> struct Below : Below<N - 1, N - 1, I...> {};
template <unsigned... I> struct Below<0, I...> { typedef Indices<I...> type; };

// Calls a kernel with arguments of which there are only addresses, and tells the simulator their sizes.
template <auto F> struct Kernel;
template <class... A, void (*F)(A...)> struct Kernel<F> {
    template <unsigned... I> static void call(void** arguments, Indices<I...>) { F(*(A*)arguments[I]...); }
    static void run(void** arguments) { call(arguments, typename Below<sizeof...(A)>::type()); }
    explicit Kernel(const char* name) {
        static const unsigned sizes[sizeof...(A) + 1] = {(unsigned)sizeof(A)..., 0};
        sim_register(name, run, sizes, sizeof...(A));
    }
};

} // namespace sim_kernels

#define TRINE_KERNEL extern "C" void
#define TRINE_KERNEL_OF(threads) extern "C" void
#define TRINE_FN static inline
#define TRINE_METHOD inline
#define TRINE_SHARED(T, name, count) T* name = (T*)sim_shared(__COUNTER__, sizeof(T) * (count))
#define TRINE_SHARED_OF_LAUNCH(T, name) T* name = (T*)sim_shared_of_launch()
#define TRINE_EXPORT(kernel) static sim_kernels::Kernel<kernel> sim_kernel_##kernel(#kernel);
