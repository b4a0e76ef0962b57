// Random words as functions of where they are used: Philox4x32-10 (Salmon et al., SC 2011), as `trine-rng` has it.
#pragma once

struct Words {
    u32 x, y, z, w;
};

TRINE_FN u32 high_product(u32 a, u32 b) { return u32((u64)a * b >> 32); }

TRINE_FN Words philox(Words counter, u64 key) {
    u32 low = u32(key), high = u32(key >> 32);
    for (u32 round = 0; round < 10; round++) {
        u32 first = 0xD2511F53u, second = 0xCD9E8D57u;
        counter = {high_product(second, counter.z) ^ counter.y ^ low, second * counter.z,
                   high_product(first, counter.x) ^ counter.w ^ high, first * counter.x};
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    return counter;
}

// The four words of elements 4 · block, … of a mask.
TRINE_FN Words mask_words(u64 key, u32 step, u32 sample, u64 block) {
    return philox({step, sample, u32(block >> 32), u32(block)}, key);
}
