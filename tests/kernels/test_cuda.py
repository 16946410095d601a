"""What only a GPU can show: streams, graphs, and the sanitizers of CUDA. The kernels' answers are in test_NAME.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuroscale_couple import kernels

pytestmark = pytest.mark.needs("cuda")


def test_a_graph_takes_the_pyramid_and_gives_the_same_bits() -> None:
    field = torch.randn((1000, 1, 32, 32), device="cuda")
    expected = [level.clone() for level in kernels.coarsen_pyramid(field, 5)]
    outs = [torch.zeros_like(level) for level in expected]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.coarsen_pyramid(field, 5, out=outs)
    graph.replay()
    for got, level in zip(outs, expected, strict=True):
        assert torch.equal(got, level)


def test_a_graph_takes_the_projection_and_gives_the_same_bits() -> None:
    tensors = torch.randn((1000, 3, 3), dtype=torch.float64, device="cuda")
    expected, work = tensors.clone(), tensors.clone()
    found = kernels.admissible(expected)
    out = torch.zeros_like(found)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.admissible(work, out=out)
    work.copy_(tensors)
    graph.replay()
    assert torch.equal(work, expected) and torch.equal(out, found)


def test_a_kernel_runs_on_the_current_stream() -> None:
    """Behind other work of that stream, while the default stream does not wait for it."""
    stream = torch.cuda.Stream()
    field = torch.zeros((4, 1, 64, 64), device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        field.fill_(3.0)
        (coarse,) = kernels.coarsen_pyramid(field, 1)
    stream.synchronize()
    assert torch.equal(coarse, torch.full_like(coarse, 3.0))


@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer was not found")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_the_kernels_are_clean(tool: str) -> None:
    tests = sorted(str(path) for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_cuda.py")
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all",
         sys.executable, "-m", "pytest", "-q", "-k", "test_cuda_agrees", *tests],
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
