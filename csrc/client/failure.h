// Inside the library errors are thrown as Failure; client.cpp turns them into codes and texts at the C border.
#pragma once

#include "neuroscale/client.h"

#include <exception>
#include <string>
#include <utility>

namespace neuroscale::client {

class Failure : public std::exception {
public:
    Failure(nsc_status status, std::string text) : status_(status), text_(std::move(text)) {}
    nsc_status status() const noexcept { return status_; }
    const std::string& text() const noexcept { return text_; }
    const char* what() const noexcept override { return text_.c_str(); }

private:
    nsc_status status_;
    std::string text_;
};

} // namespace neuroscale::client
