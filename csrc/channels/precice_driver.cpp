// A solver coupled by preCICE for the tests: heat conduction at three points, in units and an order of its own.
// Usage: client_precice_driver CONFIGURATION [windows | refused | early | lost | alone]
#include <neuroscale/client.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

constexpr double dt = 0.1;

struct Solver {
    /// Every ranks-th of the three points, from rank on.
    Solver(std::size_t rank, std::size_t ranks) {
        constexpr std::array<std::int64_t, 3> all{5, 3, 9};
        constexpr std::array<double, 3> warm{293.15, 300.0, 310.0};
        for (std::size_t i = rank; i < all.size(); i += ranks) {
            ids.push_back(all[i]);
            xy.insert(xy.end(), {static_cast<double>(i), 0.0});
            temperature.push_back(warm[i]);
            size.push_back(1.0 + static_cast<double>(i));
        }
        n = ids.size();
        gradient.resize(2 * n);
        flux.resize(2 * n);
        tangent.resize(6 * n);
        error.resize(n);
        source.resize(n);
        reason.resize(n);
    }

    void declare(neuroscale::Session& s) const {
        s.points(n, ids.data(), 2, xy.data());
        s.input("temperature", {""}, "K");
        s.input("gradient", {"y", "x"}, "K/mm");
        s.output("flux", {"y", "x"}, "kW/m2");
    }

    /// Iteration k of a window: 0.001 (1 + k) in x and 0.002 - 0.001 k in y at the first point, more at the others.
    void fill(int k) {
        for (std::size_t i = 0; i < n; ++i) {
            gradient[2 * i] = (0.002 - 0.001 * k) * size[i];
            gradient[2 * i + 1] = 0.001 * (1 + k) * size[i];
        }
    }

    void exchange(neuroscale::Session& s, int window, int k, double step = dt) {
        std::array<double*, 1> places{flux.data()};
        nsc_answer answer{sizeof answer, places.data(), tangent.data(), error.data(), source.data(), nullptr, 0};
        s.exchange((window + 1) * dt, step, k, {temperature.data(), gradient.data()}, answer);
        version = answer.model_version;
    }

    /// Keep an answer to be printed at the end, so that the lines of several ranks stay whole.
    void note(int window, int k) {
        const auto add = [this](double value) {
            std::array<char, 32> text{};
            std::snprintf(text.data(), text.size(), " %.17g", value);
            said += text.data();
        };
        for (std::size_t i = 0; i < n; ++i) {
            said += "answer";
            for (const double value : {static_cast<double>(window), static_cast<double>(k), static_cast<double>(ids[i]),
                                       static_cast<double>(source[i]), error[i], static_cast<double>(version)})
                add(value);
            std::for_each_n(flux.begin() + static_cast<std::ptrdiff_t>(2 * i), 2, add);
            std::for_each_n(tangent.begin() + static_cast<std::ptrdiff_t>(6 * i), 6, add);
            said += "\n";
        }
    }

    std::size_t n = 0;
    std::vector<std::int64_t> ids;
    std::vector<double> xy, temperature, size, gradient, flux, tangent, error; // gradient, flux: y, x; K/mm, kW/m2
    std::vector<std::uint8_t> source, reason;
    std::int64_t version = 0;
    std::string said;
};

/// A variable that a launcher of MPI jobs sets, else a number.
int launched(const char* openmpi, const char* other, int alone) {
    for (const char* name : {openmpi, other}) {
        if (const char* value = std::getenv(name))
            return std::atoi(value);
    }
    return alone;
}

/// Say what a call is refused with; the session must go on.
template <typename Call>
void refused(Call&& call) {
    try {
        call();
        std::printf("no error\n");
    } catch (const neuroscale::ClientError& error) {
        std::printf("%d %s\n", error.status(), error.what());
    }
}

void windows(neuroscale::Session& s, Solver& m) {
    m.declare(s);
    s.connect();
    for (int window = 0; window < 2; ++window) {
        for (int k = 0; k < 3; ++k) {
            m.fill(k);
            m.exchange(s, window, k);
            m.note(window, k);
            s.repeat();
        }
        m.exchange(s, window, 3); // the same data again: preCICE may end the window here
        s.commit();
    }
    s.finish();
    std::printf("%s", m.said.c_str());
}

void refusals(neuroscale::Session& s, Solver& m) {
    m.declare(s);
    s.connect();
    m.fill(0);
    refused([&] { s.commit(); });
    refused([&] { m.exchange(s, 0, 0, 0.05); });
    refused([&] {
        s.total("flux.x", 1.0);
        m.exchange(s, 0, 0);
    });
    refused([&] {
        std::array<double*, 1> places{m.flux.data()};
        nsc_answer answer{sizeof answer, places.data(), nullptr, nullptr, nullptr, m.reason.data(), 0};
        s.exchange(dt, dt, 0, {m.temperature.data(), m.gradient.data()}, answer);
    });
    m.temperature[1] = std::nan("");
    refused([&] { m.exchange(s, 0, 0); });
    m.temperature[1] = 300.0;
    m.exchange(s, 0, 0); // none of this did any harm
    refused([&] { s.rollback(); });
    refused([&] { s.next_step(); });
    refused([&] { s.finish(); });
    refused([&] {
        s.keep("time", {dt});
        s.commit();
    });
    s.commit();
    m.exchange(s, 1, 0);
    s.commit();
    refused([&] { m.exchange(s, 2, 0); });
    s.finish();
}

/// Before the service is met; every try needs a session of its own.
void early(const char* configuration, Solver& m) {
    const std::array<double, 3> volumes{1.0, 2.0, 1.0};
    neuroscale::Session given(configuration, "precice");
    given.points(m.n, m.ids.data(), 2, m.xy.data(), volumes.data());
    given.input("temperature", {""}, "K");
    given.output("flux", {"y", "x"}, "kW/m2");
    refused([&] { given.connect(); });
    neuroscale::Session more(configuration, "precice");
    m.declare(more);
    more.parameter("k", 'd', {}, m.temperature.data());
    refused([&] { more.connect(); });
    neuroscale::Session other(configuration, "precice");
    other.points(m.n, m.ids.data(), 1, m.temperature.data());
    other.input("temperature", {""}, "K");
    other.input("gradient", {"y", "x"}, "K/mm");
    other.output("flux", {"y", "x"}, "kW/m2");
    refused([&] { other.connect(); });
    neuroscale::Session unknown(configuration, "precice");
    m.declare(unknown);
    unknown.output("stress", {""}, "Pa");
    refused([&] { unknown.connect(); });
    refused([&] {
        nsc_options options = nsc_default_options();
        options.resume = 1;
        neuroscale::Session(configuration, "precice", options);
    });
}

/// The service is ended in between, by the test.
void lost(neuroscale::Session& s, Solver& m) {
    m.declare(s);
    s.connect();
    m.exchange(s, 0, 0);
    std::printf("exchanged\n");
    std::fflush(stdout);
    std::this_thread::sleep_for(std::chrono::seconds(2));
    m.fill(1);
    refused([&] { m.exchange(s, 0, 1); });
    refused([&] { m.exchange(s, 0, 1); });
    std::printf("usable %d\n", nsc_usable(s.get()));
}

} // namespace

int main(int argc, char** argv) {
    try {
        const std::string character = argc > 2 ? argv[2] : "windows";
        const int rank = launched("OMPI_COMM_WORLD_RANK", "PMI_RANK", 0);
        const int ranks = launched("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", 1);
        Solver m(static_cast<std::size_t>(rank), static_cast<std::size_t>(ranks));
        if (character == "early") {
            early(argv[1], m);
            return 0;
        }
        nsc_options options = nsc_default_options();
        options.rank = rank;
        options.ranks = ranks;
        options.start_timeout = character == "alone" ? 8.0 : 60.0;
        neuroscale::Session s(argv[1], "precice", options);
        if (character == "windows")
            windows(s, m);
        else if (character == "refused")
            refusals(s, m);
        else if (character == "lost")
            lost(s, m);
        else {
            m.declare(s);
            s.connect();
        }
    } catch (const neuroscale::ClientError& error) {
        std::printf("%d %s\n", error.status(), error.what());
        return 1;
    }
    return 0;
}
