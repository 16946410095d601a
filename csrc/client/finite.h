// Whether numbers are finite, by their bits: no floating-point operation that a trap could catch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace neuroscale::client {

/// Whether no float64 is NaN or infinite. Its exponent is all ones then, and one more carries into the sign's place.
inline bool all_finite(const unsigned char* bytes, std::size_t count) {
    constexpr std::uint64_t exponent = 0x7ff0000000000000U;
    constexpr std::uint64_t one_more = 0x0010000000000000U;
    std::uint64_t carried = 0;
    for (std::size_t i = 0; i < count; ++i) {
        std::uint64_t bits = 0;
        std::memcpy(&bits, bytes + 8 * i, 8);
        carried |= (bits & exponent) + one_more;
    }
    return (carried >> 63) == 0;
}

} // namespace neuroscale::client
