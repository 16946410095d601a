// What the CPU kernels share: one binary for several CPUs, and when threads are worth waking.
#pragma once

#include <atomic>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

#if defined(NEUROSCALE_HAS_TARGET_CLONES)
#define NEUROSCALE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NEUROSCALE_CLONES
#endif
// Everything a cloned function calls must be inlined into it to be compiled for the same CPU.
#define NEUROSCALE_INLINE inline __attribute__((always_inline))

namespace neuroscale::kernels::cpu {

// Bytes below which waking threads on a busy machine costs more than it gains; about a quarter of a millisecond.
constexpr std::int64_t worth_threads = std::int64_t{4} << 20;

// Asks for the `bytes` that begin `ahead` of `from`, line by line in the order of the memory.
NEUROSCALE_INLINE void fetch(const void* from, std::int64_t ahead, std::int64_t bytes) {
    constexpr std::int64_t line = 64;
    const auto at = reinterpret_cast<std::uintptr_t>(from); // an address beyond the array is no pointer
    for (std::int64_t i = ahead; i < ahead + bytes; i += line) {
        __builtin_prefetch(reinterpret_cast<const void*>(at + static_cast<std::uintptr_t>(i)));
    }
}

inline int max_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// Into how many parts so many bytes are cut for share(): several per thread, none of them small; 1 for one thread.
inline std::int64_t parts_of(std::int64_t bytes, std::int64_t threads) {
    constexpr std::int64_t part_bytes = 1 << 18;
    constexpr std::int64_t most = 16; // per thread
    const std::int64_t parts = (bytes + part_bytes - 1) / part_bytes;
    if (threads == 1 || parts < threads) {
        return threads;
    }
    return parts < most * threads ? parts : most * threads;
}

// work(0) ... work(parts - 1), each by the thread that comes for it first: a thread that sleeps takes tens of
// microseconds to wake up, a third of the time of a small field, and finds less to do then, instead of being waited
// for. Without `threads`, and with one part, there is not even a region of one thread, which takes as long as a tiny
// field.
template <typename Work>
void share(std::int64_t parts, Work work, bool threads = true) {
    if (!threads || parts == 1) {
        for (std::int64_t part = 0; part < parts; ++part) {
            work(part);
        }
        return;
    }
    std::atomic<std::int64_t> next{0};
#pragma omp parallel
    for (std::int64_t part = next.fetch_add(1); part < parts; part = next.fetch_add(1)) {
        work(part);
    }
}

} // namespace neuroscale::kernels::cpu
