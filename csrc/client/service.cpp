#include "service.h"

#include "failure.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <spawn.h>
#include <sys/wait.h>
#include <thread>

extern char** environ;

namespace neuroscale::client {

namespace {

using namespace std::chrono_literals;

std::vector<std::string> arguments_of(const Options& options, const std::string& program, const std::string& address) {
    std::vector<std::string> arguments{program,
                                       "serve",
                                       options.configuration,
                                       "--socket",
                                       address,
                                       "--ranks",
                                       std::to_string(options.ranks),
                                       "--wait",
                                       std::to_string(options.start_timeout)};
    for (const std::string& key : options.set) {
        arguments.emplace_back("--set");
        arguments.push_back(key);
    }
    if (options.resume)
        arguments.emplace_back("--resume");
    return arguments;
}

/// Without the launcher's variables a service that knows MPI would take itself for a rank of the solver's job.
std::vector<std::string> environment_without_launcher() {
    std::vector<std::string> kept;
    for (char** entry = environ; *entry != nullptr; ++entry) {
        const std::string text = *entry;
        const bool launcher = text.rfind("OMPI_COMM_", 0) == 0 || text.rfind("PMI_", 0) == 0 ||
                              text.rfind("PMIX_", 0) == 0 || text.rfind("MPI_LOCAL", 0) == 0 ||
                              text.rfind("MV2_COMM_", 0) == 0 || text.rfind("MPIEXEC_SIZE", 0) == 0;
        if (!launcher)
            kept.push_back(text);
    }
    return kept;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
    std::vector<char*> result;
    for (std::string& text : texts)
        result.push_back(text.data());
    result.push_back(nullptr);
    return result;
}

} // namespace

std::string service_program(const Options& options) {
    const char* given = std::getenv("NEUROSCALE_COUPLE");
    return !options.command.empty()             ? options.command
           : given != nullptr && *given != '\0' ? given
                                                : "neuroscale-couple";
}

pid_t start_program(std::vector<std::string> arguments, int stdio) {
    std::vector<std::string> environment = environment_without_launcher();
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    // A group of its own: an interrupt from the terminal goes to the solver, which ends the service in order.
    // Signals that the solver blocks or ignores must not reach the service that way.
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (const int descriptor : {0, 1}) {
        if (stdio >= 0)
            posix_spawn_file_actions_adddup2(&actions, stdio, descriptor);
    }
    pid_t pid = 0;
    const std::string program = arguments.front();
    const int error = posix_spawnp(&pid, program.c_str(), &actions, &attributes, pointers(arguments).data(),
                                   pointers(environment).data());
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (error != 0)
        throw Failure(NSC_ERROR_CHANNEL, "the service cannot be started: " + program + ": " + std::strerror(error) +
                                             "; set NEUROSCALE_COUPLE to the path of the program neuroscale-couple");
    return pid;
}

ServiceProcess::ServiceProcess(const Options& options, const std::string& address)
    : program_(service_program(options)), pid_(start_program(arguments_of(options, program_, address))) {}

ServiceProcess::~ServiceProcess() {
    wait(0.0);
}

std::string ServiceProcess::ended() {
    if (!over_) {
        const pid_t found = waitpid(pid_, &status_, WNOHANG);
        over_ = found == pid_ || (found == -1 && errno == ECHILD);
        unknown_ = over_ && found != pid_;
    }
    if (!over_)
        return "";
    if (unknown_) // the solver, or the system for it, has collected the child
        return program_ + " ended, how is not known";
    const std::string how = WIFSIGNALED(status_) ? "was ended by signal " + std::to_string(WTERMSIG(status_))
                                                 : "ended with status " + std::to_string(WEXITSTATUS(status_));
    return program_ + " " + how;
}

void ServiceProcess::wait(double seconds) noexcept {
    const Deadline end = after(seconds);
    const auto gone = [this]() noexcept {
        if (!over_) {
            const pid_t found = waitpid(pid_, &status_, WNOHANG);
            over_ = found == pid_ || (found == -1 && errno == ECHILD);
        }
        return over_;
    };
    while (!gone() && std::chrono::steady_clock::now() < end)
        std::this_thread::sleep_for(5ms);
    for (const int signal : {SIGTERM, SIGKILL}) {
        if (gone())
            return;
        kill(pid_, signal);
        for (int i = 0; i < 200 && !gone(); ++i)
            std::this_thread::sleep_for(5ms);
    }
}

} // namespace neuroscale::client
