// The ranks of a solver that each have a service of their own in their process (channel embedded). What needs MPI of it
// is in the library of channel mpi, so that the library of channel embedded is the same with and without MPI.
#pragma once

#include "../client/channel.h"
#include "../client/failure.h"

namespace neuroscale::client {

class Ranks {
public:
    virtual ~Ranks() = default;

    /// MPI_Comm_c2f of a communicator of these ranks that nobody else uses, and the kind of its MPI, as mpi4py names
    /// it.
    virtual int communicator() const = 0;
    virtual const char* kind() const = 0;

    /// All ranks go on, or all throw: a rank that failed what it failed with, the others what the first of these said.
    /// failure: of this rank, or nullptr. Collective.
    virtual void agree(const Failure* failure) = 0;

    /// All ranks have finished: free the communicator. Collective.
    virtual void finish() noexcept = 0;
};

} // namespace neuroscale::client
