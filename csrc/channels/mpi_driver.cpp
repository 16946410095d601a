// A solver with MPI for the tests: heat conduction at six points, dealt to its ranks; rank 0 prints all answers.
// Usage: client_mpi_driver CONFIGURATION [CHARACTER [CHANNEL [patient]]]
//     - | nan: the last rank sends one | again: so it does, then other times, then all is well | twice: two ranks give
//     the same id | leave: all ranks go without finishing | apart: the last one does
// patient: ranks say what they met and end by themselves, instead of ending the job
#include <neuroscale/client.hpp>

#include <cmath>
#include <cstdio>
#include <mpi.h>

namespace {

/// Print what a call is refused with.
template <typename Call>
void expect_refusal(int rank, const Call& call) {
    try {
        call();
        std::printf("rank %d: not refused\n", rank);
    } catch (const neuroscale::ClientError& error) {
        std::printf("rank %d: %d %s\n", rank, error.status(), error.what());
    }
}

bool is_last(int rank, int ranks) {
    return rank == ranks - 1;
}

void run(const char* configuration, const std::string& character, const std::string& channel) {
    int rank = 0;
    int ranks = 1;
    MPI_Comm mine = MPI_COMM_NULL;
    if (channel == "mpmd") {
        int solver = 0;
        std::array<char, 256> why{};
        if (const nsc_status status = nsc_split_world(&solver, why.data(), why.size()))
            throw neuroscale::ClientError(status, why.data());
        MPI_Comm_dup(MPI_Comm_f2c(solver), &mine);
    } else {
        MPI_Comm_dup(MPI_COMM_WORLD, &mine);
    }
    MPI_Comm_rank(mine, &rank);
    MPI_Comm_size(mine, &ranks);
    nsc_options options = nsc_default_options();
    options.rank = rank;
    options.ranks = ranks;
    options.mpi_comm = MPI_Comm_c2f(mine);
    options.has_mpi_comm = 1;
    options.timeout = 20.0;
    neuroscale::Session s(configuration, channel, options);
    constexpr std::size_t all = 6;
    std::vector<std::int64_t> ids;
    std::vector<double> gradient, temperature;
    for (std::size_t i = static_cast<std::size_t>(rank); i < all; i += static_cast<std::size_t>(ranks)) {
        const auto id = static_cast<std::int64_t>(all - i); // descending: the service orders them
        ids.push_back(character == "twice" && i < 2 ? 6 : id);
        gradient.insert(gradient.end(), {1.0 + static_cast<double>(i), -0.5});
        temperature.push_back(300.0);
    }
    const std::vector<double> xy(2 * ids.size());
    std::vector<double> flux(2 * ids.size());
    s.points(ids.size(), ids.data(), 2, xy.data());
    s.input("gradient", {"x", "y"}, "K/m");
    s.input("temperature", {""}, "K");
    s.output("flux", {"x", "y"}, "W/m2");
    s.connect();
    if (character == "leave" || (character == "apart" && is_last(rank, ranks)))
        return;
    std::array<double*, 1> places{flux.data()};
    nsc_answer answer{sizeof(nsc_answer), places.data(), nullptr, nullptr, nullptr, nullptr, 0};
    const auto exchange = [&](double time) { s.exchange(time, 0.1, 0, {gradient.data(), temperature.data()}, answer); };
    if (character == "nan" && is_last(rank, ranks))
        gradient[0] = std::nan("");
    if (character == "again") { // what is refused on one rank is refused on all, and all may try again
        const double good = std::exchange(gradient[0], is_last(rank, ranks) ? std::nan("") : gradient[0]);
        expect_refusal(rank, [&] { exchange(0.0); });
        gradient[0] = good;
        expect_refusal(rank, [&] { exchange(rank); });
    }
    exchange(0.0);
    s.commit();
    s.finish();
    std::array<double, 2 * all> together{};
    for (std::size_t i = 0; i < ids.size(); ++i) {
        together[2 * static_cast<std::size_t>(ids[i] - 1)] = flux[2 * i];
        together[2 * static_cast<std::size_t>(ids[i] - 1) + 1] = flux[2 * i + 1];
    }
    std::array<double, 2 * all> sum{};
    MPI_Reduce(together.data(), sum.data(), 2 * all, MPI_DOUBLE, MPI_SUM, 0, mine);
    for (std::size_t i = 0; rank == 0 && i < all; ++i)
        std::printf("%.17g %.17g\n", sum[2 * i], sum[2 * i + 1]);
    MPI_Comm_free(&mine);
}

} // namespace

int main(int argc, char** argv) {
    MPI_Init(&argc, &argv);
    const bool patient = argc > 4 && std::string(argv[4]) == "patient";
    int status = 0;
    try {
        run(argv[1], argc > 2 ? argv[2] : "", argc > 3 ? argv[3] : "mpi");
    } catch (const neuroscale::ClientError& error) {
        int rank = 0;
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
        std::printf("rank %d: %d %s\n", rank, error.status(), error.what());
        std::fflush(stdout);
        status = 1;
        if (!patient)
            MPI_Abort(MPI_COMM_WORLD, 1);
    }
    MPI_Finalize();
    return status;
}
