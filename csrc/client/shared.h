// Memory of this node that a client shares with its service, so that arrays need not go through the channel.
//
// The client makes the segment, and seals it: nobody can shrink it, so that no access to it can fail. It has no name;
// the service opens it through this process and knows by a mark at its start that it got the right one.
//
//     mark (16 bytes), up to 4096 | inputs, one way | inputs, the other way | answer       each part begins at a page
//
// Questions go by turns, so that the last one that was answered stays as it was until the next one is.
#pragma once

#include "wire.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace neuroscale::client {

/// Where the parts of a segment lie. Throws Failure if it were larger than any message.
struct SegmentPlan {
    SegmentPlan(std::uint64_t input_bytes, std::uint64_t answer_bytes);

    std::uint64_t question(unsigned turn) const { return page + turn * stride; }
    std::uint64_t answer() const { return page + 2 * stride; }

    static constexpr std::uint64_t page = 4096;
    std::uint64_t stride; // from one question to the other
    std::uint64_t size;   // of all
};

class Segment {
public:
    /// Make one, with all its memory reserved. why: out, what the system says if there is none
    static Segment make(std::uint64_t size, std::string& why);

    Segment() = default;
    ~Segment();
    Segment(Segment&& other) noexcept;
    Segment& operator=(Segment&& other) noexcept;
    Segment(const Segment&) = delete;
    Segment& operator=(const Segment&) = delete;

    explicit operator bool() const { return data_ != nullptr; }
    std::uint64_t size() const { return size_; }
    unsigned char* at(std::uint64_t offset) const { return data_ + offset; }

    /// What the service needs to open it.
    void describe(Writer& text) const;

    /// The service has it, or does not want it: nobody needs to open it any more.
    void opened() noexcept;

private:
    void release() noexcept;

    int file_ = -1;
    unsigned char* data_ = nullptr;
    std::uint64_t size_ = 0;
    std::array<std::uint64_t, 2> mark_{};
};

/// Whether memory may be shared at all: NEUROSCALE_SHARED_MEMORY=0 forbids it.
bool may_share();

/// Copy numbers; whether all are finite, in the same pass.
bool copy_finite(void* to, const void* from, std::size_t count);

} // namespace neuroscale::client
