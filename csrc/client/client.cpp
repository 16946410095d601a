// The C border: arguments checked, errors turned into codes and texts; nothing is thrown past it.
#include "neuroscale/client.h"

#include "failure.h"
#include "session.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

using neuroscale::client::Failure;
using neuroscale::client::Field;
using neuroscale::client::Kind;
using neuroscale::client::Options;
using neuroscale::client::Session;

struct nsc_session {
    std::unique_ptr<Session> session;
    std::string error;
    nsc_status broken = NSC_OK;
};

namespace {

constexpr const char* no_memory = "no memory left";
constexpr const char* unknown = "an unknown error inside the client library";

/// Run a call and turn what it throws into a status and a text. A call that fails to keep its text has none.
template <typename Action, typename Tell>
nsc_status guarded(Action&& action, Tell&& tell) noexcept {
    try {
        try {
            action();
            return NSC_OK;
        } catch (const Failure& failure) {
            tell(failure.text().c_str());
            return failure.status();
        } catch (const std::bad_alloc&) {
            tell(no_memory);
            return NSC_ERROR_MEMORY;
        } catch (const std::length_error&) {
            tell(no_memory);
            return NSC_ERROR_MEMORY;
        } catch (const std::exception& error) {
            tell(error.what());
            return NSC_ERROR_INTERNAL;
        } catch (...) {
            tell(unknown);
            return NSC_ERROR_INTERNAL;
        }
    } catch (...) {
        return NSC_ERROR_MEMORY;
    }
}

/// Puts a text where the caller wants it, cut to its room; none at first.
class Told {
public:
    Told(char* place, std::size_t room) : place_(place), room_(place == nullptr ? 0 : room) { (*this)(""); }
    void operator()(const char* text) const {
        if (room_ == 0)
            return;
        const std::size_t length = std::min(std::strlen(text), room_ - 1);
        std::memcpy(place_, text, length);
        place_[length] = '\0';
    }

private:
    char* place_;
    std::size_t room_;
};

template <typename Action>
nsc_status on(nsc_session* session, Action&& action) noexcept {
    if (session == nullptr)
        return NSC_ERROR_ARGUMENT;
    if (session->broken != NSC_OK)
        return session->broken;
    const nsc_status status =
        guarded([&] { action(*session->session); }, [&](const char* text) { session->error = text; });
    if (status != NSC_OK && status != NSC_ERROR_ARGUMENT && status != NSC_ERROR_INPUT)
        session->broken = status;
    return status;
}

std::vector<std::string> lines_of(const char* text) {
    std::vector<std::string> lines;
    std::string rest = text == nullptr ? "" : text;
    while (!rest.empty()) {
        const std::size_t end = std::min(rest.find('\n'), rest.size());
        if (end > 0)
            lines.push_back(rest.substr(0, end));
        rest.erase(0, end + 1);
    }
    return lines;
}

std::string absolute(const char* path) {
    const std::unique_ptr<char, decltype(&std::free)> resolved(realpath(path, nullptr), &std::free);
    if (!resolved)
        throw Failure(NSC_ERROR_CHANNEL, std::string("the configuration ") + path + ": " + std::strerror(errno));
    return resolved.get();
}

Options options_of(const char* configuration, const nsc_options* given) {
    Options options;
    if (configuration == nullptr || *configuration == '\0')
        throw Failure(NSC_ERROR_ARGUMENT, "nsc_open: the path of the configuration is NULL or empty");
    options.configuration = absolute(configuration);
    if (given == nullptr)
        return options;
    if (given->struct_size != sizeof(nsc_options))
        throw Failure(NSC_ERROR_ARGUMENT, "nsc_open: options.struct_size is not sizeof(nsc_options): start from "
                                          "nsc_default_options(), and build the program with this client.h");
    options.ranks = given->ranks == 0 ? 1 : given->ranks;
    options.rank = given->rank;
    if (options.ranks < 1 || options.rank < 0 || options.rank >= options.ranks)
        throw Failure(NSC_ERROR_ARGUMENT, "nsc_open: there is no rank " + std::to_string(options.rank) + " of " +
                                              std::to_string(options.ranks));
    const bool times = given->start_timeout >= 0.0 && given->timeout >= 0.0 && given->timeout < 1e9 &&
                       given->start_timeout < 1e9; // false for NaN
    if (!times)
        throw Failure(NSC_ERROR_ARGUMENT, "nsc_open: a time-out is negative or not a number");
    options.address = given->address == nullptr ? "" : given->address;
    options.command = given->command == nullptr ? "" : given->command;
    options.set = lines_of(given->set);
    options.resume = given->resume != 0;
    options.no_start = given->no_start != 0;
    options.start_timeout = given->start_timeout > 0.0 ? given->start_timeout : options.start_timeout;
    options.timeout = given->timeout > 0.0 ? given->timeout : options.timeout;
    options.mpi_comm = given->mpi_comm;
    options.has_mpi_comm = given->has_mpi_comm != 0;
    return options;
}

Field field_of(const char* name, int components, const char* const* names, const char* unit) {
    if (name == nullptr || *name == '\0' || unit == nullptr)
        throw Failure(NSC_ERROR_ARGUMENT, "a field needs a name and a unit; write 1 for a pure number");
    if (components < 1 || components > 1024)
        throw Failure(NSC_ERROR_ARGUMENT,
                      std::string("field '") + name + "' has " + std::to_string(components) + " components");
    if (names == nullptr && components > 1)
        throw Failure(NSC_ERROR_ARGUMENT, std::string("field '") + name + "': its components have no names");
    Field field{name, {}, unit};
    for (int i = 0; i < components; ++i) {
        const char* component = names == nullptr ? "" : names[i];
        if (component == nullptr)
            throw Failure(NSC_ERROR_ARGUMENT, std::string("field '") + name + "': the name of a component is NULL");
        field.components.emplace_back(component);
    }
    return field;
}

} // namespace

extern "C" {

nsc_options nsc_default_options(void) {
    nsc_options options{};
    options.struct_size = sizeof options;
    options.ranks = 1;
    return options;
}

nsc_status nsc_open(const char* configuration, const char* channel, const nsc_options* options, nsc_session** session,
                    char* why, size_t why_size) {
    const Told told(why, why_size);
    return guarded(
        [&] {
            if (session == nullptr)
                throw Failure(NSC_ERROR_ARGUMENT, "nsc_open: the place of the session is NULL");
            *session = nullptr;
            if (channel == nullptr)
                throw Failure(NSC_ERROR_ARGUMENT, "nsc_open: the channel is NULL");
            Options filled = options_of(configuration, options);
            auto opened = std::make_unique<nsc_session>();
            auto way = neuroscale::client::open_channel(channel, filled);
            opened->session = std::make_unique<Session>(std::move(filled), std::move(way));
            opened->session->greet();
            *session = opened.release();
        },
        told);
}

nsc_status nsc_split_world(int* comm, char* why, size_t why_size) {
    const Told told(why, why_size);
    return guarded(
        [&] {
            if (comm == nullptr)
                throw Failure(NSC_ERROR_ARGUMENT, "nsc_split_world: the place of the communicator is NULL");
            *comm = neuroscale::client::split_world();
        },
        told);
}

nsc_status nsc_connect(nsc_session* session) {
    return on(session, [](Session& s) { s.connect(); });
}

nsc_status nsc_finish(nsc_session* session) {
    return on(session, [](Session& s) { s.finish(); });
}

void nsc_close(nsc_session** session) {
    if (session == nullptr)
        return;
    if (*session != nullptr && (*session)->broken == NSC_OK)
        (*session)->session->say_goodbye();
    delete *session;
    *session = nullptr;
}

nsc_status nsc_points(nsc_session* session, size_t n, const int64_t* ids, int dimension, const double* coordinates,
                      const double* volumes) {
    return on(session, [&](Session& s) { s.points(n, ids, dimension, coordinates, volumes); });
}

nsc_status nsc_parameter(nsc_session* session, const char* name, char type, int rank, const size_t* shape,
                         const void* values) {
    return on(session, [&](Session& s) { s.parameter(name, type, rank, shape, values); });
}

nsc_status nsc_input(nsc_session* session, const char* name, int components, const char* const* names,
                     const char* unit) {
    return on(session, [&](Session& s) { s.input(field_of(name, components, names, unit)); });
}

nsc_status nsc_output(nsc_session* session, const char* name, int components, const char* const* names,
                      const char* unit) {
    return on(session, [&](Session& s) { s.output(field_of(name, components, names, unit)); });
}

nsc_status nsc_total(nsc_session* session, const char* column, double value) {
    return on(session, [&](Session& s) { s.total(column, value); });
}

nsc_status nsc_exchange(nsc_session* session, double time, double dt, int iteration, const double* const* inputs,
                        nsc_answer* answer) {
    return on(session, [&](Session& s) {
        if (answer == nullptr)
            throw Failure(NSC_ERROR_ARGUMENT, "nsc_exchange: the answer is NULL");
        s.exchange(time, dt, iteration, inputs, *answer);
    });
}

nsc_status nsc_commit(nsc_session* session) {
    return on(session, [](Session& s) { s.commit(); });
}

nsc_status nsc_rollback(nsc_session* session) {
    return on(session, [](Session& s) { s.call(Kind::rollback); });
}

nsc_status nsc_repeat(nsc_session* session) {
    return on(session, [](Session& s) { s.call(Kind::repeat); });
}

nsc_status nsc_next_step(nsc_session* session) {
    return on(session, [](Session& s) { s.call(Kind::next_step); });
}

nsc_status nsc_keep(nsc_session* session, const char* name, size_t count, const double* values) {
    return on(session, [&](Session& s) { s.keep(name, count, values); });
}

int64_t nsc_resumed(const nsc_session* session) {
    return session == nullptr ? -1 : session->session->resumed();
}

nsc_status nsc_kept(const nsc_session* session, const char* name, size_t* count, double* values) {
    return on(const_cast<nsc_session*>(session), [&](Session& s) {
        if (count == nullptr)
            throw Failure(NSC_ERROR_ARGUMENT, "nsc_kept: the count is NULL");
        const std::vector<double>& found = s.kept(name);
        if (values != nullptr && *count < found.size())
            throw Failure(NSC_ERROR_ARGUMENT, std::string("nsc_kept '") + name + "': there are " +
                                                  std::to_string(found.size()) + " values, room for " +
                                                  std::to_string(*count));
        if (values != nullptr)
            std::copy(found.begin(), found.end(), values);
        *count = found.size();
    });
}

const char* nsc_last_error(const nsc_session* session) {
    return session == nullptr ? "there is no session" : session->error.c_str();
}

int nsc_usable(const nsc_session* session) {
    return session != nullptr && session->broken == NSC_OK && session->session->usable();
}

int64_t nsc_service_pid(const nsc_session* session) {
    return session == nullptr ? 0 : session->session->service_pid();
}

const char* nsc_status_text(int status) {
    static constexpr std::array<const char*, 10> texts{"all went well",
                                                       "a wrong argument, or a call out of order",
                                                       "the service refused values; the session goes on",
                                                       "the channel or the service could not be reached",
                                                       "the service failed",
                                                       "the service went away without a word",
                                                       "the service gave no answer in time",
                                                       "the service sent something unexpected",
                                                       "no memory left",
                                                       "a mistake in the client library"};
    return status >= 0 && static_cast<std::size_t>(status) < texts.size() ? texts[static_cast<std::size_t>(status)]
                                                                          : "an unknown status";
}

const char* nsc_reason_text(int reason) {
    static constexpr std::array<const char*, 10> texts{"the surrogate's answer was accepted",
                                                       "no surrogate is loaded yet",
                                                       "the gate is closed",
                                                       "the point was already answered by the fine solver",
                                                       "the input lies outside what the surrogate was trained on",
                                                       "the error estimate passes the tolerance",
                                                       "the surrogate's answer was not finite",
                                                       "the surrogate's answer violates the theoretical bounds",
                                                       "the surrogate's tangent is not positive definite",
                                                       "the fine solver did not converge"};
    return reason >= 0 && static_cast<std::size_t>(reason) < texts.size() ? texts[static_cast<std::size_t>(reason)]
                                                                          : "an unknown reason";
}

const char* nsc_version(void) {
#define NSC_TEXT_OF(number) #number
#define NSC_TEXT(number) NSC_TEXT_OF(number)
    return NSC_TEXT(NSC_CLIENT_VERSION_MAJOR) "." NSC_TEXT(NSC_CLIENT_VERSION_MINOR);
}

int nsc_wire_version(void) {
    return neuroscale::client::wire_version;
}

} // extern "C"
