// Channel `socket`: an AF_UNIX socket of this node, to a service that rank 0 starts or that runs already.
#include "channel.h"
#include "failure.h"
#include "service.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

namespace neuroscale::client {

namespace {

using namespace std::chrono_literals;
constexpr int buffer_size = 4 << 20;
constexpr double leaving = 10.0; // seconds that a service gets to end after it was told to
constexpr auto soon = 1ms;       // a service that is told to work often answers before a sleeping process were awake

int milliseconds_to(Deadline end) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    return static_cast<int>(std::clamp<long long>(left + 1, 0, 1 << 30));
}

/// What all ranks of one job on this node share, and no other job does.
std::string name_of_job(const Options& options) {
    if (options.ranks == 1)
        return std::to_string(getpid());
    for (const char* name : {"PMIX_NAMESPACE", "PMI_JOBID", "SLURM_STEPID"}) {
        const char* value = std::getenv(name);
        const char* job = std::getenv("SLURM_JOB_ID");
        if (value != nullptr && *value != '\0')
            return std::string(value) + "/" + (job != nullptr ? job : "");
    }
    return "parent " + std::to_string(getppid());
}

std::string default_address(const Options& options) {
    std::uint64_t hash = 14695981039346656037U; // FNV-1a
    for (const char letter : options.configuration + "\n" + name_of_job(options))
        hash = (hash ^ static_cast<unsigned char>(letter)) * 1099511628211U;
    for (const char* name : {"XDG_RUNTIME_DIR", "TMPDIR"}) {
        const char* folder = std::getenv(name);
        if (folder != nullptr && *folder != '\0' && std::strlen(folder) < 64 && access(folder, W_OK) == 0)
            return std::string(folder) + "/neuroscale-" + std::to_string(getuid()) + "-" + std::to_string(hash);
    }
    return "/tmp/neuroscale-" + std::to_string(getuid()) + "-" + std::to_string(hash);
}

class SocketChannel final : public Channel {
public:
    explicit SocketChannel(const Options& options) : rank_(options.rank) {
        const bool given = !options.address.empty();
        address_ = given ? options.address : default_address(options);
        if (address_.size() >= sizeof(sockaddr_un::sun_path))
            throw Failure(NSC_ERROR_ARGUMENT, "the path of the socket is longer than " +
                                                  std::to_string(sizeof(sockaddr_un::sun_path) - 1) +
                                                  " bytes: " + address_);
        try {
            reach(options, given);
        } catch (...) {
            release(); // the destructor of an object that was never made does not run
            throw;
        }
    }

    ~SocketChannel() override { release(); }

    std::int64_t service_pid() const noexcept override { return service_ ? service_->pid() : 0; }

    bool may_share_memory() const noexcept override { return true; }

    void leave(bool finished) noexcept override {
        if (socket_ >= 0)
            close(socket_);
        socket_ = -1;
        if (service_)
            service_->wait(finished ? leaving : 3.0); // a service that lost its solver writes its ledger first
    }

protected:
    void write(const std::vector<Out>& blocks, Deadline end) override;
    void read(void* into, std::size_t bytes, Deadline end) override;

private:
    void reach(const Options& options, bool given) {
        if (options.rank == 0 && !options.no_start && !(given && try_connect() == 0)) {
            remove_stale();
            service_ = std::make_unique<ServiceProcess>(options, address_);
        }
        const Deadline end = after(options.start_timeout);
        int error = 0;
        while (socket_ < 0 && (error = try_connect()) != 0) {
            const std::string ended = service_ ? service_->ended() : "";
            if (!ended.empty())
                throw Failure(NSC_ERROR_CHANNEL,
                              "the service could not start: " + ended + " before it answered; its own output says why");
            if (std::chrono::steady_clock::now() >= end || (options.no_start && options.ranks == 1))
                throw Failure(NSC_ERROR_CHANNEL, "rank " + std::to_string(rank_) + ": no service answers at " +
                                                     address_ + ": " + std::strerror(error));
            std::this_thread::sleep_for(10ms);
        }
        check_user();
    }

    /// 0, or what the system says.
    int try_connect() {
        sockaddr_un name{};
        name.sun_family = AF_UNIX;
        std::memcpy(name.sun_path, address_.c_str(), address_.size() + 1);
        const int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (descriptor < 0)
            return errno;
        if (connect(descriptor, reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0) {
            const int error = errno;
            close(descriptor);
            return error;
        }
        setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &buffer_size, sizeof buffer_size);
        setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &buffer_size, sizeof buffer_size);
        socket_ = descriptor;
        return 0;
    }

    /// A socket that nobody listens to, left by a run that was killed; nothing else is ever removed.
    void remove_stale() {
        struct stat found{};
        if (lstat(address_.c_str(), &found) == 0 && S_ISSOCK(found.st_mode) && found.st_uid == getuid())
            unlink(address_.c_str());
    }

    void check_user() {
        ucred peer{};
        socklen_t size = sizeof peer;
        if (getsockopt(socket_, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid != getuid())
            throw Failure(NSC_ERROR_CHANNEL, "the service at " + address_ + " belongs to user " +
                                                 std::to_string(peer.uid) + "; give another address");
    }

    void release() noexcept {
        leave(false);
        service_.reset();
    }

    void wait_until(short event, Deadline end) {
        pollfd waiting{socket_, event, 0};
        const int found = poll(&waiting, 1, milliseconds_to(end));
        if (found == 0 && std::chrono::steady_clock::now() >= end)
            throw Failure(NSC_ERROR_TIMEOUT, "the service gave no answer in time; raise options.timeout if it needs "
                                             "longer");
        if (found < 0 && errno != EINTR)
            throw Failure(NSC_ERROR_LOST, std::string("waiting for the service failed: ") + std::strerror(errno));
    }

    [[noreturn]] void lost(const char* why) {
        std::string ended;
        for (int i = 0; service_ && ended.empty() && i < 100; ++i) { // it is ending: see how
            ended = service_->ended();
            if (ended.empty())
                std::this_thread::sleep_for(10ms);
        }
        throw Failure(NSC_ERROR_LOST, std::string("the service went away without a word (") +
                                          (ended.empty() ? why : ended) + "); its own output may say why");
    }

    int rank_;
    int socket_ = -1;
    std::string address_;
    std::unique_ptr<ServiceProcess> service_;
};

void SocketChannel::write(const std::vector<Out>& blocks, Deadline end) {
    std::vector<iovec> rest;
    for (const Out& block : blocks) {
        if (block.bytes != 0)
            rest.push_back({const_cast<void*>(block.data), block.bytes});
    }
    for (std::size_t first = 0; first < rest.size();) {
        msghdr message{};
        message.msg_iov = rest.data() + first;
        message.msg_iovlen = std::min<std::size_t>(rest.size() - first, 64);
        const ssize_t sent = sendmsg(socket_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            wait_until(POLLOUT, end);
            continue;
        }
        if (sent < 0)
            lost(std::strerror(errno));
        for (auto left = static_cast<std::size_t>(sent); left > 0;) {
            const std::size_t taken = std::min(left, rest[first].iov_len);
            rest[first].iov_base = static_cast<unsigned char*>(rest[first].iov_base) + taken;
            rest[first].iov_len -= taken;
            left -= taken;
            first += rest[first].iov_len == 0;
        }
    }
}

void SocketChannel::read(void* into, std::size_t bytes, Deadline end) {
    auto* at = static_cast<unsigned char*>(into);
    const Deadline sleep = std::min(end, std::chrono::steady_clock::now() + soon);
    while (bytes > 0) {
        const ssize_t got = recv(socket_, at, bytes, MSG_DONTWAIT);
        if (got == 0)
            lost("its end of the socket is closed");
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
            if (std::chrono::steady_clock::now() < sleep)
                std::this_thread::yield();
            else
                wait_until(POLLIN, end);
            continue;
        }
        if (got < 0)
            lost(std::strerror(errno));
        at += got;
        bytes -= static_cast<std::size_t>(got);
    }
}

} // namespace

std::unique_ptr<Channel> open_socket_channel(const Options& options) {
    return std::make_unique<SocketChannel>(options);
}

} // namespace neuroscale::client
