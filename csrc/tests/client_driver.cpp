// A macro solver for the tests: the points of tests/contract/transport_contract.py, in one of several characters.
// Usage: client_driver CHARACTER CONFIGURATION CHANNEL ADDRESS [RANK RANKS [TIMEOUT]]
#include <neuroscale/client.hpp>

#include <cfenv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <sys/resource.h>
#include <unistd.h>

using neuroscale::ClientError;
using neuroscale::Session;

namespace {

struct Arguments {
    std::string character, configuration, channel, address;
    int rank = 0, ranks = 1;
    double timeout = 20.0;
};

/// Every ranks-th of the four points, from rank on.
struct Solver {
    explicit Solver(const Arguments& a) {
        constexpr std::array<std::int64_t, 4> all{40, 7, 23, 11};
        for (std::size_t i = static_cast<std::size_t>(a.rank); i < all.size(); i += static_cast<std::size_t>(a.ranks)) {
            ids.push_back(all[i]);
            stiffness.push_back(0.5 * static_cast<double>(all[i]));
            x.push_back(static_cast<double>(i));
            y.push_back(2.0 * static_cast<double>(i));
            y.push_back(2.0 * static_cast<double>(i) + 1.0);
        }
        const std::size_t n = ids.size();
        coordinates.resize(2 * n);
        force.resize(2 * n);
        flux.resize(n);
        tangent.resize(9 * n);
        error.resize(n);
        source.resize(n);
        reason.resize(n);
    }

    void declare(Session& s) const {
        s.points(ids.size(), ids.data(), 2, coordinates.data());
        s.parameter("stiffness", 'd', {}, stiffness.data());
        s.input("x", {""}, "m");
        s.input("y", {"a", "b"}, "1");
        s.output("force", {"a", "b"}, "N");
        s.output("flux", {""}, "W");
        s.connect();
    }

    void exchange(Session& s, double time, double dt, int iteration, bool everything = true) {
        std::array<double*, 2> places{force.data(), flux.data()};
        nsc_answer answer{sizeof(nsc_answer), places.data(), nullptr, nullptr, nullptr, nullptr, 0};
        if (everything) {
            answer.tangent = tangent.data();
            answer.error = error.data();
            answer.source = source.data();
            answer.reason = reason.data();
        }
        s.exchange(time, dt, iteration, {x.data(), y.data()}, answer);
        version = answer.model_version;
    }

    void print() const {
        for (std::size_t i = 0; i < ids.size(); ++i) {
            std::printf("%lld %.17g %.17g %.17g %.17g %d %d", static_cast<long long>(ids[i]), force[2 * i],
                        force[2 * i + 1], flux[i], error[i], source[i], reason[i]);
            for (std::size_t j = 0; j < 9; ++j)
                std::printf(" %.17g", tangent[9 * i + j]);
            std::printf("\n");
        }
    }

    std::vector<std::int64_t> ids;
    std::vector<double> stiffness, x, y, coordinates, force, flux, tangent, error;
    std::vector<std::uint8_t> source, reason;
    std::int64_t version = 0;
};

Session opened(const Arguments& a) {
    nsc_options options = nsc_default_options();
    options.address = a.address.c_str();
    options.rank = a.rank;
    options.ranks = a.ranks;
    options.timeout = a.timeout;
    options.start_timeout = 20.0;
    options.no_start = a.character == "joining";
    return Session(a.configuration, a.channel, options);
}

/// What the session says to a call that must fail.
template <typename Call>
void expect(nsc_status status, Call&& call) {
    try {
        call();
    } catch (const ClientError& error) {
        std::printf("%d %s\n", error.status(), error.what());
        if (error.status() != status)
            std::exit(3);
        return;
    }
    std::printf("no error\n");
    std::exit(3);
}

void wrong_arguments(Session& s, Solver& m) {
    const auto refused = [](auto&& call) { expect(NSC_ERROR_ARGUMENT, call); };
    refused([&] { s.connect(); });
    refused([&] { s.commit(); });
    refused([&] { s.parameter("stiffness", 'd', {}, m.stiffness.data()); });
    refused([&] { s.points(4, nullptr, 2, m.coordinates.data()); });
    refused([&] { s.points(4, m.ids.data(), 5, m.coordinates.data()); });
    refused([&] { s.points(std::numeric_limits<std::size_t>::max(), m.ids.data(), 2, m.coordinates.data()); });
    refused([&] { s.input("", {"a"}, "m"); });
    refused([&] { s.input("x", {}, "m"); });
    m.declare(s);
    refused([&] { s.points(4, m.ids.data(), 2, m.coordinates.data()); });
    refused([&] { s.input("z", {"a"}, "m"); });
    nsc_answer answer{sizeof(nsc_answer), nullptr, nullptr, nullptr, nullptr, nullptr, 0};
    refused([&] { s.exchange(0, 0, 0, {m.x.data(), m.y.data()}, answer); });
    refused([&] { s.exchange(0, 0, 0, {m.x.data(), nullptr}, answer); });
    refused([&] { s.exchange(0, 0, -1, {m.x.data(), m.y.data()}, answer); });
    answer.struct_size = 3;
    refused([&] { s.exchange(0, 0, 0, {m.x.data(), m.y.data()}, answer); });
    refused([&] { s.kept("nothing"); });
    refused([&] { s.keep("", {1.0}); });
    m.exchange(s, 0.0, 0.0, 0); // none of this did any harm
    s.commit();
    s.finish();
    refused([&] { s.commit(); });
    s.finish();
}

void refused_values(Session& s, Solver& m) {
    m.declare(s);
    m.x[m.x.size() - 1] = std::nan("");
    expect(NSC_ERROR_INPUT, [&] { m.exchange(s, 0.0, 0.1, 0); });
    m.x[m.x.size() - 1] = 3.0;
    expect(NSC_ERROR_INPUT, [&] { m.exchange(s, std::nan(""), 0.1, 0); });
    s.total("force.c", 1.0);
    expect(NSC_ERROR_INPUT, [&] { m.exchange(s, 0.0, 0.1, 0); });
    m.exchange(s, 0.0, 0.1, 0); // the session goes on
    m.print();
    s.commit();
    s.finish();
}

void windows(Session& s, Solver& m) {
    m.declare(s);
    std::printf("resumed %lld\n", static_cast<long long>(s.resumed()));
    if (s.resumed() >= 0) {
        for (const double value : s.kept("time"))
            std::printf("kept %.17g\n", value);
    }
    for (int window = 0; window < 2; ++window) {
        for (int iteration = 0; iteration < 2; ++iteration) {
            m.exchange(s, 0.5, 0.25, iteration);
            m.print();
        }
        s.keep("time", {0.125 * window, static_cast<double>(m.ids.size())});
        s.commit();
    }
    m.exchange(s, 0.0, 0.0, 0, false);
    s.next_step();
    s.repeat();
    s.rollback();
    s.total("flux", 2.0);
    m.exchange(s, 0.0, 0.0, 0);
    m.print();
    s.commit();
    s.finish();
}

/// Answers that grow: the outputs alone, then everything.
void growing(Session& s, Solver& m) {
    m.declare(s);
    m.exchange(s, 0.5, 0.25, 0, false);
    m.exchange(s, 0.5, 0.25, 1);
    m.print();
    s.commit();
    s.finish();
}

/// A window that ends with what was answered last, though something else was tried after it.
void trying(Session& s, Solver& m) {
    m.declare(s);
    m.exchange(s, 0.0, 0.1, 0);
    for (const double wrong : {std::nan(""), std::numeric_limits<double>::infinity()}) {
        m.x[0] = wrong;
        expect(NSC_ERROR_INPUT, [&] { m.exchange(s, 0.0, 0.1, 1); });
    }
    s.commit();
    s.finish();
}

/// More points than there is memory for, then as many as there are.
void starving(Session& s, Solver& m) {
    rlimit limit{};
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = rlim_t{8} << 30;
    setrlimit(RLIMIT_AS, &limit);
    expect(NSC_ERROR_MEMORY, [&] { s.points(std::size_t{1} << 33, m.ids.data(), 2, m.coordinates.data()); });
    expect(NSC_ERROR_MEMORY, [&] { s.connect(); }); // the same again
}

/// Heat conduction at two points.
struct Heat {
    std::array<std::int64_t, 2> ids{0, 1};
    std::array<double, 4> xy{}, gradient{1.0, 0.0, 0.0, 1.0}, flux{};
    std::array<double, 2> temperature{300.0, 300.0};

    void connect(Session& s) {
        s.points(2, ids.data(), 2, xy.data());
        s.input("gradient", {"x", "y"}, "K/m");
        s.input("temperature", {""}, "K");
        s.output("flux", {"x", "y"}, "W/m2");
        s.connect();
    }
    void exchange(Session& s, int iteration) {
        std::array<double*, 1> places{flux.data()};
        nsc_answer answer{sizeof(nsc_answer), places.data(), nullptr, nullptr, nullptr, nullptr, 0};
        s.exchange(0.0, 0.1, iteration, {gradient.data(), temperature.data()}, answer);
    }
};

/// With floating-point traps, as OpenFOAM sets them; then numbers that overflow in the service.
int trapped(const Arguments& a) {
    constexpr int traps = FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW;
    feenableexcept(traps);
    Session s = opened(a);
    Heat heat;
    heat.connect(s);
    heat.exchange(s, 0);
    heat.gradient.fill(1e300);
    expect(NSC_ERROR_SERVICE, [&] { heat.exchange(s, 1); });
    std::printf("traps kept %d\n", fegetexcept() == traps);
    return 0;
}

/// Two sessions at once: CONFIGURATION and the same with .yaml after it.
int pair(const Arguments& a) {
    Arguments other = a;
    other.configuration += ".yaml";
    other.address += "2";
    std::array<Session, 2> sessions{opened(a), opened(other)};
    std::array<Heat, 2> heat;
    for (std::size_t i : {0U, 1U})
        heat[i].connect(sessions[i]);
    for (std::size_t i : {0U, 1U})
        heat[i].exchange(sessions[i], 0);
    for (std::size_t i : {1U, 0U}) {
        sessions[i].commit();
        sessions[i].finish();
    }
    for (const Heat& h : heat)
        std::printf("%.17g %.17g %.17g %.17g\n", h.flux[0], h.flux[1], h.flux[2], h.flux[3]);
    return 0;
}

int run(const Arguments& a) {
    if (a.character == "trapped")
        return trapped(a);
    if (a.character == "pair")
        return pair(a);
    if (a.character == "ignoring") // the system collects its children then
        std::signal(SIGCHLD, SIG_IGN);
    Session s = opened(a);
    Solver m(a);
    if (a.character == "arguments") {
        wrong_arguments(s, m);
    } else if (a.character == "values") {
        refused_values(s, m);
    } else if (a.character == "windows" || a.character == "joining") {
        windows(s, m);
    } else if (a.character == "growing") {
        growing(s, m);
    } else if (a.character == "trying") {
        trying(s, m);
    } else if (a.character == "starving") {
        starving(s, m);
    } else if (a.character == "dying") {
        m.declare(s);
        _exit(9);
    } else if (a.character == "leaving") {
        m.declare(s); // no finish
    } else if (a.character == "stubborn") {
        m.declare(s);
        expect(NSC_ERROR_SERVICE, [&] { m.exchange(s, 0.0, 0.0, 0); });
        expect(NSC_ERROR_SERVICE, [&] { m.exchange(s, 0.0, 0.0, 0); }); // the same again, at once
        std::printf("usable %d\n", nsc_usable(s.get()));
    } else if (a.character == "differing") {
        m.declare(s);
        expect(NSC_ERROR_INPUT, [&] { m.exchange(s, a.rank, 0.0, 0); });
        m.exchange(s, 0.0, 0.0, 0);
        s.commit();
        s.finish();
    } else {
        m.declare(s);
        m.exchange(s, 0.0, 0.0, 0);
        s.finish();
    }
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    if (argc < 5)
        return 2;
    Arguments a{argv[1], argv[2], argv[3], argv[4]};
    if (argc > 6) {
        a.rank = std::atoi(argv[5]);
        a.ranks = std::atoi(argv[6]);
    }
    if (argc > 7)
        a.timeout = std::atof(argv[7]);
    try {
        return run(a);
    } catch (const ClientError& error) {
        std::printf("%d %s\n", error.status(), error.what());
        return 1;
    }
}
