// Channel `embedded`: the service in the solver's own process, in a CPython that is started here and never finalised.
//
// Solvers such as OpenFOAM trap floating-point exceptions; NumPy and torch raise them in passing. Every call into
// Python runs in the default floating-point environment, and the solver's is restored after it.
//
// Each rank of a solver has a service of its own, and the services work together through a communicator of these ranks.
#include "../client/channel.h"
#include "../client/failure.h"
#include "ranks.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cfenv>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>

namespace neuroscale::client {

namespace {

[[noreturn]] void refuse(const std::string& text) {
    throw Failure(NSC_ERROR_CHANNEL, text);
}

/// The default floating-point environment, without traps, as long as it lives.
class QuietFloats {
public:
    QuietFloats() { std::feholdexcept(&kept_); }
    ~QuietFloats() { std::fesetenv(&kept_); }
    QuietFloats(const QuietFloats&) = delete;
    QuietFloats& operator=(const QuietFloats&) = delete;

private:
    std::fenv_t kept_{};
};

/// The interpreter's lock, as long as it lives.
class Locked {
public:
    Locked() : state_(PyGILState_Ensure()) {}
    ~Locked() { PyGILState_Release(state_); }
    Locked(const Locked&) = delete;
    Locked& operator=(const Locked&) = delete;

private:
    PyGILState_STATE state_;
};

struct Release {
    void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Object = std::unique_ptr<PyObject, Release>;

/// The pending Python error as a text; it is cleared.
std::string python_error() {
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    const Object t(type), v(value), tb(trace);
    const Object text(v ? PyObject_Str(v.get()) : nullptr);
    const char* said = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
    const std::string name = t ? reinterpret_cast<PyTypeObject*>(t.get())->tp_name : "error";
    const std::string result = name + ": " + (said != nullptr ? said : "");
    PyErr_Clear();
    return result;
}

std::string on_path(const std::string& program) {
    if (program.find('/') != std::string::npos)
        return program;
    const char* path = std::getenv("PATH");
    std::string rest = path == nullptr ? "" : path;
    while (!rest.empty()) {
        const std::size_t end = std::min(rest.find(':'), rest.size());
        const std::string candidate = rest.substr(0, end) + "/" + program;
        if (access(candidate.c_str(), X_OK) == 0)
            return candidate;
        rest.erase(0, end + 1);
    }
    refuse("channel embedded: there is no " + program +
           " on PATH; set NEUROSCALE_PYTHON to the Python interpreter that "
           "has neuroscale-couple");
}

/// Start CPython as the given interpreter would; one that runs already is used as it is.
void start_python(const Options& options) {
    if (Py_IsInitialized() != 0)
        return;
    const char* given = std::getenv("NEUROSCALE_PYTHON");
    const std::string python = on_path(!options.command.empty()             ? options.command
                                       : given != nullptr && *given != '\0' ? given
                                                                            : "python3");
    if (access(python.c_str(), X_OK) != 0)
        refuse("channel embedded: " + python + " is not a Python interpreter: " + std::strerror(errno));
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    config.buffered_stdio = 0; // nobody flushes: the interpreter is never finalised
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, python.c_str());
    if (PyStatus_Exception(status) == 0)
        status = PyConfig_SetBytesString(&config, &config.executable, python.c_str());
    if (PyStatus_Exception(status) == 0)
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status) != 0)
        refuse(std::string("channel embedded: Python does not start: ") +
               (status.err_msg != nullptr ? status.err_msg : "no reason given"));
    PyEval_SaveThread();
}

class EmbeddedChannel final : public Channel {
public:
    explicit EmbeddedChannel(const Options& options)
        : ranks_(options.open_ranks == nullptr ? nullptr : options.open_ranks(options)) {}

    /// Start Python and make the service. On several ranks all succeed, or all throw.
    void start(const Options& options) {
        if (!ranks_)
            return make(options);
        try {
            make(options);
        } catch (const Failure& failure) {
            tell(failure);
            throw;
        } catch (const std::exception& error) {
            tell(Failure(NSC_ERROR_MEMORY, std::string("channel embedded: ") + error.what()));
            throw;
        }
        ranks_->agree(nullptr);
    }

    ~EmbeddedChannel() override { leave(false); }

    void leave(bool finished) noexcept override {
        if (service_ == nullptr)
            return;
        const QuietFloats quiet;
        const Locked lock;
        drop_reply();
        if (!finished) {
            const Object done(PyObject_CallMethod(service_, "abandon", nullptr));
            PyErr_Clear();
        }
        Py_DECREF(service_);
        service_ = nullptr;
        if (finished && ranks_)
            ranks_->finish();
    }

protected:
    /// A message of the client is a call of the service; what it sends back is read later.
    void write(const std::vector<Out>& blocks, Deadline) override {
        const QuietFloats quiet;
        const Locked lock;
        drop_reply();
        const Object list(PyList_New(0));
        for (const Out& block : blocks) {
            if (block.bytes == 0)
                continue;
            char* data = const_cast<char*>(static_cast<const char*>(block.data));
            const Object view(PyMemoryView_FromMemory(data, static_cast<Py_ssize_t>(block.bytes), PyBUF_READ));
            if (!view || PyList_Append(list.get(), view.get()) != 0)
                throw Failure(NSC_ERROR_MEMORY, "channel embedded: " + python_error());
        }
        const Object sent(PyObject_CallMethod(service_, "handle", "O", list.get()));
        if (!sent)
            throw Failure(NSC_ERROR_SERVICE, "the service failed: " + python_error());
        keep_reply(sent.get());
    }

    void read(void* into, std::size_t bytes, Deadline) override {
        auto* at = static_cast<unsigned char*>(into);
        while (bytes > 0) {
            if (next_ == reply_.size())
                throw Failure(NSC_ERROR_LOST, "the service in this process gave no answer");
            const Py_buffer& block = reply_[next_];
            const std::size_t left = static_cast<std::size_t>(block.len) - taken_;
            const std::size_t count = std::min(left, bytes);
            std::memcpy(at, static_cast<const unsigned char*>(block.buf) + taken_, count);
            at += count;
            bytes -= count;
            taken_ += count;
            if (taken_ == static_cast<std::size_t>(block.len)) {
                taken_ = 0;
                ++next_;
            }
        }
    }

private:
    void tell(const Failure& failure) noexcept {
        try {
            ranks_->agree(&failure);
        } catch (...) { // it is thrown on all ranks, here as the caller has it
        }
    }

    void make(const Options& options) {
        const QuietFloats quiet;
        start_python(options);
        const Locked lock;
        const Object module(PyImport_ImportModule("neuroscale_couple.assemble"));
        if (!module)
            refuse("channel embedded: " + python_error() +
                   "; set NEUROSCALE_PYTHON to the Python interpreter that has neuroscale-couple");
        const Object set(PyList_New(0));
        for (const std::string& line : options.set) {
            const Object text(PyUnicode_FromStringAndSize(line.data(), static_cast<Py_ssize_t>(line.size())));
            if (!text || PyList_Append(set.get(), text.get()) != 0)
                refuse("channel embedded: " + python_error());
        }
        service_ = PyObject_CallMethod(module.get(), "service_inside", "sOidsi", options.configuration.c_str(),
                                       set.get(), options.resume ? 1 : 0, options.timeout, ranks_ ? ranks_->kind() : "",
                                       ranks_ ? ranks_->communicator() : 0);
        if (service_ == nullptr)
            throw Failure(NSC_ERROR_SERVICE, "the service failed: " + python_error());
    }

    void keep_reply(PyObject* sent) {
        const Py_ssize_t count = PySequence_Size(sent);
        for (Py_ssize_t i = 0; i < count; ++i) {
            const Object block(PySequence_GetItem(sent, i));
            Py_buffer buffer{};
            if (!block || PyObject_GetBuffer(block.get(), &buffer, PyBUF_SIMPLE) != 0)
                throw Failure(NSC_ERROR_INTERNAL, "channel embedded: " + python_error());
            reply_.push_back(buffer);
        }
    }

    void drop_reply() noexcept {
        for (Py_buffer& block : reply_)
            PyBuffer_Release(&block);
        reply_.clear();
        next_ = taken_ = 0;
    }

    std::unique_ptr<Ranks> ranks_; // none: one rank
    PyObject* service_ = nullptr;
    std::vector<Py_buffer> reply_;
    std::size_t next_ = 0;
    std::size_t taken_ = 0;
};

} // namespace

} // namespace neuroscale::client

extern "C" __attribute__((visibility("default"))) neuroscale::client::Channel*
nsc_open_channel_1(const neuroscale::client::Options& options) {
    auto channel = std::make_unique<neuroscale::client::EmbeddedChannel>(options);
    channel->start(options);
    return channel.release();
}
