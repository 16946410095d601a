"""The host's stand-in for CUDA finds what it is there to find: kernels with one mistake each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.host_cuda import MEMORY, RACES, RACES_HOST, program, run

KERNEL = """
__global__ void kernel_NUMBER(float* values) {
    NEUROSCALE_SHARED(memory);
    [[maybe_unused]] float* shared = reinterpret_cast<float*>(memory);
    const int i = static_cast<int>(threadIdx.x);
    [[maybe_unused]] const int all = static_cast<int>(blockIdx.x * blockDim.x) + i;
    BODY
}
"""
# arguments: the number of the kernel, bytes of shared memory
MAIN = """
int main(int, char** arguments) {
    void (*const kernels[])(float*) = {KERNELS};
    std::vector<float> values(128, 1.0F);
    cudaLaunchConfig_t config = {dim3(2), dim3(64), std::stoul(arguments[2]), nullptr};
    const int error = cudaLaunchKernelEx(&config, kernels[std::stoi(arguments[1])], values.data());
    for (float value : values) {
        std::printf("%g ", value);
    }
    return error;
}
"""
WARP = "shared[i] = float(all); __syncwarp(0xffffffffu); values[all] = shared[i ^ 1];"
RIGHT = "shared[i] = float(all); __syncthreads(); values[all] = shared[63 - i];"
MIRRORED = " ".join(str(63 - i) for i in range(64)) + " 127 126"
ADD = (
    "float v = float(i % 8); for (int d = 4; d > 0; d /= 2) v += __shfl_xor_sync(0xffu << (i % 32 / 8 * 8), v, d, 32);"
    " values[all] = v;"
)
ANSWERS = {
    RIGHT: MIRRORED,
    WARP: "1 0 3 2 5 4",
    ADD: "28 28 28",
    "values[all] = float(__popc(__ballot_sync(0xffffffffu, i % 4 == 0)));": "8 8 8",
    "values[all] = float(__syncthreads_count(i < 5));": "5 5 5",
    "values[all] = __shfl_down_sync(0xffffffffu, float(i), 3, 8);": "3 4 5 6 7 5 6 7 11",
    "values[all] = __shfl_sync(0xffffffffu, float(i), 2, 8);": "2 2 2 2 2 2 2 2 10",
}
RACING = [
    "shared[i] = float(i); values[all] = shared[63 - i];",  # no barrier
    "shared[i] = 0; __syncthreads(); shared[63 - i] = 1; values[all] = shared[i];",  # one too few
    "values[i] = float(all);",  # two blocks write to one place
    "__syncthreads(); values[blockIdx.x == 0 ? i : 63 - i] = 1;",  # a barrier is of one block
    "shared[i] = 1; __ballot_sync(0xffffffffu, true); values[all] = shared[i ^ 1];",  # a vote orders no memory
    "shared[i] = 1; values[all] = __shfl_sync(0xffffffffu, 1.0F, 0, 32) + shared[i ^ 1];",  # nor does a shuffle
]
MISTAKES = {
    "if (i < 40) { __syncthreads(); } else { __syncwarp(0xffffffffu); }": "for others that never come there",
    "if (i < 32) { __syncthreads(); } else {\n __syncthreads(); }": "for others that never come there",
    "if (i > 2) { values[all] = __shfl_sync(0xffffffffu, 1.0F, 5, 32); }": "a thread that is not there",
    "if (i % 32 < 8) { values[all] = __shfl_sync(0xffu, 1.0F, 9, 32); }": "lane 9 takes no part",
    "__syncwarp(0xffu);": "the mask does not name the thread",
    "values[all] = shared[i + 1];": "heap-buffer-overflow",
    "values[all + 1] = 0;": "heap-buffer-overflow",
    "values[all] = reinterpret_cast<float2*>(values + 1)->x;": "misaligned address",
}
LEFT_OVER = "if (blockIdx.x == 0) { shared[i] = 5; } else { values[all] = shared[i]; }"
BODIES = [*ANSWERS, *RACING, *MISTAKES, LEFT_OVER]


def built(folder: Path, options: tuple[str, ...], host: tuple[str, ...] = ()) -> Path:
    """One program for all kernels."""
    kernels = [KERNEL.replace("NUMBER", str(i)).replace("BODY", body) for i, body in enumerate(BODIES)]
    names = ", ".join(f"kernel_{i}" for i in range(len(BODIES)))
    head = "#include <cuda_runtime.h>\n#include <cstdio>\n#include <string>\n#include <vector>\n"
    source = folder / "kernels.cu"
    source.write_text(head + "".join(kernels) + MAIN.replace("KERNELS", names))
    return program(folder, [source], *options, host_options=host)


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("races"), RACES, RACES_HOST)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("memory"), MEMORY)


def outcome(program: Path, body: str, order: str = "7", shared: int = 256) -> str:
    done = run(program, str(BODIES.index(body)), str(shared), order=order)
    return f"{done.returncode} {done.stdout} {done.stderr}"


@pytest.mark.parametrize("order", ["forward", "backward", "7"])
@pytest.mark.parametrize("body", ANSWERS)
def test_right_kernels_give_what_they_give_on_a_device(races: Path, memory: Path, body: str, order: str) -> None:
    for made in (races, memory):
        got = outcome(made, body, order)
        assert got.startswith(f"0 {ANSWERS[body]} "), got


@pytest.mark.parametrize("body", RACING)
def test_a_race_is_found(races: Path, body: str) -> None:
    assert "WARNING: ThreadSanitizer: data race" in outcome(races, body)


@pytest.mark.parametrize("body", MISTAKES)
def test_a_mistake_is_named(memory: Path, body: str) -> None:
    got = outcome(memory, body)
    assert MISTAKES[body] in got and not got.startswith("0"), got


def test_shared_memory_does_not_keep_what_another_block_left(memory: Path) -> None:
    got = outcome(memory, LEFT_OVER)
    assert got.startswith("0 1 ") and "nan" in got and " 5 " not in got


def test_more_shared_memory_than_a_launch_gets_is_refused(memory: Path) -> None:
    assert outcome(memory, RIGHT, shared=50_000).startswith("9 1 1 ")
