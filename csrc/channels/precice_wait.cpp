#include "precice_wait.h"

#include "../client/failure.h"

#include <cfenv>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

namespace neuroscale::client {

namespace {

using namespace std::chrono_literals;
constexpr auto look = 500ms;     // between two looks at the connections
constexpr auto patience = 3s;    // that a connection must have been closed, so that preCICE's own text comes first
const std::string closed = "08"; // state of a TCP connection that the other side has closed

/// What a call leaves behind for the thread that waits for it.
struct Call {
    std::mutex lock;
    std::condition_variable ended;
    bool over = false;
    bool failed = false;
    std::string text;
};

/// Solvers trap floating-point exceptions: not inside preCICE.
void run(Call& call, const std::function<void()>& action) {
    std::fenv_t kept{};
    std::feholdexcept(&kept);
    std::string text;
    bool failed = true;
    try {
        action();
        failed = false;
    } catch (const std::exception& error) {
        text = error.what();
    } catch (...) {
        text = "an unknown error";
    }
    std::fesetenv(&kept);
    const std::lock_guard<std::mutex> held(call.lock);
    call.over = true;
    call.failed = failed;
    call.text = std::move(text);
    call.ended.notify_all();
}

void check(const Call& call, const std::string& what) {
    if (call.failed)
        throw Failure(NSC_ERROR_SERVICE, "channel precice: preCICE failed, " + what + ": " + call.text +
                                             "; if the other program has ended, its output says why");
}

/// Inodes of this process's sockets.
std::set<std::string> sockets() {
    std::set<std::string> found;
    std::error_code error;
    for (std::filesystem::directory_iterator at("/proc/self/fd", error), end; !error && at != end;
         at.increment(error)) {
        std::error_code gone;
        const std::string link = std::filesystem::read_symlink(at->path(), gone).string();
        if (!gone && link.rfind("socket:[", 0) == 0)
            found.insert(link.substr(8, link.size() - 9));
    }
    return found;
}

} // namespace

Waiter::Waiter(bool threaded) : threaded_(threaded), before_(sockets()) {}

bool Waiter::closed_by_peer() const {
    const std::set<std::string> mine = sockets();
    for (const char* table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
        std::ifstream lines(table);
        std::string line;
        std::getline(lines, line);
        while (std::getline(lines, line)) {
            std::istringstream words(line);
            std::string number, local, remote, state, word, inode;
            words >> number >> local >> remote >> state;
            for (int i = 4; i <= 9; ++i)
                words >> (i == 9 ? inode : word);
            if (state == closed && mine.count(inode) != 0 && before_.count(inode) == 0)
                return true;
        }
    }
    return false;
}

void Waiter::now(const std::string& what, const std::function<void()>& action) {
    Call call;
    run(call, action);
    check(call, what);
}

void Waiter::wait(const std::string& what, Deadline end, std::function<void()> action) {
    if (!threaded_)
        return now(what, action);
    const auto call = std::make_shared<Call>();
    std::thread([call, action = std::move(action)] { run(*call, action); }).detach();
    std::unique_lock<std::mutex> held(call->lock);
    Deadline given_up = Deadline::max(); // when a closed connection has been closed for long enough
    while (!call->ended.wait_until(held, std::min(end, std::chrono::steady_clock::now() + look),
                                   [&] { return call->over; })) {
        const auto time = std::chrono::steady_clock::now();
        given_up = closed_by_peer() ? std::min(given_up, time + patience) : Deadline::max();
        stuck_ = time >= std::min(end, given_up);
        if (stuck_ && time >= given_up)
            throw Failure(NSC_ERROR_LOST, "channel precice: " + what +
                                              ", but the other program has gone: its "
                                              "connection is closed; its output says why");
        if (stuck_)
            throw Failure(NSC_ERROR_TIMEOUT,
                          "channel precice: " + what +
                              " took too long; look at the output of the "
                              "other program, or raise options.timeout (options.start_timeout at the "
                              "start)");
    }
    check(*call, what);
}

} // namespace neuroscale::client
