#include "precice_names.h"

#include "../client/failure.h"
#include "../client/service.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

namespace neuroscale::client {

namespace {

/// A program that is told something and answers; ended and waited for when this goes.
class Asked {
public:
    explicit Asked(std::vector<std::string> arguments) : program_(arguments.front()) {
        std::array<int, 2> ends{};
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
            throw Failure(NSC_ERROR_CHANNEL, std::string("channel precice: ") + std::strerror(errno));
        ours_ = ends[0];
        try {
            pid_ = start_program(std::move(arguments), ends[1]);
        } catch (...) {
            close(ends[0]);
            close(ends[1]);
            throw;
        }
        close(ends[1]);
    }
    ~Asked() {
        close(ours_);
        kill(pid_, SIGKILL); // it has answered, or will not
        waitpid(pid_, nullptr, 0);
    }
    Asked(const Asked&) = delete;
    Asked& operator=(const Asked&) = delete;

    void tell(const std::vector<unsigned char>& text) const {
        for (std::size_t at = 0; at < text.size();) {
            const ssize_t sent = send(ours_, text.data() + at, text.size() - at, MSG_NOSIGNAL);
            if (sent < 0 && errno != EINTR)
                return; // it has ended: hear() says so
            at += sent > 0 ? static_cast<std::size_t>(sent) : 0;
        }
        shutdown(ours_, SHUT_WR);
    }

    /// All that it answers.
    std::vector<unsigned char> hear(Deadline end) const {
        std::vector<unsigned char> answer;
        std::array<unsigned char, 4096> piece{};
        while (true) {
            pollfd waiting{ours_, POLLIN, 0};
            const auto left =
                std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
            if (left <= 0 || answer.size() > longest_text)
                throw Failure(NSC_ERROR_TIMEOUT, program_ + " did not tell the names of the fields in time; raise "
                                                            "options.start_timeout");
            if (poll(&waiting, 1, static_cast<int>(std::min<long long>(left, 1000))) <= 0)
                continue;
            const ssize_t got = recv(ours_, piece.data(), piece.size(), 0);
            if (got == 0 || (got < 0 && errno != EINTR))
                return answer;
            answer.insert(answer.end(), piece.begin(), piece.begin() + std::max<ssize_t>(got, 0));
        }
    }

    const std::string& program() const noexcept { return program_; }

private:
    std::string program_;
    int ours_ = -1;
    pid_t pid_ = 0;
};

Place place_of(Reader& text) {
    Place place{};
    place.field = text.u32();
    place.component = text.u32();
    place.factor = text.f64();
    return place;
}

std::vector<Place> places_of(Reader& text) {
    std::vector<Place> places(text.count());
    for (Place& place : places)
        place = place_of(text);
    return places;
}

/// Whether these places are in the data fields that are read.
bool fits(const Names& names, const std::vector<Place>& places) {
    return std::all_of(places.begin(), places.end(), [&](const Place& place) {
        return !place.there() ||
               (place.field < names.got.size() && place.component < names.got[place.field].components);
    });
}

Names names_in(Reader text) {
    Names names{};
    for (std::string* value : {&names.participant, &names.service, &names.xml, &names.folder, &names.mesh, &names.ids})
        *value = text.text();
    names.dimensions = text.u32();
    names.implicit = text.u8() != 0;
    names.free_window = text.u8() != 0;
    names.sent.resize(text.count());
    for (SentField& field : names.sent) {
        field.data = text.text();
        field.columns.resize(text.count());
        for (SentColumn& column : field.columns) {
            column.column = text.u32();
            column.factor = text.f64();
        }
    }
    names.got.resize(text.count());
    for (GotField& field : names.got) {
        field.data = text.text();
        field.components = text.u32();
    }
    names.outputs = places_of(text);
    names.tangent = places_of(text);
    names.no_tangent = text.text();
    const std::vector<Place> diagnostics = places_of(text);
    text.end();
    if (diagnostics.size() != 3 || !fits(names, names.outputs) || !fits(names, names.tangent) ||
        !fits(names, diagnostics))
        throw Failure(NSC_ERROR_PROTOCOL, "channel precice: the program neuroscale-couple is of another version");
    names.source = diagnostics[0];
    names.error = diagnostics[1];
    names.version = diagnostics[2];
    return names;
}

} // namespace

Names ask_for_names(const Options& options, const std::vector<unsigned char>& fields, Deadline end) {
    std::vector<std::string> arguments{service_program(options), "serve", options.configuration, "--precice-names"};
    for (const std::string& key : options.set) {
        arguments.emplace_back("--set");
        arguments.push_back(key);
    }
    const Asked program(std::move(arguments));
    program.tell(fields);
    const std::vector<unsigned char> answer = program.hear(end);
    std::array<unsigned char, header_size> raw{};
    if (answer.size() < raw.size())
        throw Failure(NSC_ERROR_SERVICE, "channel precice: " + program.program() +
                                             " ended before it had told the names of the fields; its own output says "
                                             "why");
    std::copy_n(answer.begin(), raw.size(), raw.begin());
    const Header header = decode(raw);
    if (header.text != answer.size() - raw.size() || header.data != 0)
        throw Failure(NSC_ERROR_PROTOCOL, "channel precice: " + program.program() + " answered with half a message");
    Reader text(std::vector<unsigned char>(answer.begin() + header_size, answer.end()));
    if (header.kind != Kind::error)
        return names_in(std::move(text));
    text.u8();
    const std::string type = text.text();
    throw Failure(NSC_ERROR_SERVICE, "the service failed: " + type + ": " + text.text());
}

} // namespace neuroscale::client
