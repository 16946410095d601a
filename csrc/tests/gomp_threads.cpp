// GCC's parallel regions on plain threads, in place of libgomp: ThreadSanitizer sees how these start and join, so that
// what it reports is a race of a kernel and never one of the runtime. For static schedules, which is all that we use.
#include <thread>
#include <vector>

namespace {
constexpr int team_size = 4;
thread_local int team = 1;
thread_local int rank = 0;
} // namespace

extern "C" {

int omp_get_max_threads() {
    return team_size;
}

int omp_get_num_threads() {
    return team;
}

int omp_get_thread_num() {
    return rank;
}

// threads: 1 where the region's `if` is false, 0 for the default.
void GOMP_parallel(void (*region)(void*), void* shared, unsigned threads, unsigned) {
    const int size = threads == 1 ? 1 : team_size;
    std::vector<std::thread> others;
    for (int i = 1; i < size; ++i) {
        others.emplace_back([=] {
            team = size;
            rank = i;
            region(shared);
        });
    }
    team = size;
    region(shared);
    team = 1;
    for (std::thread& other : others) {
        other.join();
    }
}
}
