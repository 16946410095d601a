// The wire format, byte by byte; the same as `neuroscale_couple/transport/frames.py`.
//
//     magic "NSCW" | version u16 | kind u16 | bytes of the text u64 | bytes of the data u64
//
// then the text (typed values, little-endian) and the data (arrays end to end, row-major). Every length is checked
// before it is believed; what does not fit is refused with a sentence.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace neuroscale::client {

inline constexpr std::uint16_t wire_version = 2;
inline constexpr std::size_t header_size = 24;
inline constexpr std::uint64_t longest_text = std::uint64_t{1} << 24;
inline constexpr std::uint64_t longest_data = std::uint64_t{1} << 42;

enum class Kind : std::uint16_t {
    hello = 1,
    points = 2,
    exchange = 3,
    commit = 4,
    rollback = 5,
    repeat = 6,
    next_step = 7,
    finish = 8,
    fail = 9,
    segment = 10,
    welcome = 64,
    ready = 65,
    answer = 66,
    done = 67,
    error = 68,
    shared = 69
};

const char* name_of(Kind kind);

enum Part : unsigned { part_tangent = 1, part_error = 2, part_source = 4, part_reason = 8 };

/// How the arrays of an exchange go: in one of the two questions of the shared memory, see shared.h, or as data.
enum ExchangeFlag : unsigned { exchange_blank = 1, exchange_shared = 2, exchange_second = 4 };

struct Header {
    Kind kind;
    std::uint64_t text;
    std::uint64_t data;
};

std::array<unsigned char, header_size> encode(const Header& header);

/// Throws Failure.
Header decode(const std::array<unsigned char, header_size>& raw);

struct Field {
    std::string name;
    std::vector<std::string> components;
    std::string unit;
};

/// A named array to come. dtype: as NumPy writes it, e.g. <f8; shape: all dimensions.
struct ArraySpec {
    std::string name;
    std::string dtype;
    std::vector<std::uint64_t> shape;

    /// Throws Failure if the size is beyond any message.
    std::uint64_t bytes() const;
};

/// Puts typed values one after the other.
class Writer {
public:
    void u8(std::uint8_t value);
    void u32(std::uint32_t value);
    void u64(std::uint64_t value);
    void f64(double value);
    void text(const std::string& value);
    void fields(const std::vector<Field>& fields);
    void array(const ArraySpec& spec);
    const std::vector<unsigned char>& bytes() const { return bytes_; }

private:
    void put(const void* value, std::size_t size);
    std::vector<unsigned char> bytes_;
};

/// Takes typed values out of a text; every one is checked against what is left. Throws Failure.
class Reader {
public:
    explicit Reader(std::vector<unsigned char> bytes) : bytes_(std::move(bytes)) {}
    std::uint8_t u8();
    std::uint32_t u32();
    std::uint64_t u64();
    std::int64_t i64();
    double f64();
    std::string text();
    /// Length of a list that follows.
    std::uint32_t count();
    std::vector<Field> fields();
    std::vector<ArraySpec> arrays();
    /// Nothing may be left.
    void end() const;

private:
    void take(void* value, std::size_t size);
    template <typename T>
    T number() {
        T value{};
        take(&value, sizeof value);
        return value;
    }
    std::vector<unsigned char> bytes_;
    std::size_t at_ = 0;
};

} // namespace neuroscale::client
