// Channel `mpi`: the solver's ranks spawn the service and talk to it through an intercommunicator. The solver must run
// under mpirun, also when it has one rank only: then a service that dies takes the job with it instead of hanging it.
// Channel `mpmd`: the same with a service that was started as another program of the solver's job.
#include "../client/failure.h"
#include "mpi_calls.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <set>
#include <thread>
#include <unistd.h>

namespace neuroscale::client {

void check_mpi(int code, const char* what) {
    if (code == MPI_SUCCESS)
        return;
    std::array<char, MPI_MAX_ERROR_STRING> text{};
    int length = 0;
    MPI_Error_string(code, text.data(), &length);
    throw Failure(NSC_ERROR_CHANNEL, std::string("MPI: ") + what + ": " + text.data());
}

void check_mpi_running(const std::string& channel) {
    int started = 0;
    int ended = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    if (started == 0 || ended != 0)
        throw Failure(NSC_ERROR_CHANNEL, "channel " + channel +
                                             ": MPI is not running in this solver: start it by mpirun, with its "
                                             "option for parallel runs, or use channel socket");
}

void IdleWait::operator()() {
    using namespace std::chrono_literals;
    const auto now = std::chrono::steady_clock::now();
    if (now >= end_)
        throw Failure(NSC_ERROR_TIMEOUT, "the service gave no answer in time; raise options.timeout if it needs "
                                         "longer");
    const auto waited = now - start_;
    if (waited < 1ms)
        std::this_thread::yield();
    else
        std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(1ms, waited / 10));
}

MPI_Comm given_communicator(const Options& options) {
    return options.has_mpi_comm ? MPI_Comm_f2c(options.mpi_comm) : MPI_COMM_WORLD;
}

MPI_Comm duplicate_of(MPI_Comm given, const Options& options, const std::string& channel) {
    MPI_Comm own = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(given, &own), "duplicating the communicator");
    MPI_Comm_set_errhandler(own, MPI_ERRORS_RETURN);
    int rank = 0;
    int ranks = 1;
    MPI_Comm_rank(own, &rank);
    MPI_Comm_size(own, &ranks);
    if (rank == options.rank && ranks == options.ranks)
        return own;
    MPI_Comm_free(&own);
    throw Failure(NSC_ERROR_ARGUMENT, "channel " + channel + ": options say rank " + std::to_string(options.rank) +
                                          " of " + std::to_string(options.ranks) + ", the communicator rank " +
                                          std::to_string(rank) + " of " + std::to_string(ranks));
}

namespace {

constexpr int tag = 0;
constexpr std::size_t largest_message = std::size_t{1} << 30; // larger blocks are cut, the same on both sides

/// The world of a job of two programs, divided by what each process says it is, as in transport/roles.py.
struct World {
    MPI_Comm local = MPI_COMM_NULL;
    int service = -1; // rank of the first service in the world
    int services = 0;
};

World divided_world(Deadline end) {
    constexpr std::size_t length = 64;
    using Role = std::array<char, length>;
    const Role mine{"macro"};
    const Role theirs{"service"};
    int rank = 0;
    int ranks = 1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    std::vector<Role> roles(static_cast<std::size_t>(ranks));
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Iallgather(mine.data(), length, MPI_CHAR, roles.data(), length, MPI_CHAR, MPI_COMM_WORLD, &request),
              "asking who is who");
    IdleWait wait(end);
    for (int done = 0;;) {
        check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "asking who is who");
        if (done != 0)
            break;
        wait();
    }
    World world;
    std::set<Role> kinds(roles.begin(), roles.end());
    for (std::size_t i = 0; i < roles.size(); ++i) {
        if (roles[i] != theirs)
            continue;
        world.service = world.services == 0 ? static_cast<int>(i) : world.service;
        ++world.services;
    }
    const int colour = static_cast<int>(std::distance(kinds.begin(), kinds.find(mine)));
    check_mpi(MPI_Comm_split(MPI_COMM_WORLD, colour, rank, &world.local), "dividing the world");
    return world;
}

/// Divided once in a process; both sides must take part.
const World& world() {
    static const World divided = divided_world(after(Options().start_timeout));
    return divided;
}

/// The service that was started beside the solver. own: communicator of the solver's ranks
MPI_Comm join(MPI_Comm own) {
    const World& divided = world();
    if (divided.services != 1)
        throw Failure(NSC_ERROR_CHANNEL, "channel mpmd: this MPI job has " + std::to_string(divided.services) +
                                             " services where one is needed: start both sides together: mpirun -n N "
                                             "solver : -n 1 neuroscale-couple serve CASE.yaml --client");
    MPI_Comm service = MPI_COMM_NULL;
    check_mpi(MPI_Intercomm_create(own, 0, MPI_COMM_WORLD, divided.service, 77, &service), "joining the service");
    return service;
}

MPI_Comm own_of(const Options& options) {
    check_mpi_running("mpi");
    return duplicate_of(options.mpmd ? world().local : given_communicator(options), options, "mpi");
}

/// Whether a program given by its path can be run, as rank 0 sees it, on all ranks: a launcher that cannot start one
/// ends the job without a word to its ranks.
void check_program(MPI_Comm own, const std::string& program) {
    int error = 0;
    if (program.find('/') != std::string::npos && access(program.c_str(), X_OK) != 0)
        error = errno;
    check_mpi(MPI_Bcast(&error, 1, MPI_INT, 0, own), "looking for the service");
    if (error != 0)
        throw Failure(NSC_ERROR_CHANNEL, "the service cannot be started: " + program + ": " + std::strerror(error) +
                                             "; set NEUROSCALE_COUPLE to the path of the program neuroscale-couple");
}

MPI_Comm spawn(MPI_Comm own, const Options& options) {
    const char* given = std::getenv("NEUROSCALE_COUPLE");
    const std::string program = !options.command.empty()             ? options.command
                                : given != nullptr && *given != '\0' ? given
                                                                     : "neuroscale-couple";
    check_program(own, program);
    std::vector<std::string> arguments{"serve", options.configuration, "--client"};
    for (const std::string& key : options.set) {
        arguments.emplace_back("--set");
        arguments.push_back(key);
    }
    if (options.resume)
        arguments.emplace_back("--resume");
    std::vector<char*> pointers;
    for (std::string& argument : arguments)
        pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    MPI_Info info = MPI_INFO_NULL;
    MPI_Info_create(&info);
    MPI_Info_set(info, "bind_to", "none");
    MPI_Comm service = MPI_COMM_NULL;
    int why = MPI_SUCCESS;
    const int code = MPI_Comm_spawn(program.c_str(), pointers.data(), 1, info, 0, own, &service, &why);
    MPI_Info_free(&info);
    check_mpi(code, ("spawning " + program + " (set NEUROSCALE_COUPLE to its path, and leave a slot for it)").c_str());
    return service;
}

class MpiChannel final : public Channel {
public:
    explicit MpiChannel(const Options& options) : own_(own_of(options)) {
        try {
            service_ = options.mpmd ? join(own_) : spawn(own_, options);
        } catch (...) {
            MPI_Comm_free(&own_);
            throw;
        }
        MPI_Comm_set_errhandler(service_, MPI_ERRORS_RETURN);
    }

    ~MpiChannel() override { leave(false); }

    bool may_share_memory() const noexcept override { return true; }

    /// Disconnecting is collective over both sides: only when both end in order.
    void leave(bool finished) noexcept override {
        if (finished && service_ != MPI_COMM_NULL) {
            MPI_Comm_disconnect(&service_);
            MPI_Comm_free(&own_);
        }
        service_ = MPI_COMM_NULL;
    }

protected:
    void write(const std::vector<Out>& blocks, Deadline end) override {
        std::vector<MPI_Request> requests;
        head_.clear(); // header and text as one message
        for (std::size_t i = 0; i < 2 && i < blocks.size(); ++i) {
            const auto* first = static_cast<const unsigned char*>(blocks[i].data);
            head_.insert(head_.end(), first, first + blocks[i].bytes);
        }
        std::vector<Out> parts{{head_.data(), head_.size()}};
        for (std::size_t i = 2; i < blocks.size(); ++i)
            parts.push_back(blocks[i]);
        for (const Out& block : parts) {
            const char* data = static_cast<const char*>(block.data);
            for (std::size_t at = 0; at < block.bytes; at += largest_message) {
                const int count = static_cast<int>(std::min(largest_message, block.bytes - at));
                requests.push_back(MPI_REQUEST_NULL);
                check_mpi(MPI_Isend(data + at, count, MPI_BYTE, 0, tag, service_, &requests.back()), "sending");
            }
        }
        while (std::chrono::steady_clock::now() < end) { // the service is there to receive: no sleep between pieces
            int done = 0;
            check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
                      "sending");
            if (done != 0)
                return;
            std::this_thread::yield();
        }
        throw Failure(NSC_ERROR_TIMEOUT, "the service did not take a message in time");
    }

    void read(void* into, std::size_t bytes, Deadline end) override {
        auto* at = static_cast<unsigned char*>(into);
        while (bytes > 0) {
            std::size_t count = rest_.size() - used_;
            if (count == 0) {
                count = receive(at, bytes, end);
            } else {
                count = std::min(count, bytes);
                std::memcpy(at, rest_.data() + used_, count);
                used_ += count;
            }
            at += count;
            bytes -= count;
        }
    }

    std::size_t piece() const noexcept override { return std::numeric_limits<std::size_t>::max(); }

private:
    /// Receive the next message where it belongs, or aside if it is longer; bytes that came where they belong.
    std::size_t receive(unsigned char* into, std::size_t room, Deadline end) {
        MPI_Message message = MPI_MESSAGE_NULL;
        MPI_Status status;
        IdleWait wait(end);
        for (int there = 0;;) {
            check_mpi(MPI_Improbe(0, tag, service_, &there, &message, &status), "receiving");
            if (there != 0)
                break;
            wait();
        }
        int count = 0;
        MPI_Get_count(&status, MPI_BYTE, &count);
        const bool fits = static_cast<std::size_t>(count) <= room;
        if (!fits) {
            rest_.resize(static_cast<std::size_t>(count));
            used_ = 0;
        }
        check_mpi(MPI_Mrecv(fits ? into : rest_.data(), count, MPI_BYTE, &message, &status), "receiving");
        return fits ? static_cast<std::size_t>(count) : 0;
    }

    MPI_Comm own_;
    MPI_Comm service_ = MPI_COMM_NULL;
    std::vector<unsigned char> head_;
    std::vector<unsigned char> rest_;
    std::size_t used_ = 0;
};

} // namespace

} // namespace neuroscale::client

extern "C" __attribute__((visibility("default"))) neuroscale::client::Channel*
nsc_open_channel_1(const neuroscale::client::Options& options) {
    return new neuroscale::client::MpiChannel(options);
}

extern "C" __attribute__((visibility("default"))) int nsc_split_world_1() {
    neuroscale::client::check_mpi_running("mpmd");
    return MPI_Comm_c2f(neuroscale::client::world().local);
}
