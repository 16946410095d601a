// A run of the solver: what was declared, and the calls in their order. Throws Failure.
#pragma once

#include "channel.h"
#include "shared.h"

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace neuroscale::client {

class Session {
public:
    Session(Options options, std::unique_ptr<Channel> channel);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    /// Say hello; the service answers when it has read the configuration.
    void greet();

    void points(std::size_t n, const std::int64_t* ids, int dimension, const double* coordinates,
                const double* volumes);
    void parameter(const char* name, char type, int rank, const std::size_t* shape, const void* values);
    void input(Field field) { declare(inputs_, std::move(field)); }
    void output(Field field) { declare(outputs_, std::move(field)); }
    void connect();
    void total(const char* column, double value);
    void exchange(double time, double dt, int iteration, const double* const* inputs, nsc_answer& answer);
    void commit();
    void call(Kind kind); // rollback, repeat, next_step
    void keep(const char* name, std::size_t count, const double* values);
    std::int64_t resumed() const noexcept { return windows_; }
    const std::vector<double>& kept(const char* name) const;
    void finish();

    /// The solver goes without finishing: tell the service, if it still listens.
    void say_goodbye() noexcept;

    bool usable() const noexcept { return stage_ == Stage::connected; }
    std::int64_t service_pid() const noexcept { return channel_->service_pid(); }

private:
    enum class Stage { declaring, connected, finished };
    struct Array {
        ArraySpec spec;
        std::vector<unsigned char> bytes;
    };

    void declare(std::vector<Field>& side, Field field);
    void add_array(const char* name, const char* dtype, std::vector<std::uint64_t> shape, const void* values);
    void check_stage(Stage stage, const char* call) const;
    void check_answer(const double* const* inputs, const nsc_answer& answer) const;
    std::vector<In> places_of(const nsc_answer& answer) const;
    bool share(const SegmentPlan& plan);
    void send_question(const Writer& text, const double* const* inputs, const SegmentPlan* plan);
    void receive_answer(const Header& header, const std::vector<In>& places, const SegmentPlan* plan);
    void tell(Kind kind, const Writer& text, const std::vector<Out>& data);
    Message hear(Kind kind);
    Message hear(Kind kind, double seconds);
    double starting() const; // seconds to wait for a service that loads its model
    void receive_kept(const Header& header, const std::vector<ArraySpec>& specs);

    Options options_;
    std::unique_ptr<Channel> channel_;
    Stage stage_ = Stage::declaring;
    bool has_points_ = false;
    std::size_t n_ = 0;
    std::vector<Array> arrays_;
    std::vector<Field> inputs_;
    std::vector<Field> outputs_;
    std::vector<std::pair<std::string, double>> totals_;
    std::vector<std::pair<std::string, std::vector<double>>> keeping_;
    std::map<std::string, std::vector<double>> kept_;
    std::int64_t windows_ = -1;
    Segment segment_;
    bool sharing_ = true;
    unsigned turn_ = 0; // which question of the segment comes next
};

} // namespace neuroscale::client
