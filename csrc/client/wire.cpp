#include "wire.h"

#include "failure.h"

#include <cstring>

namespace neuroscale::client {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire format is little-endian");

namespace {

constexpr std::array<unsigned char, 4> magic{'N', 'S', 'C', 'W'};
constexpr std::size_t most_dimensions = 8;

[[noreturn]] void refuse(const std::string& text) {
    throw Failure(NSC_ERROR_PROTOCOL, text);
}

bool known(std::uint16_t kind) {
    return (kind >= 1 && kind <= 10) || (kind >= 64 && kind <= 69);
}

std::uint64_t item_size(const std::string& dtype) {
    const bool well_formed = dtype.size() == 3 && std::strchr("<|", dtype[0]) != nullptr &&
                             std::strchr("biuf", dtype[1]) != nullptr && std::strchr("1248", dtype[2]) != nullptr &&
                             dtype.find('\0') == std::string::npos;
    if (!well_formed)
        refuse("an array in a message has an unknown dtype");
    return static_cast<std::uint64_t>(dtype[2] - '0');
}

} // namespace

const char* name_of(Kind kind) {
    switch (kind) {
    case Kind::hello:
        return "hello";
    case Kind::points:
        return "points";
    case Kind::exchange:
        return "exchange";
    case Kind::commit:
        return "commit";
    case Kind::rollback:
        return "rollback";
    case Kind::repeat:
        return "repeat";
    case Kind::next_step:
        return "next_step";
    case Kind::finish:
        return "finish";
    case Kind::fail:
        return "fail";
    case Kind::segment:
        return "segment";
    case Kind::welcome:
        return "welcome";
    case Kind::ready:
        return "ready";
    case Kind::answer:
        return "answer";
    case Kind::done:
        return "done";
    case Kind::error:
        return "error";
    case Kind::shared:
        return "shared";
    }
    return "unknown";
}

std::array<unsigned char, header_size> encode(const Header& header) {
    std::array<unsigned char, header_size> raw{};
    const auto kind = static_cast<std::uint16_t>(header.kind);
    std::memcpy(raw.data(), magic.data(), 4);
    std::memcpy(raw.data() + 4, &wire_version, 2);
    std::memcpy(raw.data() + 6, &kind, 2);
    std::memcpy(raw.data() + 8, &header.text, 8);
    std::memcpy(raw.data() + 16, &header.data, 8);
    return raw;
}

Header decode(const std::array<unsigned char, header_size>& raw) {
    std::uint16_t version = 0;
    std::uint16_t kind = 0;
    Header header{Kind::error, 0, 0};
    std::memcpy(&version, raw.data() + 4, 2);
    std::memcpy(&kind, raw.data() + 6, 2);
    std::memcpy(&header.text, raw.data() + 8, 8);
    std::memcpy(&header.data, raw.data() + 16, 8);
    if (std::memcmp(raw.data(), magic.data(), 4) != 0)
        refuse("what came does not start like a message: the other side is not a neuroscale-couple service");
    if (version != wire_version)
        refuse("the service speaks version " + std::to_string(version) + " of the wire format, this client version " +
               std::to_string(wire_version) + ": install the same neuroscale-couple on both sides");
    if (!known(kind))
        refuse("a message has the unknown kind " + std::to_string(kind));
    if (header.text > longest_text || header.data > longest_data)
        refuse("a message claims " + std::to_string(header.text) + " bytes of text and " + std::to_string(header.data) +
               " bytes of data, more than any message has");
    header.kind = static_cast<Kind>(kind);
    return header;
}

std::uint64_t ArraySpec::bytes() const {
    std::uint64_t total = item_size(dtype);
    for (const std::uint64_t length : shape) {
        if (length != 0 && total > longest_data / length)
            refuse("array '" + name + "' in a message is larger than any message");
        total *= length;
    }
    return total;
}

void Writer::put(const void* value, std::size_t size) {
    const auto* first = static_cast<const unsigned char*>(value);
    bytes_.insert(bytes_.end(), first, first + size);
}

void Writer::u8(std::uint8_t value) {
    put(&value, sizeof value);
}
void Writer::u32(std::uint32_t value) {
    put(&value, sizeof value);
}
void Writer::u64(std::uint64_t value) {
    put(&value, sizeof value);
}
void Writer::f64(double value) {
    put(&value, sizeof value);
}

void Writer::text(const std::string& value) {
    if (value.size() > longest_text)
        throw Failure(NSC_ERROR_ARGUMENT, "a text is longer than any message");
    u32(static_cast<std::uint32_t>(value.size()));
    put(value.data(), value.size());
}

void Writer::fields(const std::vector<Field>& fields) {
    u32(static_cast<std::uint32_t>(fields.size()));
    for (const Field& field : fields) {
        text(field.name);
        u32(static_cast<std::uint32_t>(field.components.size()));
        for (const std::string& component : field.components)
            text(component);
        text(field.unit);
        u8(0); // whether it is extensive is the micro problem's to say
    }
}

void Writer::array(const ArraySpec& spec) {
    text(spec.name);
    text(spec.dtype);
    u32(static_cast<std::uint32_t>(spec.shape.size()));
    for (const std::uint64_t length : spec.shape)
        u64(length);
}

void Reader::take(void* value, std::size_t size) {
    if (size > bytes_.size() - at_)
        refuse("a message is truncated: it has " + std::to_string(bytes_.size() - at_) + " bytes left where " +
               std::to_string(size) + " are needed");
    if (size != 0)
        std::memcpy(value, bytes_.data() + at_, size);
    at_ += size;
}

std::uint8_t Reader::u8() {
    return number<std::uint8_t>();
}
std::uint32_t Reader::u32() {
    return number<std::uint32_t>();
}
std::uint64_t Reader::u64() {
    return number<std::uint64_t>();
}
std::int64_t Reader::i64() {
    return number<std::int64_t>();
}
double Reader::f64() {
    return number<double>();
}

/// Length of a list or text; one that cannot fit into what is left is refused before memory is taken for it.
std::uint32_t Reader::count() {
    const std::uint32_t value = u32();
    if (value > bytes_.size() - at_)
        refuse("a message claims " + std::to_string(value) + " members or letters and has no room for them");
    return value;
}

std::string Reader::text() {
    std::string value(count(), '\0');
    take(value.data(), value.size());
    return value;
}

std::vector<Field> Reader::fields() {
    std::vector<Field> result;
    for (std::uint32_t left = count(); left > 0; --left) {
        Field field{text(), {}, {}};
        for (std::uint32_t components = count(); components > 0; --components)
            field.components.push_back(text());
        field.unit = text();
        u8();
        result.push_back(std::move(field));
    }
    return result;
}

std::vector<ArraySpec> Reader::arrays() {
    std::vector<ArraySpec> result;
    for (std::uint32_t left = count(); left > 0; --left) {
        ArraySpec spec{text(), text(), {}};
        item_size(spec.dtype);
        const std::uint32_t dimensions = count();
        if (dimensions > most_dimensions)
            refuse("array '" + spec.name + "' in a message has " + std::to_string(dimensions) + " dimensions");
        for (std::uint32_t i = 0; i < dimensions; ++i)
            spec.shape.push_back(u64());
        result.push_back(std::move(spec));
    }
    return result;
}

void Reader::end() const {
    if (at_ != bytes_.size())
        refuse("a message has " + std::to_string(bytes_.size() - at_) + " bytes more than its kind allows");
}

} // namespace neuroscale::client
