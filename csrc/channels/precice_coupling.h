// The solver's participant in a preCICE coupling: its points are the vertices of one mesh. All calls throw Failure.
#pragma once

#include "precice_names.h"
#include "precice_wait.h"

#include <memory>
#include <precice/precice.hpp>

namespace neuroscale::client {

/// Inputs of one exchange: one array [point][component] a declared field.
using Inputs = std::vector<std::vector<double>>;

class Coupling {
public:
    explicit Coupling(const Options& options) : options_(options), waiter_(options.ranks == 1) {}
    ~Coupling() { leave(); }
    Coupling(const Coupling&) = delete;
    Coupling& operator=(const Coupling&) = delete;

    /// Provide the mesh and meet the service.
    /// ids: of the points; coordinates: [point][dimension]; widths: components of each declared input
    void join(Names names, std::vector<std::int64_t> ids, const double* coordinates, std::vector<std::size_t> widths);

    const Names& names() const noexcept { return names_; }
    std::size_t points() const noexcept { return ids_.size(); }
    std::int64_t id(std::size_t point) const { return ids_.at(point); }

    /// Send inputs and let the service answer them: one step of preCICE.
    void advance(const Inputs& inputs, double dt, Deadline end);

    bool ongoing();
    double longest_step();

    /// Whether the last step was the end of its window; since `next_window` there was none.
    bool complete() const noexcept { return complete_; }
    bool begun() const noexcept { return begun_; }
    void next_window() noexcept { begun_ = complete_ = false; }

    /// What the service answered to the last step, columns side by side: [point][place].
    void gather(const std::vector<Place>& places, double* into);

    /// Leave at the end of the coupling, in order.
    void finish(Deadline end);

private:
    void leave() noexcept;
    void write_ids();
    std::vector<double> values_of(const SentField& field, const Inputs& inputs) const;
    const std::vector<double>& field(std::uint32_t number);
    std::string waiting() const { return "'" + names_.participant + "' waiting for '" + names_.service + "'"; }

    Options options_;
    Waiter waiter_;
    Names names_{};
    std::shared_ptr<precice::Participant> participant_;
    std::vector<std::int64_t> ids_;
    std::vector<std::size_t> widths_;
    std::vector<precice::VertexID> vertices_;
    std::vector<std::vector<double>> got_; // data fields that were read since the last step
    double dt_ = 0.0;
    bool begun_ = false;
    bool complete_ = false;
};

} // namespace neuroscale::client
