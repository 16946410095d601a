// How the fields that a solver declares are called in preCICE; found by the program neuroscale-couple, which knows the
// configuration: `neuroscale_couple/transport/precice_client.py` writes what is read here.
#pragma once

#include "../client/channel.h"

namespace neuroscale::client {

inline constexpr std::uint32_t nowhere = 0xFFFFFFFFU;

/// A declared column and its factor: value in the data field = factor * declared value.
struct SentColumn {
    std::uint32_t column;
    double factor;
};

/// Where a declared column lies: declared value = factor * value of that component of a data field.
struct Place {
    std::uint32_t field;
    std::uint32_t component;
    double factor;
    bool there() const noexcept { return field != nowhere; }
};

struct SentField {
    std::string data;
    std::vector<SentColumn> columns;
};

struct GotField {
    std::string data;
    std::uint32_t components;
};

struct Names {
    std::string participant;
    std::string service;
    std::string xml;
    std::string folder;
    std::string mesh;
    std::string ids; // data field that takes the ids of the points; empty: none does
    std::uint32_t dimensions;
    bool implicit;
    bool free_window; // the solver chooses the length of a window
    std::vector<SentField> sent;
    std::vector<GotField> got;
    std::vector<Place> outputs;
    std::vector<Place> tangent; // row by row; empty: not exchanged, and why
    std::string no_tangent;
    Place source;
    Place error;
    Place version;
};

/// Ask for the names. fields: the declared inputs and outputs, as written by Writer::fields
/// Throws Failure.
Names ask_for_names(const Options& options, const std::vector<unsigned char>& fields, Deadline end);

} // namespace neuroscale::client
