// Fibers for the threads of a block. Beside the results this checks what a GPU would not forgive: a barrier that some
// threads of a block or warp wait at while others wait elsewhere, an exchange with a lane that takes no part, stale
// shared memory (all bits are set before each block, and it has its exact size, so that AddressSanitizer sees what lies
// beyond). Built with HOST_CUDA_RACES and linked with ThreadSanitizer, each thread of the grid is a thread to it,
// ordered by barriers alone: it finds what compute-sanitizer's racecheck looks for, between blocks as well. This file
// itself is then compiled without it. HOST_CUDA_ORDER=forward, backward or a number (mixed): the order in which threads
// run between barriers.
#include "cuda_runtime.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(HOST_CUDA_RACES)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
}
#endif

namespace host_cuda {
namespace {

constexpr std::size_t stack_bytes = 256 * 1024;
constexpr std::size_t most_shared_bytes = 48 * 1024; // what a kernel gets without asking for more
constexpr unsigned most_threads = 1024;
constexpr unsigned warp_size = 32;

enum class Wait { none, block, warp, ended };

// Threads that wait for each other: a whole block, or those of a warp from one lane on, by their number.
constexpr unsigned groups = 1 + warp_size * warp_size;

unsigned group_of(unsigned mask) {
    return 1 + static_cast<unsigned>(__builtin_ctz(mask)) * warp_size +
           static_cast<unsigned>(__builtin_popcount(mask)) - 1;
}

struct Unmap {
    void operator()(unsigned char* stack) const { munmap(stack, stack_bytes); }
};

struct Fiber {
    ucontext_t context = {};
    std::unique_ptr<unsigned char, Unmap> stack;
    Wait wait = Wait::ended;
    int line = 0;
    unsigned mask = 0;
    bool value = false;
    std::uint64_t given = 0;
    std::array<int, groups> passed = {}; // barriers so far
    void* sanitized = nullptr;
};

// What a block has for itself. Marks are addresses that stand for a barrier, to ThreadSanitizer: two for each group of
// each warp, which take turns.
struct Block {
    std::unique_ptr<unsigned char[]> shared;
    std::unique_ptr<char[]> marks = std::make_unique<char[]>(most_threads / warp_size * groups * 2);
};

ucontext_t scheduler;
void* scheduler_sanitized = nullptr;
const void* scheduler_bottom = nullptr;
std::size_t scheduler_size = 0;
std::vector<Fiber> fibers;
Block* block = nullptr;
unsigned running = 0;
int counted = 0; // of the last barrier of the block
const std::function<void()>* body = nullptr;
char start_mark = 0;
char end_mark = 0;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "host_cuda: block %u: %s\n", blockIdx.x, what.c_str());
    std::abort();
}

void acquire([[maybe_unused]] char* mark) {
#if defined(HOST_CUDA_RACES)
    __tsan_acquire(mark);
#endif
}

void release([[maybe_unused]] char* mark) {
#if defined(HOST_CUDA_RACES)
    __tsan_release(mark);
#endif
}

// To `to`, and back here when somebody returns to `from`.
void change(ucontext_t& from, ucontext_t& to, [[maybe_unused]] void* sanitized, [[maybe_unused]] const void* bottom,
            [[maybe_unused]] std::size_t size) {
#if defined(HOST_CUDA_RACES)
    __tsan_switch_to_fiber(sanitized, 1); // 1: this alone orders nothing
#endif
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, bottom, size);
    swapcontext(&from, &to);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    swapcontext(&from, &to);
#endif
}

void resume(unsigned thread) {
    running = thread;
    threadIdx = dim3(thread);
    Fiber& fiber = fibers[thread];
    change(scheduler, fiber.context, fiber.sanitized, fiber.stack.get(), stack_bytes);
}

void pause(Wait wait, int line, unsigned mask) {
    Fiber& fiber = fibers[running];
    fiber.wait = wait;
    fiber.line = line;
    fiber.mask = mask;
    change(fiber.context, scheduler, scheduler_sanitized, scheduler_bottom, scheduler_size);
}

// Waits with the others of a group; what they did before comes before what this thread does next. A mark serves every
// second barrier: who leaves one late must not take along what others did on their way to the next.
void wait_together(Wait wait, int line, unsigned group, unsigned mask) {
    const unsigned of_warp = group == 0 ? 0 : running / warp_size;
    char* mark = &block->marks[(of_warp * groups + group) * 2 + fibers[running].passed[group]++ % 2];
    release(mark);
    pause(wait, line, mask);
    acquire(mark);
}

void expect_in(unsigned mask, int line) {
    if ((mask >> (running % warp_size) & 1U) == 0) {
        fail("line " + std::to_string(line) + ": the mask does not name the thread that gives it");
    }
}

// Votes and shuffles wait for the warp as well, but say nothing of the memory that others have written.
void meet(unsigned mask, int line) {
    expect_in(mask, line);
    pause(Wait::warp, line, mask);
}

// A fiber's whole life; it serves one thread of every block of a launch, one block after the other. To ThreadSanitizer
// each block has threads of its own.
void live() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
    for (;;) {
        acquire(&start_mark);
        (*body)();
        release(&end_mark);
        pause(Wait::ended, 0, 0);
    }
}

void make_fiber(Fiber& fiber) {
    // Mapped anew for a new thread: ThreadSanitizer then forgets what the thread before, of another block, had there.
    void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) {
        fail("no memory for a thread's stack");
    }
    fiber.stack.reset(static_cast<unsigned char*>(stack));
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, live, 0);
#if defined(HOST_CUDA_RACES)
    fiber.sanitized = __tsan_create_fiber(0);
#endif
}

std::vector<unsigned> order_of(unsigned threads) {
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0U);
    const char* wanted = std::getenv("HOST_CUDA_ORDER");
    const std::string name = wanted == nullptr ? "forward" : wanted;
    if (name == "backward") {
        std::reverse(order.begin(), order.end());
    } else if (name != "forward") {
        std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(std::stoul(name))));
    }
    return order;
}

// Whether all threads of the warp from `first` on that `mask` names wait in `line` for each other.
bool all_here(unsigned first, unsigned mask, int line) {
    bool all = true;
    for (unsigned t = first; t < first + warp_size; ++t) {
        if ((mask >> (t - first) & 1U) == 0) {
            continue;
        }
        if (t >= fibers.size() || fibers[t].wait == Wait::ended) {
            fail("line " + std::to_string(line) + ": the mask names a thread that is not there");
        }
        all = all && fibers[t].wait == Wait::warp && fibers[t].line == line && fibers[t].mask == mask;
    }
    return all;
}

// Lets those threads of the warp from `first` on go that wait for nobody any more.
bool release_warp(unsigned first) {
    bool released = false;
    const unsigned last = std::min(static_cast<unsigned>(fibers.size()), first + warp_size);
    for (unsigned t = first; t < last; ++t) {
        const unsigned mask = fibers[t].mask;
        if (fibers[t].wait != Wait::warp || !all_here(first, mask, fibers[t].line)) {
            continue;
        }
        for (unsigned other = first; other < last; ++other) {
            fibers[other].wait = (mask >> (other - first) & 1U) != 0 ? Wait::none : fibers[other].wait;
        }
        released = true;
    }
    return released;
}

// Lets the block go on if all its threads that have not ended wait at the same barrier.
bool release_block() {
    int line = 0;
    counted = 0;
    for (const Fiber& fiber : fibers) {
        if (fiber.wait == Wait::ended) {
            continue;
        }
        if (fiber.wait != Wait::block || (line != 0 && line != fiber.line)) {
            fail("a thread waits in line " + std::to_string(fiber.line) + " for others that never come there");
        }
        line = fiber.line;
        counted += fiber.value ? 1 : 0;
    }
    for (Fiber& fiber : fibers) {
        fiber.wait = fiber.wait == Wait::block ? Wait::none : fiber.wait;
    }
    return line != 0;
}

void new_threads() {
#if defined(HOST_CUDA_RACES)
    for (Fiber& fiber : fibers) {
        if (fiber.sanitized != nullptr) {
            __tsan_destroy_fiber(fiber.sanitized);
        }
        make_fiber(fiber);
    }
#endif
}

void run_block(const std::vector<unsigned>& order) {
    for (Fiber& fiber : fibers) {
        fiber.wait = Wait::none;
        fiber.passed.fill(0);
    }
    for (bool more = true; more;) {
        for (const unsigned t : order) {
            if (fibers[t].wait == Wait::none) {
                resume(t);
            }
        }
        more = false;
        for (unsigned first = 0; first < fibers.size(); first += warp_size) {
            more = release_warp(first) || more;
        }
        more = more || release_block();
    }
}

} // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
    const unsigned threads = config.blockDim.x;
    if (threads == 0 || threads > most_threads || config.gridDim.x == 0 ||
        config.dynamicSmemBytes > most_shared_bytes) {
        return cudaErrorInvalidConfiguration;
    }
    body = &kernel;
    gridDim = config.gridDim;
    blockDim = config.blockDim;
    fibers = std::vector<Fiber>(threads);
    std::for_each(fibers.begin(), fibers.end(), make_fiber);
    const std::vector<unsigned> order = order_of(threads);
#if defined(HOST_CUDA_RACES)
    scheduler_sanitized = __tsan_get_current_fiber();
    std::vector<Block> blocks(config.gridDim.x); // kept: nothing orders blocks, but reused memory would seem to
#else
    std::vector<Block> blocks(1);
#endif
    for (unsigned b = 0; b < config.gridDim.x; ++b) {
        block = &blocks[b % blocks.size()];
        block->shared = std::make_unique<unsigned char[]>(config.dynamicSmemBytes);
        std::memset(block->shared.get(), 0xff, config.dynamicSmemBytes);
        blockIdx = dim3(b);
        new_threads();
        release(&start_mark);
        run_block(order);
    }
    acquire(&end_mark);
#if defined(HOST_CUDA_RACES)
    for (const Fiber& fiber : fibers) {
        __tsan_destroy_fiber(fiber.sanitized);
    }
#endif
    return cudaSuccess;
}

unsigned char* shared_memory() {
    return block->shared.get();
}

int wait_for_block(int line, bool value) {
    fibers[running].value = value;
    wait_together(Wait::block, line, 0, 0);
    return counted;
}

void wait_for_warp(unsigned mask, int line) {
    expect_in(mask, line);
    wait_together(Wait::warp, line, group_of(mask), mask);
}

std::uint64_t exchange(unsigned mask, std::uint64_t mine, int lane, int line) {
    const unsigned first = running / warp_size * warp_size;
    if ((mask >> lane & 1U) == 0) {
        fail("line " + std::to_string(line) + ": lane " + std::to_string(lane) + " takes no part in the exchange");
    }
    fibers[running].given = mine;
    meet(mask, line);
    const std::uint64_t found = fibers[first + static_cast<unsigned>(lane)].given;
    meet(mask, -line); // nobody gives again before all have read
    return found;
}

unsigned ballot(unsigned mask, bool mine, int line) {
    const unsigned first = running / warp_size * warp_size;
    fibers[running].given = mine ? 1 : 0;
    meet(mask, line);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        if ((mask >> lane & 1U) != 0) {
            bits |= static_cast<unsigned>(fibers[first + lane].given) << lane;
        }
    }
    meet(mask, -line);
    return bits;
}

} // namespace host_cuda
