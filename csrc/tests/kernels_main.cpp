// Runs every CPU kernel on arrays large enough for threads and compares it with the reference, bit for bit; built with
// a sanitizer or run under valgrind by tests/kernels/test_threads_and_memory.py. Exits 1 on a difference. With
// NEUROSCALE_HOST_CUDA the same for the CUDA kernels, on the host (csrc/tests/host_cuda).
#include "neuroscale/kernels/admissible.h"
#include "neuroscale/kernels/coarsen_cells.h"
#include "neuroscale/kernels/coarsen_pyramid.h"
#include "neuroscale/kernels/conserve.h"
#include "neuroscale/kernels/gate_select.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

namespace k = neuroscale::kernels;

#if defined(NEUROSCALE_HOST_CUDA)
#define TESTED(kernel, ...) failures += k::cuda::kernel(__VA_ARGS__, nullptr)
#else
#define TESTED(kernel, ...) k::cpu::kernel(__VA_ARGS__)
#endif

namespace {

int failures = 0;

void check(const char* what, bool same) {
    std::printf("%s: %s\n", what, same ? "same" : "DIFFERENT");
    failures += same ? 0 : 1;
}

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

std::vector<double> numbers(std::int64_t n, unsigned seed) {
    std::vector<double> out(static_cast<std::size_t>(n));
    std::srand(seed);
    for (double& x : out) {
        x = std::rand() / (RAND_MAX + 1.0) - 0.4;
    }
    return out;
}

void pyramid(std::int64_t fields) {
    k::PyramidShape shape{fields, 1, 48, 40, 2, {2, 4}, false};
    const std::vector<double> fine = numbers(fields * 48 * 40, 1);
    std::vector<std::vector<double>> outputs[2];
    for (int version = 0; version < 2; ++version) {
        for (int part = 0; part < 3; ++part) {
            outputs[version].emplace_back(fields * 24 * 20);
            outputs[version].emplace_back(fields * 6 * 5);
        }
        double* p[6];
        for (int i = 0; i < 6; ++i) {
            p[i] = outputs[version][static_cast<std::size_t>(i)].data();
        }
        const k::PyramidOutputs<double> out{p, p + 2, p + 4};
        if (version == 0) {
            TESTED(coarsen_pyramid<double>, fine.data(), nullptr, out, shape);
        } else {
            k::reference::coarsen_pyramid<double>(fine.data(), nullptr, out, shape);
        }
    }
    for (std::size_t i = 0; i < 6; ++i) {
        check("coarsen_pyramid", same(outputs[0][i], outputs[1][i]));
    }
}

// Means alone, which the CUDA kernel makes in another way.
void means(const k::PyramidShape& shape) {
    const std::int64_t cells = shape.fields * shape.depth * shape.height * shape.width;
    const std::vector<double> fine = numbers(cells, 9);
    std::vector<std::vector<double>> outputs[2];
    for (int version = 0; version < 2; ++version) {
        double* p[k::max_pyramid_levels];
        std::int64_t left = cells;
        for (std::int64_t s = 0; s < shape.levels; ++s) {
            left /= shape.factor[s] * shape.factor[s] * (shape.volume ? shape.factor[s] : 1);
            outputs[version].emplace_back(static_cast<std::size_t>(left));
            p[s] = outputs[version].back().data();
        }
        const k::PyramidOutputs<double> out{p, nullptr, nullptr};
        if (version == 0) {
            TESTED(coarsen_pyramid<double>, fine.data(), nullptr, out, shape);
        } else {
            k::reference::coarsen_pyramid<double>(fine.data(), nullptr, out, shape);
        }
    }
    check("coarsen_pyramid, means", outputs[0] == outputs[1]);
}

void cells(std::int64_t coarse_cells) {
    std::vector<std::int64_t> offsets{0};
    for (std::int64_t c = 0; c < coarse_cells; ++c) {
        const std::int64_t longer = c == 30 ? 5000 : c == 60 ? 200 : 0; // beyond a tile of CUDA, and by warps
        offsets.push_back(offsets.back() + c % 13 + longer);
    }
    std::vector<std::int64_t> index(static_cast<std::size_t>(offsets.back()));
    std::iota(index.rbegin(), index.rend(), 0);
    const k::CellMap map{coarse_cells, offsets.data(), index.data(), offsets.back()};
    const auto n = static_cast<std::int64_t>(index.size());
    const std::vector<double> weights = numbers(n, 2);
    const std::vector<double> fine = numbers(n * 3, 3);
    std::vector<double> one(static_cast<std::size_t>(coarse_cells * 3));
    std::vector<double> other = one;
    TESTED(coarsen_cells<double>, map, weights.data(), nullptr, fine.data(), 3, one.data());
    k::reference::coarsen_cells<double>(map, weights.data(), nullptr, fine.data(), 3, other.data());
    check("coarsen_cells", same(one, other));
    std::vector<double> back(fine.size());
    std::vector<double> again(fine.size());
    TESTED(refine_cells<double>, map, weights.data(), nullptr, one.data(), 3, back.data());
    k::reference::refine_cells<double>(map, weights.data(), nullptr, one.data(), 3, again.data());
    check("refine_cells", same(back, again));
}

// Points in chunks of three segments: a long one, an empty one, and one of a few chunks.
struct Chunks {
    std::vector<std::int64_t> start;
    std::vector<std::int64_t> segment;
    std::vector<std::int64_t> first{0};

    Chunks(std::int64_t n, std::int64_t length) {
        const std::int64_t ends[] = {0, n - n / 9, n - n / 9, n};
        for (int g = 0; g < 3; ++g) {
            for (std::int64_t at = ends[g]; at < ends[g + 1]; at += length) {
                start.push_back(at);
                segment.push_back(g);
            }
            first.push_back(static_cast<std::int64_t>(segment.size()));
        }
        start.push_back(n);
    }
};

void conserve(std::int64_t n, std::int64_t length, bool bounded, bool shuffled) {
    std::vector<double> values = numbers(n * 3, 4);
    const std::vector<double> volumes = numbers(n, 5);
    const std::vector<double> variance = numbers(n, 6);
    std::vector<double> lower = values;
    std::vector<double> upper = values;
    for (std::size_t i = 0; i < values.size(); ++i) {
        lower[i] -= 0.001;
        upper[i] += 0.03;
    }
    std::vector<std::int64_t> entries(static_cast<std::size_t>(n));
    std::iota(entries.rbegin(), entries.rend(), 0);
    const std::vector<std::int64_t> columns{0, 2};
    const Chunks chunks(n, length);
    const std::vector<double> multiplier{0.3, -0.2, 0.1, 0.0, -0.7, 0.4};
    std::vector<double> parts(chunks.segment.size() * 2 * k::conserve_sums_count);
    std::vector<double> one(6 * k::conserve_sums_count);
    std::vector<double> other = one;
    k::Balances<double> b{};
    b.values = values.data();
    b.stride = 3;
    b.columns = columns.data();
    b.k = 2;
    b.volumes = volumes.data();
    b.variance = variance.data();
    b.lower = bounded ? lower.data() : nullptr;
    b.upper = bounded ? upper.data() : nullptr;
    b.entries = shuffled ? entries.data() : nullptr;
    b.n = n;
    b.chunks = chunks.start.data();
    b.chunk_segment = chunks.segment.data();
    b.segment_chunks = chunks.first.data();
    b.chunk_count = static_cast<std::int64_t>(chunks.segment.size());
    b.segments = 3;
    b.multiplier = multiplier.data();
    TESTED(conserve_sums<double>, b, parts.data(), one.data());
    k::reference::conserve_sums(b, parts.data(), other.data());
    check("conserve_sums", same(one, other));
    std::vector<double> copy = values;
    TESTED(conserve_apply<double>, b);
    b.values = copy.data();
    k::reference::conserve_apply(b);
    check("conserve_apply", same(values, copy));
}

// Tensors of which some violate, some are not finite and some unwanted, in rows with a column more.
void admissible(std::int64_t n, int d, bool bounded) {
    std::vector<double> t = numbers(n * d * (d + 1), 7);
    std::vector<double> lower(static_cast<std::size_t>(n * d * d), 0.0);
    std::vector<double> upper = lower;
    std::vector<std::uint8_t> wanted(static_cast<std::size_t>(n), 1);
    for (std::int64_t i = 0; i < n; ++i) {
        for (int r = 0; r < d; ++r) {
            lower[static_cast<std::size_t>((i * d + r) * d + r)] = 1.0;
            upper[static_cast<std::size_t>((i * d + r) * d + r)] = 9.0;
            t[static_cast<std::size_t>((i * d + r) * (d + 1) + r + 1)] += i % 8 == 0 ? 0.0 : 4.0;
        }
        t[static_cast<std::size_t>(i * d * (d + 1) + 1)] /= i % 100 == 3 ? 0.0 : 1.0;
        wanted[static_cast<std::size_t>(i)] = i % 5 == 0 ? 0 : 1;
    }
    std::vector<double> copy = t;
    std::vector<std::uint8_t> changed(static_cast<std::size_t>(n));
    std::vector<std::uint8_t> other = changed;
    k::Tensors<double> a{t.data(), nullptr, nullptr, wanted.data(), changed.data(), n, d + 1, 1, d, 1e-9, 1e-6};
    a.lower = bounded ? lower.data() : nullptr;
    a.upper = bounded ? upper.data() : nullptr;
    TESTED(admissible<double>, a);
    a.tensors = copy.data();
    a.changed = other.data();
    k::reference::admissible(a);
    check("admissible", same(t, copy) && same(changed, other));
}

void gate(std::int64_t n, std::int64_t parts_count) {
    const std::vector<double> score = numbers(n, 8);
    const std::vector<double> knots{-0.2, 0.1, 0.3};
    const std::vector<double> levels{1.0, 2.0, 4.0};
    std::vector<std::uint8_t> reason[2];
    std::vector<double> error[2];
    std::vector<std::int64_t> refused[2];
    for (int version = 0; version < 2; ++version) {
        reason[version].assign(static_cast<std::size_t>(n), 0);
        error[version].assign(static_cast<std::size_t>(n), 0.0);
        refused[version].assign(static_cast<std::size_t>(n), -1);
        std::vector<std::int64_t> parts(static_cast<std::size_t>(parts_count + 1));
        const k::Selection<double> s{score.data(),
                                     n,
                                     0.2,
                                     knots.data(),
                                     levels.data(),
                                     3,
                                     6,
                                     5,
                                     reason[version].data(),
                                     error[version].data(),
                                     refused[version].data(),
                                     parts.data(),
                                     parts_count};
        if (version == 0) {
            TESTED(gate_select<double>, s);
        } else {
            k::reference::gate_select(s);
        }
    }
    check("gate_select", same(reason[0], reason[1]) && same(error[0], error[1]) && same(refused[0], refused[1]));
}

} // namespace

// One argument: how many times smaller than what threads are worth (valgrind is slow).
int main(int, char** arguments) {
    const std::int64_t less = std::atoll(arguments[1]);
    pyramid(400 / less);
    means({2000 / less, 1, 32, 32, 5, {2, 2, 2, 2, 2}, false});
    means({1, 1, 12, 60000 / less, 3, {3, 2, 2}, false});
    means({200 / less, 16, 16, 16, 4, {2, 2, 2, 2}, true});
    means({1, 12, 12, 12000 / less, 2, {3, 2}, true});
    cells(60000 / less);
    conserve(300000 / less, 512, false, false);
    conserve(150000 / less, 512 / less + 3, true, true);
    admissible(40000 / less, 3, false);
    admissible(40000 / less, 3, true);
    admissible(20000 / less, 2, true);
    admissible(4000 / less, 6, true);
    gate(400000 / less, less > 1 ? 7 : 64);
    gate(400000 / less, 1);
    return failures == 0 ? 0 : 1;
}
