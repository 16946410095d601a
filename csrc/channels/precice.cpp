// Channel `precice`: the solver is a preCICE participant, the service another (`neuroscale-couple run CASE.yaml`).
//
// A message of the client becomes calls of preCICE, and what they gave a message: an exchange is one iteration of a
// serial coupling with the solver first, whose answer is to what was sent just now. An implicit window ends when the
// same data come twice: nsc_commit sends the last ones again. In an explicit scheme the first exchange ends it.
#include "../client/channel.h"
#include "../client/failure.h"
#include "precice_coupling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace neuroscale::client {

namespace {

/// What is refused and harms nothing: the session goes on.
struct Refusal {
    std::string text;
};

/// A message that the client writes. data: its arrays, as in the client's memory
struct Sent {
    Header header;
    Reader text;
    std::vector<Out> data;
};

Sent taken_apart(const std::vector<Out>& blocks) {
    std::array<unsigned char, header_size> raw{};
    std::memcpy(raw.data(), blocks.at(0).data, raw.size());
    const auto* first = static_cast<const unsigned char*>(blocks.at(1).data);
    Sent sent{decode(raw), Reader(std::vector<unsigned char>(first, first + blocks[1].bytes)), {}};
    sent.data.assign(blocks.begin() + 2, blocks.end());
    return sent;
}

std::vector<std::size_t> widths_of(const std::vector<Field>& fields) {
    std::vector<std::size_t> widths;
    for (const Field& field : fields)
        widths.push_back(field.components.size());
    return widths;
}

class PreciceChannel final : public Channel {
public:
    explicit PreciceChannel(const Options& options)
        : options_(options), coupling_(std::make_unique<Coupling>(options)) {
        if (options.resume)
            throw Failure(NSC_ERROR_CHANNEL, "channel precice: a run is not resumed by the client: start the service "
                                             "with --resume and the solver from its own restart");
        if (options.has_mpi_comm)
            throw Failure(NSC_ERROR_CHANNEL, "channel precice: preCICE takes all ranks of the solver's mpirun: leave "
                                             "options.mpi_comm out");
    }

    void leave(bool) noexcept override { coupling_.reset(); }

protected:
    void write(const std::vector<Out>& blocks, Deadline end) override {
        reply_.clear();
        read_ = 0;
        Sent sent = taken_apart(blocks);
        try {
            carry_out(sent, end);
        } catch (const Refusal& refusal) {
            Writer text;
            text.u8(0);
            text.text("InputError");
            text.text("channel precice: " + refusal.text);
            answer(Kind::error, text);
        }
    }

    void read(void* into, std::size_t bytes, Deadline) override {
        if (bytes > reply_.size() - read_)
            throw Failure(NSC_ERROR_INTERNAL, "channel precice: an answer is shorter than it should be");
        if (bytes > 0)
            std::memcpy(into, reply_.data() + read_, bytes);
        read_ += bytes;
    }

private:
    void carry_out(Sent& sent, Deadline end);
    void done();
    void answer(Kind kind, const Writer& text);
    template <typename Value>
    void add(const std::vector<Value>& values);
    void connect(Sent& sent);
    void exchange(Sent& sent, Deadline end);
    void check_wanted(unsigned wants) const;
    void check_step(double dt) const;
    Inputs inputs_of(const std::vector<Out>& data) const;
    void answer_all(unsigned wants);
    void commit(Sent& sent, Deadline end);
    void finish(Deadline end);

    const Names& names() const { return coupling_->names(); }

    Options options_;
    std::unique_ptr<Coupling> coupling_;
    std::vector<Field> inputs_;
    std::vector<Field> outputs_;
    Inputs last_; // of this window
    double dt_ = 0.0;
    std::int64_t version_ = -1;
    std::vector<unsigned char> reply_;
    std::size_t read_ = 0;
};

void PreciceChannel::carry_out(Sent& sent, Deadline end) {
    switch (sent.header.kind) {
    case Kind::hello: {
        Writer text;
        text.u32(static_cast<std::uint32_t>(options_.ranks));
        return answer(Kind::welcome, text);
    }
    case Kind::points:
        return connect(sent);
    case Kind::exchange:
        return exchange(sent, end);
    case Kind::commit:
        return commit(sent, end);
    case Kind::rollback:
        if (coupling_->begun())
            throw Refusal{"a window is not started afresh: preCICE counts its iterations on; call nsc_repeat and "
                          "exchange again"};
        return done();
    case Kind::repeat:
        if (coupling_->complete() && !names().implicit)
            throw Refusal{"the coupling scheme is explicit: its window cannot be repeated"};
        return done();
    case Kind::next_step:
        throw Refusal{"a window has one step; take smaller windows in the preCICE configuration"};
    case Kind::finish:
        return finish(end);
    default: // a last word, which nobody waits for
        return;
    }
}

void PreciceChannel::done() {
    Writer text;
    text.u64(static_cast<std::uint64_t>(version_));
    answer(Kind::done, text);
}

void PreciceChannel::answer(Kind kind, const Writer& text) {
    const auto raw = encode({kind, text.bytes().size(), 0});
    reply_.assign(raw.begin(), raw.end());
    reply_.insert(reply_.end(), text.bytes().begin(), text.bytes().end());
}

/// Append data to the answer.
template <typename Value>
void PreciceChannel::add(const std::vector<Value>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    reply_.insert(reply_.end(), bytes, bytes + values.size() * sizeof(Value));
    std::array<unsigned char, header_size> raw{};
    std::copy_n(reply_.begin(), raw.size(), raw.begin());
    Header header = decode(raw);
    header.data += values.size() * sizeof(Value);
    raw = encode(header);
    std::copy(raw.begin(), raw.end(), reply_.begin());
}

void PreciceChannel::connect(Sent& sent) {
    const std::vector<ArraySpec> arrays = sent.text.arrays();
    inputs_ = sent.text.fields();
    outputs_ = sent.text.fields();
    sent.text.end();
    if (arrays.size() != 3)
        throw Refusal{"parameters of points are not sent through preCICE: the configuration says which micro "
                      "structures the points have; leave nsc_parameter out"};
    const auto n = static_cast<std::size_t>(arrays[0].shape.at(0));
    const auto* volumes = static_cast<const double*>(sent.data.at(2).data);
    if (n > 0 && std::any_of(volumes, volumes + n, [](double v) { return v != 1.0; }))
        throw Refusal{"volumes of points are not sent through preCICE: name them in neuroscale.precice.volumes and "
                      "give NULL"};
    Writer fields;
    fields.fields(inputs_);
    fields.fields(outputs_);
    Names names = ask_for_names(options_, fields.bytes(), after(options_.start_timeout));
    if (arrays[1].shape.at(1) != names.dimensions)
        throw Refusal{"the points have " + std::to_string(arrays[1].shape[1]) + " coordinates, the mesh '" +
                      names.mesh + "' has " + std::to_string(names.dimensions) + " dimensions"};
    const auto* ids = static_cast<const std::int64_t*>(sent.data[0].data);
    const auto* coordinates = static_cast<const double*>(sent.data[1].data);
    coupling_->join(std::move(names), std::vector<std::int64_t>(ids, ids + n), coordinates, widths_of(inputs_));
    Writer text;
    text.fields(inputs_);
    text.fields(outputs_);
    text.u64(static_cast<std::uint64_t>(version_));
    text.u64(static_cast<std::uint64_t>(-1)); // it resumes no run
    text.u32(0);
    answer(Kind::ready, text);
}

void PreciceChannel::check_wanted(unsigned wants) const {
    if ((wants & part_reason) != 0)
        throw Refusal{"why the surrogate was refused is not exchanged by preCICE: leave answer.reason NULL"};
    if ((wants & part_tangent) != 0 && names().tangent.empty())
        throw Refusal{"there is no tangent (" + names().no_tangent + "): leave answer.tangent NULL"};
    if ((wants & part_source) != 0 && !names().source.there())
        throw Refusal{"who answered is not exchanged: add Neuroscale-Source to write_data, or leave answer.source "
                      "NULL"};
    if ((wants & part_error) != 0 && !names().error.there())
        throw Refusal{"error estimates are not exchanged: add Neuroscale-Error-Estimate to write_data, or leave "
                      "answer.error NULL"};
}

void PreciceChannel::check_step(double dt) const {
    if (!coupling_->ongoing())
        throw Refusal{"the coupling has ended: raise max-time in " + names().xml};
    const double window = coupling_->longest_step();
    const double tolerance = 1e-9 * window;
    if (!(dt > 0.0) || dt > window + tolerance || (!names().free_window && dt < window - tolerance))
        throw Refusal{"the solver's step is " + std::to_string(dt) + ", the time window of preCICE " +
                      std::to_string(window) + ": they must agree"};
}

/// A copy of the inputs. On one rank what is not finite is refused here; on several the service does so for all.
Inputs PreciceChannel::inputs_of(const std::vector<Out>& data) const {
    Inputs inputs(inputs_.size());
    for (std::size_t i = 0; coupling_->points() > 0 && i < inputs_.size(); ++i) {
        const std::size_t width = inputs_[i].components.size();
        const auto* values = static_cast<const double*>(data.at(i).data);
        inputs[i].assign(values, values + coupling_->points() * width);
        const auto bad =
            std::find_if_not(inputs[i].begin(), inputs[i].end(), [](double v) { return std::isfinite(v); });
        if (bad != inputs[i].end() && options_.ranks == 1)
            throw Refusal{"the solver sent " + inputs_[i].name + " = " + std::to_string(*bad) + " at point id " +
                          std::to_string(coupling_->id(static_cast<std::size_t>(bad - inputs[i].begin()) / width)) +
                          ": its iteration has diverged; take a smaller step, or check what it fills into this field"};
    }
    return inputs;
}

void PreciceChannel::exchange(Sent& sent, Deadline end) {
    sent.text.f64(); // preCICE keeps the time
    const double dt = sent.text.f64();
    sent.text.u32();
    const unsigned wants = sent.text.u8();
    sent.text.u8();
    if (sent.text.u32() != 0)
        throw Refusal{"totals are not sent through preCICE: use channel socket or mpi"};
    check_wanted(wants);
    Inputs inputs = inputs_of(sent.data);
    if (!coupling_->complete()) {
        check_step(dt);
        last_ = std::move(inputs);
        dt_ = dt;
        coupling_->advance(last_, dt, end);
    } else if (inputs != last_) {
        throw Refusal{names().implicit
                          ? "preCICE took the window for converged before the solver did: tighten the convergence "
                            "measure of our outputs (limit=\"1e-9\") and set <min-iterations value=\"2\" />"
                          : "the coupling scheme is explicit: a window has one exchange; call nsc_commit, or take "
                            "serial-implicit"};
    }
    answer_all(wants);
}

void PreciceChannel::answer_all(unsigned wants) {
    const auto gathered = [&](const std::vector<Place>& places) {
        std::vector<double> values(coupling_->points() * places.size());
        coupling_->gather(places, values.data());
        return values;
    };
    if (names().version.there() && coupling_->points() > 0)
        version_ = std::llround(gathered({names().version})[0]);
    const std::size_t columns = names().tangent.size() / std::max<std::size_t>(names().outputs.size(), 1);
    Writer text;
    text.u64(static_cast<std::uint64_t>(version_));
    text.u8(static_cast<std::uint8_t>(wants));
    text.u32(static_cast<std::uint32_t>(columns));
    answer(Kind::answer, text);
    auto first = names().outputs.begin();
    for (const Field& field : outputs_) {
        const auto last = first + static_cast<std::ptrdiff_t>(field.components.size());
        add(gathered({first, last}));
        first = last;
    }
    if ((wants & part_tangent) != 0)
        add(gathered(names().tangent));
    if ((wants & part_error) != 0)
        add(gathered({names().error}));
    if ((wants & part_source) != 0) {
        const std::vector<double> source = gathered({names().source});
        std::vector<std::uint8_t> small(source.size());
        std::transform(source.begin(), source.end(), small.begin(),
                       [](double v) { return static_cast<std::uint8_t>(std::clamp(v + 0.5, 0.0, 255.0)); });
        add(small);
    }
}

void PreciceChannel::commit(Sent& sent, Deadline end) {
    if (sent.text.u8() != 0)
        throw Refusal{"numbers of nsc_keep do not go through preCICE: write them with the solver's own restart"};
    if (!coupling_->begun())
        throw Refusal{"nsc_commit was called before nsc_exchange"};
    while (!coupling_->complete())
        coupling_->advance(last_, dt_, end);
    coupling_->next_window();
    done();
}

void PreciceChannel::finish(Deadline end) {
    if (coupling_->ongoing())
        throw Refusal{"the coupling goes on until max-time in " + names().xml +
                      ": exchange and commit its windows, or nsc_close without nsc_finish"};
    coupling_->finish(end);
    done();
}

} // namespace

} // namespace neuroscale::client

extern "C" __attribute__((visibility("default"))) neuroscale::client::Channel*
nsc_open_channel_1(const neuroscale::client::Options& options) {
    return new neuroscale::client::PreciceChannel(options);
}
