// A service that has lost its mind: valid replies, mutated at random. Whatever comes, the client ends with a status
// and a text. Built with sanitizers where the compiler has them. Usage: client_fuzz SECONDS SEED
#include "failure.h"
#include "session.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

using namespace neuroscale::client;
using Bytes = std::vector<unsigned char>;

namespace {

/// Plays bytes that were made before; what the client sends is dropped.
class Scripted final : public Channel {
public:
    explicit Scripted(Bytes bytes, bool shares) : bytes_(std::move(bytes)), shares_(shares) {}
    void leave(bool) noexcept override {}
    bool may_share_memory() const noexcept override { return shares_; }

protected:
    void write(const std::vector<Out>&, Deadline) override {}
    void read(void* into, std::size_t bytes, Deadline) override {
        if (bytes > bytes_.size() - at_)
            throw Failure(NSC_ERROR_LOST, "the service went away");
        std::memcpy(into, bytes_.data() + at_, bytes);
        at_ += bytes;
    }

private:
    Bytes bytes_;
    bool shares_;
    std::size_t at_ = 0;
};

void append(Bytes& script, Kind kind, const Writer& text, const std::vector<double>& data, std::size_t extra = 0) {
    const auto raw = encode({kind, text.bytes().size(), data.size() * 8 + extra});
    script.insert(script.end(), raw.begin(), raw.end());
    script.insert(script.end(), text.bytes().begin(), text.bytes().end());
    const auto* first = reinterpret_cast<const unsigned char*>(data.data());
    script.insert(script.end(), first, first + data.size() * 8);
    script.insert(script.end(), extra, 2);
}

/// What a sound service would say: welcome, ready with kept arrays, an answer, a refusal, an answer, done, done.
/// shares: the answers lie in shared memory, which it has taken
Bytes sound_script(bool shares) {
    const std::vector<Field> in{{"x", {"a", "b"}, "m"}};
    const std::vector<Field> out{{"f", {"a"}, "N"}};
    Bytes script;
    Writer welcome, ready, taken, answer, refusal, done;
    welcome.u32(1);
    append(script, Kind::welcome, welcome, {});
    ready.fields(in);
    ready.fields(out);
    ready.u64(3);
    ready.u64(2);
    ready.u32(2);
    ready.array({"time", "<f8", {2}});
    ready.array({"more", "<f8", {1, 1}});
    append(script, Kind::ready, ready, {0.5, 0.25, 7.0});
    taken.u8(1);
    if (shares)
        append(script, Kind::shared, taken, {});
    answer.u64(3);
    answer.u8(15);
    answer.u32(2);
    const std::vector<double> numbers(shares ? 0 : 3 * (1 + 2 + 1), 1.5);
    const std::size_t letters = shares ? 0 : 6;
    append(script, Kind::answer, answer, numbers, letters);
    refusal.u8(0);
    refusal.text("InputError");
    refusal.text("x = nan at point id 3");
    append(script, Kind::error, refusal, {});
    append(script, Kind::answer, answer, numbers, letters);
    done.u64(3);
    append(script, Kind::done, done, {});
    append(script, Kind::done, done, {});
    return script;
}

void mutate(Bytes& script, std::mt19937_64& random) {
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % std::max<std::size_t>(n, 1)); };
    constexpr std::array<std::uint64_t, 6> nasty{0, 1, 0x7fffffff, 0xffffffff, 0x7fffffffffffffff, ~std::uint64_t{0}};
    for (std::size_t times = 1 + below(4); times > 0 && !script.empty(); --times) {
        const std::size_t at = below(script.size());
        const std::size_t length = std::min(std::size_t{1} + below(8), script.size() - at);
        switch (below(6)) {
        case 0:
            script[at] = static_cast<unsigned char>(random());
            break;
        case 1:
            script[at] ^= static_cast<unsigned char>(1U << below(8));
            break;
        case 2:
            script.resize(at);
            break;
        case 3:
            std::memcpy(script.data() + at, &nasty[below(nasty.size())], length);
            break;
        case 4:
            script.erase(script.begin() + static_cast<std::ptrdiff_t>(at),
                         script.begin() + static_cast<std::ptrdiff_t>(at + length));
            break;
        default:
            script.insert(script.begin() + static_cast<std::ptrdiff_t>(at), length,
                          static_cast<unsigned char>(random()));
        }
    }
}

void play(Bytes script, bool shares) {
    Options options;
    options.timeout = 1.0;
    Session session(options, std::make_unique<Scripted>(std::move(script), shares));
    const std::vector<std::int64_t> ids{1, 2, 3};
    const std::vector<double> numbers(6, 1.0);
    std::vector<double> f(3), tangent(6), error(3);
    std::vector<std::uint8_t> source(3), reason(3);
    session.greet();
    session.points(3, ids.data(), 2, numbers.data(), nullptr);
    session.input({"x", {"a", "b"}, "m"});
    session.output({"f", {"a"}, "N"});
    session.connect();
    std::array<const double*, 1> in{numbers.data()};
    std::array<double*, 1> out{f.data()};
    nsc_answer answer{sizeof answer, out.data(), tangent.data(), error.data(), source.data(), reason.data(), 0};
    session.exchange(0.0, 0.1, 0, in.data(), answer);
    try {
        session.exchange(0.0, 0.1, 1, in.data(), answer);
    } catch (const Failure& failure) {
        if (failure.status() != NSC_ERROR_INPUT)
            throw;
    }
    session.exchange(0.0, 0.1, 1, in.data(), answer);
    session.kept("time");
    session.commit();
    session.finish();
}

} // namespace

int main(int argc, char** argv) {
    const double seconds = argc > 1 ? std::atof(argv[1]) : 2.0;
    const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    const std::array<Bytes, 2> sound{sound_script(false), sound_script(true)};
    for (const bool shares : {false, true})
        play(sound[shares], shares); // as it is, it must pass
    std::mt19937_64 random(seed);
    std::array<unsigned long, 10> met{};
    for (const Deadline end = after(seconds); std::chrono::steady_clock::now() < end;) {
        const bool shares = random() % 2 != 0;
        Bytes script = sound[shares];
        mutate(script, random);
        try {
            play(std::move(script), shares);
            ++met[NSC_OK];
        } catch (const Failure& failure) {
            ++met.at(static_cast<std::size_t>(failure.status()));
            if (failure.text().empty())
                return std::puts("an error without a text"), 1;
        }
    }
    for (std::size_t status = 0; status < met.size(); ++status)
        std::printf("%zu %lu\n", status, met[status]);
    return 0;
}
