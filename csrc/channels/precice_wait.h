// Calls of preCICE that wait for the other program, with an end: preCICE itself may wait for ever.
#pragma once

#include "../client/channel.h"

#include <functional>
#include <set>
#include <string>

namespace neuroscale::client {

class Waiter {
public:
    /// threaded: wait on a thread of its own, so that a wait can be given up; else calls are made as they are
    explicit Waiter(bool threaded);

    /// Make a call of preCICE that waits for nobody. what: a sentence's end, e.g. "reading 'flux'"
    /// Throws Failure: what preCICE says.
    static void now(const std::string& what, const std::function<void()>& action);

    /// Make a call of preCICE that waits for the other program. action: owns what it needs, it may outlive the session
    /// Throws Failure: what preCICE says, a time-out, or that the other side has closed its connection.
    void wait(const std::string& what, Deadline end, std::function<void()> action);

    /// Whether a call was given up that still runs: preCICE must not be touched again, nor freed.
    bool stuck() const noexcept { return stuck_; }

private:
    bool closed_by_peer() const;

    bool threaded_;
    bool stuck_ = false;
    std::set<std::string> before_; // sockets that were there before preCICE: not ours to judge
};

} // namespace neuroscale::client
