// What the parts of the library of channel mpi share.
#pragma once

#include "../client/channel.h"

#include <mpi.h>
#include <string>

namespace neuroscale::client {

/// Throws Failure if an MPI call went wrong.
void check_mpi(int code, const char* what);

/// Throws Failure unless MPI runs in this solver. channel: for the text
void check_mpi_running(const std::string& channel);

/// A duplicate of the communicator of the solver's ranks, whose errors return. Throws Failure if rank and ranks of the
/// options are not its own. Collective.
MPI_Comm duplicate_of(MPI_Comm given, const Options& options, const std::string& channel);

/// The communicator that the options name, else MPI_COMM_WORLD.
MPI_Comm given_communicator(const Options& options);

/// Give way to others for a millisecond, then sleep a tenth of the time waited: a waiting rank must not keep a core
/// from the service, and most answers come sooner than a sleep ends.
class IdleWait {
public:
    explicit IdleWait(Deadline end) : end_(end) {}
    /// Throws Failure when the time is over.
    void operator()();

private:
    Deadline end_;
    Deadline start_ = std::chrono::steady_clock::now();
};

} // namespace neuroscale::client
