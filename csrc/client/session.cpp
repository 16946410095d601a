#include "session.h"

#include "failure.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace neuroscale::client {

namespace {

[[noreturn]] void refuse(const std::string& text) {
    throw Failure(NSC_ERROR_ARGUMENT, text);
}

std::size_t columns_of(const std::vector<Field>& fields) {
    std::size_t columns = 0;
    for (const Field& field : fields)
        columns += field.components.size();
    return columns;
}

} // namespace

Session::Session(Options options, std::unique_ptr<Channel> channel)
    : options_(std::move(options)), channel_(std::move(channel)) {}

Session::~Session() {
    channel_->leave(stage_ == Stage::finished);
}

void Session::greet() {
    Writer text;
    text.text(options_.configuration);
    text.text(""); // the hash of what it holds is not known here
    text.u32(static_cast<std::uint32_t>(options_.rank));
    text.u32(static_cast<std::uint32_t>(options_.ranks));
    tell(Kind::hello, text, {});
    Message welcome = hear(Kind::welcome, starting());
    welcome.text.u32();
    welcome.text.end();
}

void Session::points(std::size_t n, const std::int64_t* ids, int dimension, const double* coordinates,
                     const double* volumes) {
    check_stage(Stage::declaring, "nsc_points");
    if (has_points_)
        refuse("nsc_points was called twice");
    if (dimension < 1 || dimension > 3)
        refuse("nsc_points: dimension is " + std::to_string(dimension) + ", it must be 1, 2 or 3");
    if (n > 0 && (ids == nullptr || coordinates == nullptr))
        refuse("nsc_points: ids or coordinates are NULL");
    if (n > longest_data / 64)
        refuse("nsc_points: " + std::to_string(n) + " points are more than a message holds");
    const std::vector<double> ones(volumes == nullptr ? n : 0, 1.0);
    n_ = n;
    add_array("ids", "<i8", {n}, ids);
    add_array("coordinates", "<f8", {n, static_cast<std::uint64_t>(dimension)}, coordinates);
    add_array("volumes", "<f8", {n}, volumes == nullptr ? ones.data() : volumes);
    has_points_ = true;
}

void Session::add_array(const char* name, const char* dtype, std::vector<std::uint64_t> shape, const void* values) {
    Array array{{name, dtype, std::move(shape)}, {}};
    const auto* first = static_cast<const unsigned char*>(values);
    const std::uint64_t bytes = array.spec.bytes();
    if (bytes > 0)
        array.bytes.assign(first, first + bytes);
    arrays_.push_back(std::move(array));
}

void Session::parameter(const char* name, char type, int rank, const std::size_t* shape, const void* values) {
    check_stage(Stage::declaring, "nsc_parameter");
    if (!has_points_)
        refuse("nsc_parameter was called before nsc_points");
    if (name == nullptr || *name == '\0')
        refuse("nsc_parameter: the name is NULL or empty");
    const std::string label = std::string("nsc_parameter '") + name + "': ";
    const bool taken = std::any_of(arrays_.begin(), arrays_.end(), [&](const Array& a) { return a.spec.name == name; });
    if (taken)
        refuse(label + "there is one of that name already");
    const char* dtype = type == 'd' ? "<f8" : type == 'i' ? "<i8" : type == 'b' ? "|u1" : nullptr;
    if (dtype == nullptr)
        refuse(label + "the type must be 'd', 'i' or 'b'");
    if (rank < 0 || rank > 7 || (rank > 0 && shape == nullptr))
        refuse(label + "the rank must be 0 to 7, with a shape");
    if (values == nullptr && n_ > 0)
        refuse(label + "the values are NULL");
    std::vector<std::uint64_t> whole{n_};
    whole.insert(whole.end(), shape, shape + rank);
    add_array(name, dtype, std::move(whole), values);
}

void Session::declare(std::vector<Field>& side, Field field) {
    check_stage(Stage::declaring, "nsc_input and nsc_output");
    for (const Field& known : side) {
        if (known.name == field.name)
            refuse("field '" + field.name + "' is declared twice");
    }
    side.push_back(std::move(field));
}

void Session::connect() {
    check_stage(Stage::declaring, "nsc_connect");
    if (!has_points_)
        refuse("nsc_connect was called before nsc_points");
    if (inputs_.empty() || outputs_.empty())
        refuse("nsc_connect needs at least one nsc_input and one nsc_output before");
    Writer text;
    std::vector<Out> data;
    text.u32(static_cast<std::uint32_t>(arrays_.size()));
    for (const Array& array : arrays_) {
        text.array(array.spec);
        data.push_back({array.bytes.data(), array.bytes.size()});
    }
    text.fields(inputs_);
    text.fields(outputs_);
    tell(Kind::points, text, data);
    Message ready = hear(Kind::ready, starting());
    ready.text.fields();
    ready.text.fields();
    ready.text.i64();
    windows_ = ready.text.i64();
    const std::vector<ArraySpec> specs = ready.text.arrays();
    ready.text.end();
    receive_kept(ready.header, specs);
    arrays_.clear();
    arrays_.shrink_to_fit();
    stage_ = Stage::connected;
}

void Session::receive_kept(const Header& header, const std::vector<ArraySpec>& specs) {
    std::uint64_t expected = 0;
    for (const ArraySpec& spec : specs) {
        if (spec.dtype != "<f8")
            throw Failure(NSC_ERROR_PROTOCOL, "the checkpoint's '" + spec.name +
                                                  "' is not float64: it was not written " + "through this library");
        const std::uint64_t bytes = spec.bytes();
        expected += bytes;
        if (expected > header.data || expected < bytes)
            throw Failure(NSC_ERROR_PROTOCOL, "the service announces more data than it sends");
    }
    if (expected != header.data)
        throw Failure(NSC_ERROR_PROTOCOL, "the service sends more data than it announces");
    for (const ArraySpec& spec : specs) {
        if (!kept_.emplace(spec.name, channel_->receive_numbers(spec.bytes() / 8, after(options_.timeout))).second)
            throw Failure(NSC_ERROR_PROTOCOL, "the service sends two arrays of the name '" + spec.name + "'");
    }
}

void Session::total(const char* column, double value) {
    check_stage(Stage::connected, "nsc_total");
    if (column == nullptr || *column == '\0')
        refuse("nsc_total: the column is NULL or empty");
    totals_.emplace_back(column, value);
}

void Session::check_answer(const double* const* inputs, const nsc_answer& answer) const {
    if (n_ == 0)
        return;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
        if (inputs == nullptr || inputs[i] == nullptr)
            refuse("nsc_exchange: the values of input '" + inputs_[i].name + "' are NULL");
    }
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
        if (answer.outputs == nullptr || answer.outputs[i] == nullptr)
            refuse("nsc_exchange: the place of output '" + outputs_[i].name + "' is NULL");
    }
}

std::vector<In> Session::places_of(const nsc_answer& answer) const {
    std::vector<In> places;
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
        double* place = n_ > 0 ? answer.outputs[i] : nullptr;
        places.push_back({place, n_ * outputs_[i].components.size() * 8, outputs_[i].name.c_str()});
    }
    if (answer.tangent != nullptr)
        places.push_back({answer.tangent, n_ * columns_of(outputs_) * columns_of(inputs_) * 8, "the tangent"});
    if (answer.error != nullptr)
        places.push_back({answer.error, n_ * 8, nullptr});
    if (answer.source != nullptr)
        places.push_back({answer.source, n_, nullptr});
    if (answer.reason != nullptr)
        places.push_back({answer.reason, n_, nullptr});
    return places;
}

void Session::exchange(double time, double dt, int iteration, const double* const* inputs, nsc_answer& answer) {
    check_stage(Stage::connected, "nsc_exchange");
    if (answer.struct_size != sizeof(nsc_answer))
        refuse(
            "nsc_exchange: answer.struct_size is not sizeof(nsc_answer): the program was built with another client.h");
    if (iteration < 0)
        refuse("nsc_exchange: the iteration is negative");
    check_answer(inputs, answer);
    const unsigned wants = (answer.tangent != nullptr ? part_tangent : 0U) |
                           (answer.error != nullptr ? part_error : 0U) | (answer.source != nullptr ? part_source : 0U) |
                           (answer.reason != nullptr ? part_reason : 0U);
    const std::vector<In> places = places_of(answer);
    std::uint64_t answer_bytes = 0;
    for (const In& place : places)
        answer_bytes += place.bytes;
    const SegmentPlan plan(n_ * columns_of(inputs_) * 8, answer_bytes);
    const SegmentPlan* shared = share(plan) ? &plan : nullptr;
    Writer text;
    text.f64(time);
    text.f64(dt);
    text.u32(static_cast<std::uint32_t>(iteration));
    text.u8(static_cast<std::uint8_t>(wants));
    text.u8(shared == nullptr ? 0U : exchange_shared | (turn_ == 1 ? exchange_second : 0U));
    text.u32(static_cast<std::uint32_t>(totals_.size()));
    for (const auto& [column, value] : totals_) {
        text.text(column);
        text.f64(value);
    }
    totals_.clear();
    send_question(text, inputs, shared);
    Message reply = hear(Kind::answer);
    turn_ ^= 1U; // the service keeps this question until it has answered the next
    answer.model_version = reply.text.i64();
    const unsigned parts = reply.text.u8();
    const std::uint32_t tangent_columns = reply.text.u32();
    reply.text.end();
    if (parts != wants)
        throw Failure(NSC_ERROR_PROTOCOL, "the service sent other parts of the answer than were asked for");
    if (answer.tangent != nullptr && tangent_columns == 0) {
        channel_->skip_data(reply.header, after(options_.timeout));
        throw Failure(NSC_ERROR_INPUT, "the micro problem has no tangent: leave answer.tangent NULL");
    }
    receive_answer(reply.header, places, shared);
}

/// Have memory for an exchange of this size, shared with the service; false: there is none, the channel takes it all.
bool Session::share(const SegmentPlan& plan) {
    if (n_ == 0 || !sharing_ || segment_.size() >= plan.size)
        return n_ > 0 && sharing_;
    sharing_ = channel_->may_share_memory() && may_share();
    if (!sharing_)
        return false;
    std::string why;
    Segment made = Segment::make(plan.size, why);
    Writer text;
    made.describe(text);
    text.text(why); // for the service to say
    tell(Kind::segment, text, {});
    Message reply = hear(Kind::shared);
    sharing_ = reply.text.u8() != 0 && made;
    reply.text.end();
    made.opened();
    segment_ = std::move(made);
    return sharing_;
}

void Session::send_question(const Writer& text, const double* const* inputs, const SegmentPlan* plan) {
    std::vector<Out> data;
    std::uint64_t at = plan == nullptr ? 0 : plan->question(turn_);
    for (std::size_t i = 0; n_ > 0 && i < inputs_.size(); ++i) {
        const std::size_t bytes = n_ * inputs_[i].components.size() * 8;
        if (plan == nullptr) {
            data.push_back({inputs[i], bytes});
        } else {
            std::memcpy(segment_.at(at), inputs[i], bytes);
            at += bytes;
        }
    }
    tell(Kind::exchange, text, data);
}

void Session::receive_answer(const Header& header, const std::vector<In>& places, const SegmentPlan* plan) {
    if (plan == nullptr) {
        channel_->receive_data(header, places, after(options_.timeout));
        return;
    }
    channel_->receive_data(header, {}, after(options_.timeout)); // there are none
    std::uint64_t at = plan->answer();
    for (const In& place : places) {
        if (place.numbers == nullptr)
            std::memcpy(place.data, segment_.at(at), place.bytes);
        else if (!copy_finite(place.data, segment_.at(at), place.bytes / 8))
            refuse_not_finite(place.numbers);
        at += place.bytes;
    }
}

void Session::keep(const char* name, std::size_t count, const double* values) {
    check_stage(Stage::connected, "nsc_keep");
    if (name == nullptr || *name == '\0' || (values == nullptr && count > 0) || count > longest_data / 8)
        refuse("nsc_keep: the name is NULL or empty, or there are no values");
    for (const auto& known : keeping_) {
        if (known.first == name)
            refuse(std::string("nsc_keep: '") + name + "' is kept already in this window");
    }
    keeping_.emplace_back(name, std::vector<double>(values, values + count));
}

void Session::commit() {
    check_stage(Stage::connected, "nsc_commit");
    Writer text;
    std::vector<Out> data;
    text.u8(keeping_.empty() ? 0 : 1);
    text.u32(static_cast<std::uint32_t>(keeping_.size()));
    for (const auto& [name, values] : keeping_) {
        text.array({name, "<f8", {values.size()}});
        data.push_back({values.data(), values.size() * 8});
    }
    tell(Kind::commit, text, data);
    keeping_.clear();
    hear(Kind::done).text.i64();
}

void Session::call(Kind kind) {
    check_stage(Stage::connected, "nsc_rollback, nsc_repeat and nsc_next_step");
    tell(kind, Writer(), {});
    hear(Kind::done).text.i64();
}

void Session::finish() {
    if (stage_ == Stage::finished)
        return;
    check_stage(Stage::connected, "nsc_finish");
    tell(Kind::finish, Writer(), {});
    hear(Kind::done).text.i64();
    stage_ = Stage::finished;
}

void Session::say_goodbye() noexcept {
    if (stage_ == Stage::finished)
        return;
    try {
        Writer text;
        text.text("it left before nsc_finish");
        channel_->send(Kind::fail, text, {}, after(1.0));
    } catch (...) { // nobody is left to tell
    }
}

const std::vector<double>& Session::kept(const char* name) const {
    const auto found = kept_.find(name == nullptr ? "" : name);
    if (found == kept_.end())
        refuse(std::string("nsc_kept: the checkpoint holds nothing named '") + (name == nullptr ? "" : name) +
               "' of this rank");
    return found->second;
}

void Session::check_stage(Stage stage, const char* call) const {
    if (stage_ == stage)
        return;
    const char* when = stage_ == Stage::declaring   ? "comes after nsc_connect"
                       : stage_ == Stage::connected ? "comes before nsc_connect"
                                                    : "was called after nsc_finish";
    refuse(std::string(call) + ": " + when);
}

/// Send; a service that went away while it was sent to may have left its reason, which is the better text.
void Session::tell(Kind kind, const Writer& text, const std::vector<Out>& data) {
    try {
        channel_->send(kind, text, data, after(options_.timeout));
    } catch (const Failure& failure) {
        if (failure.status() != NSC_ERROR_LOST)
            throw;
        try {
            hear(Kind::error);
        } catch (const Failure& reason) {
            if (reason.status() == NSC_ERROR_SERVICE)
                throw;
        }
        throw;
    }
}

double Session::starting() const {
    return std::max(options_.timeout, options_.start_timeout);
}

Message Session::hear(Kind kind) {
    return hear(kind, options_.timeout);
}

Message Session::hear(Kind kind, double seconds) {
    Message message = channel_->receive(after(seconds));
    if (message.header.kind == Kind::error) {
        const bool fatal = message.text.u8() != 0;
        const std::string type = message.text.text();
        const std::string text = message.text.text();
        throw fatal ? Failure(NSC_ERROR_SERVICE, "the service failed: " + type + ": " + text)
                    : Failure(NSC_ERROR_INPUT, text);
    }
    if (message.header.kind != kind)
        throw Failure(NSC_ERROR_PROTOCOL, std::string("the service sent ") + name_of(message.header.kind) + " where " +
                                              name_of(kind) + " was expected");
    return message;
}

} // namespace neuroscale::client
