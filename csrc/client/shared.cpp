#include "shared.h"

#include "failure.h"
#include "finite.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>
#include <utility>

namespace neuroscale::client {

namespace {

/// What tells this node, as it runs now, from any other: process numbers mean something on one node only.
std::string name_of_node() {
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string name;
    std::getline(file, name);
    return name;
}

int sealed_file(std::uint64_t size) {
    constexpr unsigned no_exec = 0x8U; // MFD_NOEXEC_SEAL: where the system knows it, it may insist on it
    constexpr unsigned usual = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int file = memfd_create("neuroscale", usual | no_exec);
    if (file < 0 && errno == EINVAL)
        file = memfd_create("neuroscale", usual);
    if (file < 0)
        return -1;
    int error = posix_fallocate(file, 0, static_cast<off_t>(size)); // a page that cannot be had is found out here
    if (error == 0 && fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        error = errno;
    if (error == 0)
        return file;
    close(file);
    errno = error;
    return -1;
}

} // namespace

SegmentPlan::SegmentPlan(std::uint64_t input_bytes, std::uint64_t answer_bytes) : stride(0), size(0) {
    if (input_bytes > longest_data || answer_bytes > longest_data)
        throw Failure(NSC_ERROR_ARGUMENT, "an exchange is larger than any message");
    stride = (input_bytes + page - 1) / page * page;
    size = answer() + (answer_bytes + page - 1) / page * page;
}

Segment Segment::make(std::uint64_t size, std::string& why) {
    Segment segment;
    segment.file_ = sealed_file(size);
    void* data = MAP_FAILED;
    if (segment.file_ >= 0)
        data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, segment.file_, 0);
    if (data == MAP_FAILED) {
        why = std::strerror(errno);
        return Segment();
    }
    segment.data_ = static_cast<unsigned char*>(data);
    segment.size_ = size;
    if (getrandom(segment.mark_.data(), sizeof segment.mark_, GRND_NONBLOCK) != sizeof segment.mark_) {
        why = "the system gives no random numbers";
        return Segment();
    }
    std::memcpy(segment.data_, segment.mark_.data(), sizeof segment.mark_);
    return segment;
}

Segment::~Segment() {
    release();
}

Segment::Segment(Segment&& other) noexcept {
    *this = std::move(other);
}

Segment& Segment::operator=(Segment&& other) noexcept {
    if (this != &other) {
        release();
        file_ = std::exchange(other.file_, -1);
        data_ = std::exchange(other.data_, nullptr);
        size_ = std::exchange(other.size_, 0);
        mark_ = other.mark_;
    }
    return *this;
}

void Segment::release() noexcept {
    if (data_ != nullptr)
        munmap(data_, size_);
    if (file_ >= 0)
        close(file_);
    data_ = nullptr;
    file_ = -1;
}

void Segment::describe(Writer& text) const {
    text.u64(size_);
    text.u32(static_cast<std::uint32_t>(getpid()));
    text.u32(static_cast<std::uint32_t>(file_));
    text.u64(mark_[0]);
    text.u64(mark_[1]);
    text.text(name_of_node());
}

void Segment::opened() noexcept {
    if (file_ >= 0)
        close(file_);
    file_ = -1;
}

bool may_share() {
    const char* asked = std::getenv("NEUROSCALE_SHARED_MEMORY");
    return asked == nullptr || std::strcmp(asked, "0") != 0;
}

bool copy_finite(void* to, const void* from, std::size_t count) {
    constexpr std::size_t piece = 2048; // numbers that stay in the first cache until they have been looked at
    auto* target = static_cast<unsigned char*>(to);
    const auto* source = static_cast<const unsigned char*>(from);
    bool finite = true;
    for (std::size_t at = 0; at < count; at += piece) {
        const std::size_t here = std::min(piece, count - at);
        std::memcpy(target + 8 * at, source + 8 * at, 8 * here);
        finite = all_finite(target + 8 * at, here) && finite;
    }
    return finite;
}

} // namespace neuroscale::client
