// The process of a service that this rank starts, and ends.
#pragma once

#include "channel.h"

#include <string>
#include <sys/types.h>

namespace neuroscale::client {

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
    int status_ = 0;
};

} // namespace neuroscale::client
