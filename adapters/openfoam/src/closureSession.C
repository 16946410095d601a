// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright (C) 2026 the neuroscale-couple authors
//
// This file is part of the OpenFOAM adapter of neuroscale-couple: free software under the terms of the GNU General
// Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any
// later version. It comes without any warranty. See ../LICENSE.

#include "closureSession.H"

#include "OSspecific.H"
#include "Time.H"

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <thread>

namespace Foam {
namespace neuroscale {

defineTypeNameAndDebug(closureSession, 0);

namespace {

/// The value of the master on all ranks. Collective.
template <class Value>
void everywhere(Value& value) {
#if OPENFOAM >= 2206
    Pstream::broadcast(value);
#else
    Pstream::scatter(value);
#endif
}

} // namespace

template <class Call>
void closureSession::guarded(const char* what, const Call& call) {
    std::string cause;
    try {
        call();
        return;
    } catch (const std::exception& error) {
        cause = error.what();
    }
    client_.reset();         // ends the service that this rank started
    if (Pstream::parRun()) { // an MPI job that is aborted may lose what its ranks said last
        Perr << "neuroscaleClosure " << name() << ": " << what << " failed: " << cause.c_str() << endl;
        // the rank that started the service first: it takes up to 5 s to end that, which an abort would forestall
        std::this_thread::sleep_for(std::chrono::milliseconds(Pstream::master() ? 500 : 6000));
    }
    FatalErrorInFunction << "neuroscaleClosure " << name() << ": " << what << " at time " << mesh_.time().timeName()
                         << " failed: " << cause.c_str() << nl << "    configuration " << config_ << exit(FatalError);
}

closureSession::closureSession(const word& name, const fvMesh& mesh, const dictionary& dict)
    : regIOobject(IOobject(name, mesh.time().timeName(), "uniform", mesh.time(), IOobject::NO_READ,
                           IOobject::AUTO_WRITE, true)),
      mesh_(mesh), points_(mesh), config_(dict.get<fileName>("config")) {
    config_.expand();
    if (!config_.isAbsolute()) {
        config_ = mesh.time().globalPath() / config_;
    }
    if (!isFile(config_)) {
        FatalIOErrorInFunction(dict) << "neuroscaleClosure " << name << ": config: there is no file " << config_
                                     << exit(FatalIOError);
    }
    for (const entry& input : dict.subDict("inputs")) {
        inputs_.emplace_back(new closureInput(input.keyword(), input.dict(), points_));
        inputColumns_ += static_cast<label>(inputs_.back()->columns().size());
    }
    const std::vector<std::int64_t> structures = points_.structures(dict.getOrDefault<word>("structure", ""));
    open(dict);
    declare(dict, structures);
    guarded("connecting", [&] { client_->connect(); });
    resume(dict);
    Info << "neuroscaleClosure " << name << ": connected, " << returnReduce(label(points_.size()), sumOp<label>())
         << " points (cells and boundary faces)" << endl;
}

closureSession::~closureSession() {
    if (!client_) {
        return;
    }
    try { // the solver has ended in order; the last window is committed at a write time, or here
        if (pending_) {
            commit();
        }
        client_->finish();
    } catch (const std::exception& error) {
        WarningInFunction << "neuroscaleClosure " << name() << ": the end of the run failed: " << error.what() << endl;
    }
}

/// A serial solver has not started MPI; the channel needs it, and a launcher around it that ends what is left.
void closureSession::startMpi(const dictionary& dict, const word& channel) {
    if (Pstream::parRun() && channel == "mpmd") {
        FatalIOErrorInFunction(dict) << "neuroscaleClosure " << name()
                                     << ": channel mpmd serves a serial solver: mpirun -n 1 SOLVER : -n 1 "
                                     << "neuroscale-couple serve CONFIG --client; with -parallel OpenFOAM takes the "
                                     << "whole MPI job, so use channel mpi or socket" << exit(FatalIOError);
    }
    if (Pstream::parRun()) {
        return;
    }
    const auto set = [](const char* variable) { return std::getenv(variable) != nullptr; };
    if (!set("OMPI_COMM_WORLD_SIZE") && !set("PMI_SIZE") && !set("PMI_RANK") && !set("PMIX_RANK")) {
        FatalIOErrorInFunction(dict) << "neuroscaleClosure " << name() << ": channel " << channel
                                     << " needs a solver that mpirun has started, also with one rank: "
                                     << "mpirun -n 1 SOLVER; or use channel socket" << exit(FatalIOError);
    }
    UPstream::initNull(); // ended by OpenFOAM's own end of the run, which asks MPI whether it is there
}

bool closureSession::restarted() const {
    const Time& time = mesh_.time();
    const bool here = isFile(time.path() / time.timeName(time.startTime().value()) / "uniform" / name());
    return returnReduce(here, andOp<bool>());
}

void closureSession::open(const dictionary& dict) {
    const word channel = dict.getOrDefault<word>("channel", "socket");
    if (channel == "mpi" || channel == "mpmd") {
        startMpi(dict, channel);
    }
    byPrecice_ = channel == "precice";
    if (byPrecice_ && dict.found("structure")) {
        FatalIOErrorInFunction(dict) << "neuroscaleClosure " << name()
                                     << ": structure: numbers of micro structures do not go through preCICE; leave the "
                                     << "key out and name the ids in neuroscale.precice.ids, or use channel socket"
                                     << exit(FatalIOError);
    }
    string command = dict.getOrDefault<string>("service", "");
    string set = "";
    for (const string& one : dict.getOrDefault<stringList>("set", stringList())) {
        set += one + "\n";
    }
    // one path for all ranks; two closures, or two runs of a case, have two
    string address = "/tmp/neuroscale-" + Foam::name(label(pid())) + "-" + name();
    everywhere(address);
    List<string> hosts(Pstream::nProcs());
    hosts[Pstream::myProcNo()] = hostName();
    Pstream::gatherList(hosts);
    everywhere(hosts);
    for (const string& host : hosts) {
        if (channel == "socket" && host != hosts[0]) {
            FatalIOErrorInFunction(dict) << "neuroscaleClosure " << name() << ": ranks run on " << hosts[0] << " and "
                                         << host << ", but channel socket serves the ranks of one node; use channel mpi"
                                         << exit(FatalIOError);
        }
    }
    guarded("starting the service", [&] {
        nsc_options options = nsc_default_options();
        options.rank = Pstream::parRun() ? Pstream::myProcNo() : 0;
        options.ranks = Pstream::parRun() ? Pstream::nProcs() : 1;
        options.address = channel == "socket" ? address.c_str() : nullptr;
        options.command = command.empty() ? nullptr : command.c_str();
        options.set = set.empty() ? nullptr : set.c_str();
        options.resume = !byPrecice_ && dict.getOrDefault<bool>("resume", true) && restarted();
        options.start_timeout = dict.getOrDefault<scalar>("startTimeout", 0);
        options.timeout = dict.getOrDefault<scalar>("timeout", 0);
        client_.reset(new ::neuroscale::Session(config_, channel, options));
    });
}

void closureSession::declare(const dictionary& dict, const std::vector<std::int64_t>& structures) {
    const std::vector<double> coordinates = points_.coordinates();
    const std::vector<double> volumes = points_.volumes();
    const dictionary& output = dict.subDict("output");
    outputName_ = output.get<word>("name");
    const bool momentum = mesh_.foundObject<volVectorField>(dict.get<word>("field"));
    outputColumns_ =
        closureColumns(mesh_, output, output.getOrDefault<wordList>("components", wordList()), momentum ? 9 : 3, false);
    const auto names = [](const std::vector<closureColumn>& columns) {
        std::vector<std::string> result;
        for (const closureColumn& column : columns) {
            result.push_back(column.name);
        }
        return result;
    };
    guarded("declaring the fields", [&] {
        client_->points(points_.size(), points_.ids().data(), 3, coordinates.data(),
                        byPrecice_ ? nullptr : volumes.data());
        if (!byPrecice_) {
            client_->parameter("structure", 'i', {}, structures.data());
        }
        for (const auto& input : inputs_) {
            client_->input(input->name(), names(input->columns()), input->unit());
        }
        client_->output(outputName_, names(outputColumns_), output.getOrDefault<string>("unit", "1"));
    });
    const std::size_t n = points_.size();
    reply_.output.assign(n * outputColumns_.size(), 0.0);
    if (dict.getOrDefault<bool>("implicit", true)) { // the tangent is most of what is sent
        reply_.tangent.assign(n * outputColumns_.size() * static_cast<std::size_t>(inputColumns_), 0.0);
    }
    reply_.error.assign(n, 0.0);
    reply_.source.assign(n, 0);
    reply_.reason.assign(n, 0);
}

void closureSession::resume(const dictionary& dict) {
    if (client_->resumed() < 0) {
        return;
    }
    window_ = static_cast<label>(client_->resumed());
    std::vector<double> kept;
    guarded("reading the checkpoint", [&] { kept = client_->kept("time"); });
    const scalar start = mesh_.time().startTime().value();
    const scalar tolerance = 1e-9 * Foam::max(mag(start), mesh_.time().deltaTValue());
    if (kept.size() != 1 || mag(kept[0] - start) > tolerance) {
        client_.reset();
        FatalIOErrorInFunction(dict)
            << "neuroscaleClosure " << name() << ": the case starts from time " << start
            << ", but the service's checkpoint is of time " << (kept.size() == 1 ? kept[0] : -1)
            << ". Start from that time, or set `resume no;` if the micro problems have no history"
            << exit(FatalIOError);
    }
    Info << "neuroscaleClosure " << name() << ": resumed after " << window_ << " windows" << endl;
}

void closureSession::exchange() {
    points_.checkSize();
    const bool first = !answered();
    if (first && pending_) {
        guarded("the commit of the last time step", [&] { commit(); });
    }
    iteration_ = first ? 0 : iteration_ + 1;
    std::vector<const double*> inputs;
    for (const auto& input : inputs_) {
        inputs.push_back(input->gather().data());
    }
    const std::vector<double> before = reply_.output;
    double* const outputs[] = {reply_.output.data()};
    double* tangent = reply_.tangent.empty() ? nullptr : reply_.tangent.data();
    std::uint8_t* reason = byPrecice_ ? nullptr : reply_.reason.data();
    nsc_answer answer = {sizeof(nsc_answer), outputs, tangent, reply_.error.data(), reply_.source.data(), reason, -1};
    const auto start = std::chrono::steady_clock::now();
    const Time& time = mesh_.time();
    guarded("the exchange", [&] { client_->exchange(time.value(), time.deltaTValue(), iteration_, inputs, answer); });
    reply_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    reply_.modelVersion = answer.model_version;
    measureChange(before);
    timeIndex_ = time.timeIndex();
    answeredTime_ = time.value();
    pending_ = true;
    ++exchanges_;
}

void closureSession::measureChange(const std::vector<double>& before) {
    scalar change = 0;
    scalar size = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
        const double now = reply_.output[i];
        change += (now - before[i]) * (now - before[i]);
        size += now * now;
    }
    reduce(change, sumOp<scalar>());
    reduce(size, sumOp<scalar>());
    if (!std::isfinite(size)) {
        client_.reset();
        FatalErrorInFunction << "neuroscaleClosure " << name() << ": the answer at time " << mesh_.time().timeName()
                             << " is not finite (" << outputName_ << "); it was not used" << exit(FatalError);
    }
    reply_.change = std::sqrt(change / Foam::max(size, VSMALL));
}

void closureSession::commit() {
    if (!byPrecice_) {
        client_->keep("time", {answeredTime_});
    }
    client_->commit();
    ++window_;
    pending_ = false;
}

bool closureSession::writeData(Ostream& os) const {
    closureSession& self = const_cast<closureSession&>(*this);
    if (pending_) {
        self.guarded("the commit at a write time", [&] { self.commit(); });
    }
    os.writeEntry("windows", window_);
    os.writeEntry("time", answeredTime_);
    os.writeEntry("model", label(reply_.modelVersion));
    return os.good();
}

} // namespace neuroscale
} // namespace Foam
