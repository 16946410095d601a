// What channel embedded needs of MPI where a solver has several ranks.
#include "../client/failure.h"
#include "mpi_calls.h"
#include "ranks.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace neuroscale::client {

namespace {

class MpiRanks final : public Ranks {
public:
    explicit MpiRanks(const Options& options) : patience_(options.start_timeout) {
        check_mpi_running("embedded");
        own_ = duplicate_of(given_communicator(options), options, "embedded");
    }

    int communicator() const override { return MPI_Comm_c2f(own_); }

    const char* kind() const override {
#ifdef OPEN_MPI
        return "openmpi";
#else
        return "mpich";
#endif
    }

    void agree(const Failure* failure) override {
        Buffers& b = *buffers_;
        b.mine.status = failure == nullptr ? NSC_OK : failure->status();
        wait([&](MPI_Request* request) {
            return MPI_Iallreduce(&b.mine.status, &b.worst, 1, MPI_INT, MPI_MAX, own_, request);
        });
        if (b.worst == NSC_OK)
            return;
        int ranks = 1;
        MPI_Comm_size(own_, &ranks);
        if (failure != nullptr)
            std::memcpy(b.mine.text.data(), failure->text().data(), std::min(failure->text().size(), room - 1));
        b.all.resize(static_cast<std::size_t>(ranks));
        wait([&](MPI_Request* request) {
            constexpr int size = static_cast<int>(sizeof(Cause));
            return MPI_Iallgather(&b.mine, size, MPI_BYTE, b.all.data(), size, MPI_BYTE, own_, request);
        });
        if (failure != nullptr)
            throw *failure;
        const auto first =
            std::find_if(b.all.begin(), b.all.end(), [](const Cause& cause) { return cause.status != NSC_OK; });
        throw Failure(static_cast<nsc_status>(first->status),
                      "rank " + std::to_string(first - b.all.begin()) + ": " + first->text.data());
    }

    void finish() noexcept override { MPI_Comm_free(&own_); }

private:
    static constexpr std::size_t room = 2048;
    struct Cause {
        int status = NSC_OK;
        std::array<char, room> text{};
    };

    struct Buffers {
        Cause mine;
        int worst = NSC_OK;
        std::vector<Cause> all;
    };

    /// Wait for a collective without keeping a core.
    template <typename Start>
    void wait(const Start& start) {
        MPI_Request request = MPI_REQUEST_NULL;
        check_mpi(start(&request), "asking the other ranks");
        IdleWait idle(after(patience_));
        for (int done = 0;;) {
            check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "asking the other ranks");
            if (done != 0)
                return;
            try {
                idle();
            } catch (...) {
                static_cast<void>(buffers_.release()); // nobody came: MPI may use them as long as it runs
                throw;
            }
        }
    }

    double patience_;
    MPI_Comm own_ = MPI_COMM_NULL;
    std::unique_ptr<Buffers> buffers_ = std::make_unique<Buffers>();
};

} // namespace

} // namespace neuroscale::client

extern "C" __attribute__((visibility("default"))) neuroscale::client::Ranks*
nsc_open_ranks_1(const neuroscale::client::Options& options) {
    return new neuroscale::client::MpiRanks(options);
}
