#include "precice_coupling.h"

#include "../client/failure.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

namespace neuroscale::client {

namespace {

constexpr double leaving = 10.0; // seconds that preCICE gets to let go of the service after an error

/// The working directory, as long as it lives: preCICE's programs meet in the folder of the configuration.
class Inside {
public:
    explicit Inside(const std::string& folder) : back_(open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
        if (back_ >= 0 && chdir(folder.c_str()) == 0)
            return;
        const std::string why = std::strerror(errno);
        if (back_ >= 0)
            close(back_);
        throw Failure(NSC_ERROR_CHANNEL, "channel precice: cannot go to " + folder + " and back: " + why);
    }
    ~Inside() {
        [[maybe_unused]] const int done = fchdir(back_); // an open folder can be gone to
        close(back_);
    }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

private:
    int back_;
};

} // namespace

void Coupling::join(Names names, std::vector<std::int64_t> ids, const double* coordinates,
                    std::vector<std::size_t> widths) {
    names_ = std::move(names);
    ids_ = std::move(ids);
    widths_ = std::move(widths);
    vertices_.resize(points());
    const Inside folder(names_.folder);
    Waiter::now("reading " + names_.xml, [&] {
        participant_ =
            std::make_shared<precice::Participant>(names_.participant, names_.xml, options_.rank, options_.ranks);
        if (points() > 0)
            participant_->setMeshVertices(names_.mesh, {coordinates, points() * names_.dimensions}, vertices_);
        if (participant_->requiresInitialData())
            write_ids();
    });
    waiter_.wait(waiting() + " to start (neuroscale-couple run " + options_.configuration + ")",
                 after(options_.start_timeout), [p = participant_] { p->initialize(); });
}

void Coupling::write_ids() {
    if (points() > 0 && !names_.ids.empty())
        participant_->writeData(names_.mesh, names_.ids, vertices_, std::vector<double>(ids_.begin(), ids_.end()));
}

bool Coupling::ongoing() {
    bool found = false;
    Waiter::now("asking for the end", [&] { found = participant_->isCouplingOngoing(); });
    return found;
}

double Coupling::longest_step() {
    double found = 0.0;
    Waiter::now("asking for the time window", [&] { found = participant_->getMaxTimeStepSize(); });
    return found;
}

/// The values of a data field, [point][component].
std::vector<double> Coupling::values_of(const SentField& field, const Inputs& inputs) const {
    const std::size_t width = field.columns.size();
    std::vector<double> values(points() * width);
    for (std::size_t k = 0; k < width; ++k) {
        std::size_t which = 0;
        std::size_t column = field.columns[k].column;
        while (column >= widths_.at(which))
            column -= widths_[which++];
        for (std::size_t row = 0; row < points(); ++row)
            values[row * width + k] = field.columns[k].factor * inputs[which][row * widths_[which] + column];
    }
    return values;
}

void Coupling::advance(const Inputs& inputs, double dt, Deadline end) {
    got_.assign(names_.got.size(), {});
    dt_ = dt;
    Waiter::now("writing", [&] {
        if (!begun_)
            begun_ = participant_->requiresWritingCheckpoint() || !names_.implicit;
        write_ids();
        for (const SentField& field : names_.sent) {
            if (points() > 0)
                participant_->writeData(names_.mesh, field.data, vertices_, values_of(field, inputs));
        }
    });
    waiter_.wait(waiting(), end, [p = participant_, dt] { p->advance(dt); });
    Waiter::now("asking for the window's end", [&] {
        participant_->requiresReadingCheckpoint();
        complete_ = participant_->isTimeWindowComplete();
    });
}

/// A data field at the end of the last step, [point][component].
const std::vector<double>& Coupling::field(std::uint32_t number) {
    std::vector<double>& values = got_.at(number);
    const GotField& wanted = names_.got[number];
    if (values.empty() && points() > 0) {
        values.resize(points() * wanted.components);
        Waiter::now("reading '" + wanted.data + "'", [&] {
            participant_->readData(names_.mesh, wanted.data, vertices_, complete_ ? 0.0 : dt_, values);
        });
    }
    return values;
}

void Coupling::gather(const std::vector<Place>& places, double* into) {
    for (std::size_t k = 0; k < places.size(); ++k) {
        const std::vector<double>& values = field(places[k].field);
        const std::size_t width = names_.got[places[k].field].components;
        for (std::size_t row = 0; row < points(); ++row)
            into[row * places.size() + k] = places[k].factor * values[row * width + places[k].component];
    }
}

void Coupling::finish(Deadline end) {
    waiter_.wait("leaving", end, [p = participant_] { p->finalize(); });
    participant_.reset();
}

void Coupling::leave() noexcept {
    if (!participant_)
        return;
    try { // finalize may wait for the other side after an error
        if (!waiter_.stuck())
            waiter_.wait("leaving", after(leaving), [p = participant_] { p->finalize(); });
        if (waiter_.stuck())
            new std::shared_ptr<precice::Participant>(participant_); // a call still uses it: never freed
    } catch (...) {                                                  // the session's own error has been told
        new (std::nothrow) std::shared_ptr<precice::Participant>(participant_);
    }
    participant_.reset();
}

} // namespace neuroscale::client
