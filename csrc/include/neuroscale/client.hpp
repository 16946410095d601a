// SPDX-License-Identifier: Apache-2.0
// The client for C++17: `client.h` with a session that closes itself and errors that are thrown.
#pragma once

#include "neuroscale/client.h"

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace neuroscale {

/// What a call of `client.h` failed with.
class ClientError : public std::runtime_error {
public:
    ClientError(nsc_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
    nsc_status status() const noexcept { return status_; }

private:
    nsc_status status_;
};

/// A session; see `client.h` for what its calls do. Movable, not copyable.
class Session {
public:
    Session(const std::string& configuration, const std::string& channel, nsc_options options = nsc_default_options()) {
        std::array<char, 2048> why{};
        const nsc_status status =
            nsc_open(configuration.c_str(), channel.c_str(), &options, &session_, why.data(), why.size());
        if (status != NSC_OK)
            throw ClientError(status, why.data());
    }
    ~Session() { nsc_close(&session_); }
    Session(Session&& other) noexcept : session_(std::exchange(other.session_, nullptr)) {}
    Session& operator=(Session&& other) noexcept {
        std::swap(session_, other.session_);
        return *this;
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    void points(std::size_t n, const std::int64_t* ids, int dimension, const double* coordinates,
                const double* volumes = nullptr) {
        check(nsc_points(session_, n, ids, dimension, coordinates, volumes));
    }
    void parameter(const std::string& name, char type, const std::vector<std::size_t>& shape, const void* values) {
        check(nsc_parameter(session_, name.c_str(), type, static_cast<int>(shape.size()), shape.data(), values));
    }
    void input(const std::string& name, const std::vector<std::string>& components, const std::string& unit) {
        const auto names = pointers(components);
        check(nsc_input(session_, name.c_str(), static_cast<int>(names.size()), names.data(), unit.c_str()));
    }
    void output(const std::string& name, const std::vector<std::string>& components, const std::string& unit) {
        const auto names = pointers(components);
        check(nsc_output(session_, name.c_str(), static_cast<int>(names.size()), names.data(), unit.c_str()));
    }
    void connect() { check(nsc_connect(session_)); }
    void total(const std::string& column, double value) { check(nsc_total(session_, column.c_str(), value)); }
    void exchange(double time, double dt, int iteration, const std::vector<const double*>& inputs, nsc_answer& answer) {
        check(nsc_exchange(session_, time, dt, iteration, inputs.data(), &answer));
    }
    void commit() { check(nsc_commit(session_)); }
    void rollback() { check(nsc_rollback(session_)); }
    void next_step() { check(nsc_next_step(session_)); }
    void repeat() { check(nsc_repeat(session_)); }
    void finish() { check(nsc_finish(session_)); }

    /// Committed windows of the run that this one resumes; -1: none.
    std::int64_t resumed() const noexcept { return nsc_resumed(session_); }
    void keep(const std::string& name, const std::vector<double>& values) {
        check(nsc_keep(session_, name.c_str(), values.size(), values.data()));
    }
    std::vector<double> kept(const std::string& name) const {
        std::size_t count = 0;
        check(nsc_kept(session_, name.c_str(), &count, nullptr));
        std::vector<double> values(count);
        check(nsc_kept(session_, name.c_str(), &count, values.data()));
        return values;
    }
    nsc_session* get() const noexcept { return session_; }

private:
    void check(nsc_status status) const {
        if (status != NSC_OK)
            throw ClientError(status, nsc_last_error(session_));
    }
    static std::vector<const char*> pointers(const std::vector<std::string>& texts) {
        std::vector<const char*> result;
        for (const std::string& text : texts)
            result.push_back(text.c_str());
        return result;
    }

    nsc_session* session_ = nullptr;
};

} // namespace neuroscale
