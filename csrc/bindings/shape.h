// The sides of an array. They are kept in the object: a call looks at many arrays, and memory for each would cost as
// much as the look.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace neuroscale::bindings {

class Shape {
public:
    static constexpr std::size_t most = 8; // dimensions; the kernels take 5 at most

    Shape() = default;
    Shape(std::initializer_list<std::int64_t> sides) : Shape(sides.begin(), sides.size()) {}
    // count <= most
    Shape(const std::int64_t* sides, std::size_t count) : count_(count) { std::copy_n(sides, count, sides_.begin()); }

    std::size_t size() const { return count_; }
    std::int64_t operator[](std::size_t axis) const { return sides_[axis]; }
    std::int64_t& operator[](std::size_t axis) { return sides_[axis]; }
    const std::int64_t* begin() const { return sides_.data(); }
    const std::int64_t* end() const { return sides_.data() + count_; }

    friend bool operator==(const Shape& a, const Shape& b) {
        return std::equal(a.begin(), a.end(), b.begin(), b.end());
    }
    friend bool operator!=(const Shape& a, const Shape& b) { return !(a == b); }

private:
    std::array<std::int64_t, most> sides_{};
    std::size_t count_ = 0;
};

// e.g. "(2, 3, 8, 8)"
template <typename Numbers>
std::string describe(const Numbers& numbers) {
    std::string joined = "(";
    for (const std::int64_t number : numbers) {
        joined += (joined.size() > 1 ? ", " : "") + std::to_string(number);
    }
    return joined + (numbers.size() == 1 ? ",)" : ")");
}

} // namespace neuroscale::bindings
