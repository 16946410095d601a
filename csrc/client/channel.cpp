#include "channel.h"

#include "failure.h"
#include "finite.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <dlfcn.h>

namespace neuroscale::client {

namespace {

std::string folder_of_this_library() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&open_socket_channel), &info) == 0 || info.dli_fname == nullptr)
        return "";
    const std::string path = info.dli_fname;
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

/// What a channel's library exports under a name. whose: what asks for it, for the text
template <typename Function>
Function function_of(const std::string& channel, const char* name, const std::string& whose) {
    const std::string file = "libneuroscale_client_" + channel + ".so";
    // Global: Python's own modules look for the interpreter, and MPI's plug-ins for MPI, in what the process exports.
    constexpr int how = RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE;
    void* library = dlopen((folder_of_this_library() + file).c_str(), how);
    if (library == nullptr)
        library = dlopen(file.c_str(), how);
    if (library == nullptr) {
        const char* why = dlerror();
        throw Failure(NSC_ERROR_CHANNEL, whose + " needs the library " + file + ", which does not load (" +
                                             (why != nullptr ? why : "no reason given") +
                                             "): build it beside libneuroscale_client.so, or use channel socket");
    }
    Function function = nullptr;
    void* symbol = dlsym(library, name);
    std::memcpy(&function, &symbol, sizeof function);
    if (function == nullptr)
        throw Failure(NSC_ERROR_CHANNEL, file + " is of another version than libneuroscale_client.so: build both anew");
    return function;
}

std::unique_ptr<Channel> open_from_library(const std::string& name, const Options& options) {
    return std::unique_ptr<Channel>(
        function_of<ChannelFactory>(name, channel_factory_name, "channel '" + name + "'")(options));
}

} // namespace

void refuse_not_finite(const char* where) {
    throw Failure(NSC_ERROR_PROTOCOL,
                  std::string("the service sent a number that is not finite in ") + where + ": its answer was refused");
}

void Channel::send(Kind kind, const Writer& text, const std::vector<Out>& data, Deadline end) {
    Header header{kind, text.bytes().size(), 0};
    for (const Out& block : data)
        header.data += block.bytes;
    if (header.text > longest_text)
        throw Failure(NSC_ERROR_ARGUMENT, "names and fields take more bytes than a message has");
    const auto raw = encode(header);
    std::vector<Out> blocks{{raw.data(), raw.size()}, {text.bytes().data(), text.bytes().size()}};
    blocks.insert(blocks.end(), data.begin(), data.end());
    write(blocks, end);
}

Message Channel::receive(Deadline end) {
    std::array<unsigned char, header_size> raw{};
    read(raw.data(), raw.size(), end);
    const Header header = decode(raw);
    std::vector<unsigned char> text(header.text);
    if (!text.empty())
        read(text.data(), text.size(), end);
    return {header, Reader(std::move(text))};
}

void Channel::receive_data(const Header& header, const std::vector<In>& blocks, Deadline end) {
    std::uint64_t expected = 0;
    for (const In& block : blocks)
        expected += block.bytes;
    if (header.data != expected)
        throw Failure(NSC_ERROR_PROTOCOL, "the service sent " + std::to_string(header.data) + " bytes of data with " +
                                              name_of(header.kind) + ", expected " + std::to_string(expected));
    for (const In& block : blocks) {
        auto* into = static_cast<unsigned char*>(block.data);
        for (std::size_t at = 0, count = 0; at < block.bytes; at += count) {
            count = std::min(piece(), block.bytes - at);
            read(into + at, count, end);
            if (block.numbers != nullptr && !all_finite(into + at, count / 8))
                refuse_not_finite(block.numbers);
        }
    }
}

std::vector<double> Channel::receive_numbers(std::uint64_t count, Deadline end) {
    std::vector<double> numbers; // grows with what has come, not with what was promised
    while (numbers.size() < count) {
        const std::size_t at = numbers.size();
        numbers.resize(at + std::min<std::uint64_t>(count - at, piece() / 8));
        read(numbers.data() + at, (numbers.size() - at) * 8, end);
    }
    return numbers;
}

void Channel::skip_data(const Header& header, Deadline end) {
    std::array<unsigned char, 4096> rest{};
    for (std::uint64_t left = header.data; left > 0;) {
        const std::size_t count = std::min<std::uint64_t>(left, rest.size());
        read(rest.data(), count, end);
        left -= count;
    }
}

std::unique_ptr<Channel> open_channel(const std::string& name, const Options& options) {
    if (name == "socket")
        return open_socket_channel(options);
    if (name == "embedded" && options.ranks > 1) {
        Options several = options;
        several.open_ranks = function_of<RanksOpener>("mpi", ranks_opener_name, "channel 'embedded' on several ranks");
        return open_from_library(name, several);
    }
    if (name == "mpi" || name == "embedded" || name == "precice")
        return open_from_library(name, options);
    if (name == "mpmd") {
        Options beside = options;
        beside.mpmd = true;
        return open_from_library("mpi", beside);
    }
    throw Failure(NSC_ERROR_CHANNEL, "unknown channel '" + name + "'; there are: socket, mpi, mpmd, embedded, precice");
}

int split_world() {
    return function_of<WorldSplitter>("mpi", world_splitter_name, "nsc_split_world")();
}

} // namespace neuroscale::client
