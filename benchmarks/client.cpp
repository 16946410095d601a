// What an exchange of the client costs beside a raw MPI round trip of the same bytes plus one copy.
// Usage: client_bench CHANNEL|raw CONFIGURATION ROWS REPEATS     prints one line: median and 0.9 quantile in seconds
#include <neuroscale/client.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mpi.h>

namespace {

constexpr std::size_t columns = 9;

template <typename Action>
void measure(int repeats, Action&& action) {
    std::vector<double> seconds;
    for (int i = 0; i < repeats + 2; ++i) { // the first two warm up
        const auto start = std::chrono::steady_clock::now();
        action(i);
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    seconds.erase(seconds.begin(), seconds.begin() + 2);
    std::sort(seconds.begin(), seconds.end());
    std::printf("%.9f %.9f\n", seconds[seconds.size() / 2], seconds[seconds.size() * 9 / 10]);
}

void raw(std::size_t rows, int repeats) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    std::vector<double> in(rows * columns, 1.0), out(rows * columns), copy(rows * columns);
    const int count = static_cast<int>(rows * columns);
    if (rank == 1) {
        for (int i = 0; i < repeats + 2; ++i) {
            MPI_Recv(out.data(), count, MPI_DOUBLE, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(out.data(), count, MPI_DOUBLE, 0, 0, MPI_COMM_WORLD);
        }
        return;
    }
    measure(repeats, [&](int) {
        MPI_Send(in.data(), count, MPI_DOUBLE, 1, 0, MPI_COMM_WORLD);
        MPI_Recv(out.data(), count, MPI_DOUBLE, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        std::memcpy(copy.data(), out.data(), out.size() * sizeof(double));
    });
}

void client(const char* channel, const char* configuration, std::size_t rows, int repeats) {
    neuroscale::Session s(configuration, channel);
    std::vector<std::int64_t> ids(rows);
    for (std::size_t i = 0; i < rows; ++i)
        ids[i] = static_cast<std::int64_t>(i);
    const std::vector<double> coordinates(rows);
    std::vector<double> in(rows * columns, 1.0), out(rows * columns);
    const std::vector<std::string> names{"a", "b", "c", "d", "e", "f", "g", "h", "i"};
    s.points(rows, ids.data(), 1, coordinates.data());
    s.input("gradient", names, "1");
    s.output("flux", names, "1");
    s.connect();
    std::array<double*, 1> places{out.data()};
    nsc_answer answer{sizeof(nsc_answer), places.data(), nullptr, nullptr, nullptr, nullptr, 0};
    measure(repeats, [&](int i) { s.exchange(0.0, 0.0, i, {in.data()}, answer); });
    if (std::memcmp(in.data(), out.data(), out.size() * sizeof(double)) != 0)
        throw std::runtime_error("the service did not echo what it was sent");
    s.commit();
    s.finish();
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 5)
        return std::fprintf(stderr, "usage: client_bench CHANNEL|raw CONFIGURATION ROWS REPEATS\n"), 2;
    const std::string channel = argv[1];
    const auto rows = static_cast<std::size_t>(std::atoll(argv[3]));
    const bool with_mpi = channel == "raw" || channel == "mpi";
    if (with_mpi)
        MPI_Init(&argc, &argv);
    try {
        if (channel == "raw") {
            raw(rows, std::atoi(argv[4]));
        } else {
            client(argv[1], argv[2], rows, std::atoi(argv[4]));
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    if (with_mpi)
        MPI_Finalize();
    return 0;
}
