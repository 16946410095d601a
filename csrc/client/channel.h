// What carries messages to the service and back. One class per channel; the session knows this one alone.
#pragma once

#include "neuroscale/client.h"
#include "wire.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace neuroscale::client {

using Deadline = std::chrono::steady_clock::time_point;

inline Deadline after(double seconds) {
    return std::chrono::steady_clock::now() +
           std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
}

/// A block to send, owned by the caller.
struct Out {
    const void* data;
    std::size_t bytes;
};

/// A block to fill, owned by the caller. numbers: it holds float64 that must be finite
struct In {
    void* data;
    std::size_t bytes;
    const char* numbers = nullptr;
};

/// Throws Failure: an answer holds a number that no answer may hold.
[[noreturn]] void refuse_not_finite(const char* where);

struct Message {
    Header header;
    Reader text;
};

/// All calls throw Failure.
class Channel {
public:
    virtual ~Channel() = default;

    void send(Kind kind, const Writer& text, const std::vector<Out>& data, Deadline end);
    Message receive(Deadline end);

    /// Receive the data of a message; their size must be the header's. Refuses numbers that are not finite.
    void receive_data(const Header& header, const std::vector<In>& blocks, Deadline end);
    std::vector<double> receive_numbers(std::uint64_t count, Deadline end);
    void skip_data(const Header& header, Deadline end);

    /// Process that this rank started; 0: none.
    virtual std::int64_t service_pid() const noexcept { return 0; }

    /// The session is over: let go. finished: the service has been told and ends by itself
    virtual void leave(bool finished) noexcept = 0;

    /// Whether the service may be another process of this node, with which memory can be shared.
    virtual bool may_share_memory() const noexcept { return false; }

protected:
    virtual void write(const std::vector<Out>& blocks, Deadline end) = 0;
    virtual void read(void* into, std::size_t bytes, Deadline end) = 0;

    /// Data are read in pieces of this size, and checked while they are still in the cache.
    virtual std::size_t piece() const noexcept { return std::size_t{1} << 20; }
};

class Ranks;
struct Options;

/// What the library of channel mpi exports for channel embedded on several ranks, see channels/ranks.h.
using RanksOpener = Ranks* (*)(const Options& options);
inline constexpr const char* ranks_opener_name = "nsc_open_ranks_1";

/// Options with all defaults filled in, owning their texts.
struct Options {
    std::string configuration; // absolute
    int rank = 0;
    int ranks = 1;
    std::string address;
    std::string command;
    std::vector<std::string> set;
    bool resume = false;
    bool no_start = false;
    double start_timeout = 120.0;
    double timeout = 3600.0;
    int mpi_comm = 0;
    bool has_mpi_comm = false;
    bool mpmd = false;                // mpi: the service is another program of the same job
    RanksOpener open_ranks = nullptr; // embedded: how several ranks meet
};

/// Throws Failure for an unknown channel, or a service that cannot be reached.
std::unique_ptr<Channel> open_channel(const std::string& name, const Options& options);

std::unique_ptr<Channel> open_socket_channel(const Options& options);

/// What a library of another channel exports, found by open_channel with dlopen.
using ChannelFactory = Channel* (*)(const Options& options);
inline constexpr const char* channel_factory_name = "nsc_open_channel_1";

/// Divide MPI_COMM_WORLD by role, in the library of channel mpi. Throws Failure.
/// Returns MPI_Comm_c2f of the communicator of the solver's ranks.
using WorldSplitter = int (*)();
inline constexpr const char* world_splitter_name = "nsc_split_world_1";
int split_world();

} // namespace neuroscale::client
