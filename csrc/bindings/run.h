// How a binding runs its kernel: the backend that the arrays and the caller ask for, without the GIL.
#pragma once

#include "array_view.h"

#include <optional>

#if defined(NEUROSCALE_HAS_CUDA)
#include "neuroscale/kernels/coarsen_pyramid.h" // error_text
#define NEUROSCALE_ON_CUDA(call) [&] { return call; }
#else
#define NEUROSCALE_ON_CUDA(call) [&] { return 0; }
#endif

namespace neuroscale::bindings {

struct Call {
    const char* name;
    bool reference;
    std::uintptr_t stream;

    void* queue() const { return reinterpret_cast<void*>(stream); }
};

// `main` tells the device; on_cuda() returns a cudaError_t. Raises ValueError, RuntimeError.
template <typename Reference, typename Cpu, typename Cuda>
void run(const Call& call, const ArrayView& main, Reference reference, Cpu cpu, Cuda cuda) {
#if defined(NEUROSCALE_HAS_CUDA)
    constexpr bool built = true;
#else
    constexpr bool built = false;
#endif
    if (main.device == Device::cuda && (call.reference || !built)) {
        throw pybind11::value_error(main.name + ": got " + describe(main) +
                                    ", expected memory of the CPU for this backend");
    }
#if defined(NEUROSCALE_HOST_CUDA) // a test's build: the CUDA kernels on the host, csrc/tests/host_cuda
    const bool on_cuda = !call.reference;
#else
    const bool on_cuda = main.device == Device::cuda;
#endif
    int error = 0;
    {
        const pybind11::gil_scoped_release released;
        if (on_cuda) {
            error = cuda();
        } else if (call.reference) {
            reference();
        } else {
            cpu();
        }
    }
#if defined(NEUROSCALE_HAS_CUDA)
    if (error != 0) {
        throw std::runtime_error(std::string(call.name) + " on " + describe(main) +
                                 ": CUDA: " + kernels::cuda::error_text(error));
    }
#else
    static_cast<void>(error);
#endif
}

// An array that may be None.
inline std::optional<ArrayView> optional_view(const pybind11::object& array, const char* name, Access access,
                                              Kind kind = Kind::floating) {
    return array.is_none() ? std::nullopt : std::optional<ArrayView>(view_of(array, name, access, kind));
}

template <typename T>
T* data(const ArrayView& view) {
    return static_cast<T*>(view.data);
}

template <typename T>
T* data(const std::optional<ArrayView>& view) {
    return view ? static_cast<T*>(view->data) : nullptr;
}

// work(T{}) with the type of the array's numbers.
template <typename Work>
void with_type(const ArrayView& view, Work work) {
    if (view.dtype == Dtype::float32) {
        work(float{});
    } else {
        work(double{});
    }
}

} // namespace neuroscale::bindings
