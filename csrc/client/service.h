// The process of a service that this rank starts, and ends.
#pragma once

#include "channel.h"

#include <string>
#include <sys/types.h>

namespace neuroscale::client {

/// The program neuroscale-couple: of the options, of the environment, else a name to be found on PATH.
std::string service_program(const Options& options);

/// Start a program in a group of its own, without the variables of an MPI launcher. Throws Failure.
/// arguments: the program first; stdio: what becomes its standard input and output, -1: ours
pid_t start_program(std::vector<std::string> arguments, int stdio = -1);

class ServiceProcess {
public:
    /// Start the program. Throws Failure.
    ServiceProcess(const Options& options, const std::string& address);
    ~ServiceProcess();
    ServiceProcess(const ServiceProcess&) = delete;
    ServiceProcess& operator=(const ServiceProcess&) = delete;

    pid_t pid() const noexcept { return pid_; }

    /// How it ended, as a text; empty while it runs.
    std::string ended();

    /// Give it some seconds to end by itself, then end it.
    void wait(double seconds) noexcept;

private:
    std::string program_;
    pid_t pid_ = 0;
    bool over_ = false;
    bool unknown_ = false; // over, and somebody else was told how
    int status_ = 0;
};

} // namespace neuroscale::client
