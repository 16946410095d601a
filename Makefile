# make run    set up and run case 01, compared with its fine-only run    (no root, no system package but a compiler)
# make test   set up, lint, and run all tests
# make model  train the model of case 01 from nothing;   make cold  run case 01 without a model
# make bench  all benchmarks, quick form;                make clean remove what was built and the results
# make record measure again what the docs state;           make record-fenicsx  the same for cases 02 and 03

# Plain `torch` may bring gigabytes of CUDA libraries; this exact version is the one that was tested. For a GPU, or
# where no CPU build of it is on offer: make run TORCH='torch --index-url <see pytorch.org>'
TORCH ?= torch==2.13.0
CASE ?= cases/01_fe2_plate
# CUDA kernels are built where nvcc is found (AUTO), never required.
CUDA ?= AUTO
VENV ?= .venv
# The Python that has dolfinx; where there is none, tests/fenicsx skips.
FENICSX_PYTHON ?= /usr/bin/python3

BIN := $(CURDIR)/$(VENV)/bin
STAMPS := $(VENV)/stamps
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then command -v $$p; break; fi; done)
SOURCES := $(shell find csrc/include/neuroscale/kernels csrc/kernels csrc/bindings csrc/precice.cmake CMakeLists.txt pyproject.toml -type f)

# The thread count of a run is set in one place; libraries that bring their own pools must not multiply it.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
export OMP_NUM_THREADS ?= $(CORES)
export MKL_NUM_THREADS ?= $(OMP_NUM_THREADS)
export OPENBLAS_NUM_THREADS ?= 1
# A thread that waits must not keep a core from one that works: with taken cores each wait costs a time slice else.
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
OUTER_PATH := $(PATH)
export PATH := $(BIN):$(PATH)

.PHONY: run test model cold bench lint format build-strict pytest pytest-fenicsx docs setup setup-test setup-fenicsx \
	system-packages record record-fenicsx clean
.DELETE_ON_ERROR:

run: setup
	$(BIN)/neuroscale-couple run $(CASE)/neuroscale.yaml --compare

cold: setup
	$(BIN)/neuroscale-couple run $(CASE)/neuroscale.yaml --cold --compare --set settings.steps=100

model: setup
	$(BIN)/neuroscale-couple train $(CASE)/neuroscale.yaml

test: setup-test system-packages setup-fenicsx lint build-strict pytest pytest-fenicsx
	@echo "make test: all checks passed"

# --- set-up: every step is redone only when what it depends on has changed ---

setup: $(STAMPS)/package $(STAMPS)/mpi

setup-test: setup $(STAMPS)/test
	@sh .ci/pyprecice $(BIN)/python

$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, none was found: make run PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment (Debian: python3-venv)"; exit 1; }
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	@touch $@

$(STAMPS)/package: $(STAMPS)/torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[run]' --config-settings=cmake.define.NEUROSCALE_CUDA=$(CUDA)
	@touch $@

# mpi4py takes the system's MPI; where there is none, PyPI's mpich brings one.
$(STAMPS)/mpi: $(STAMPS)/package
	@$(BIN)/python -c 'from mpi4py import MPI' 2>/dev/null || $(BIN)/python -m pip install --quiet mpich
	@touch $@

$(STAMPS)/test: $(STAMPS)/package
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c "import tomllib; \
		print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['test'])")
	@touch $@

# Debian's packages are wanted only where a test folder needs them, on Debian, as root; elsewhere those tests skip.
system-packages:
	@sh .ci/system-packages

# FEniCSx lives in the distribution's Python: a second environment over it (docs/fenicsx.md).
setup-fenicsx: system-packages
	@sh .ci/fenicsx-environment $(FENICSX_PYTHON)

# --- checks ---

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $$(find csrc adapters/openfoam/src -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu' -o -name '*.[CH]')
	$(BIN)/python docs/make_configuration.py --check
	$(BIN)/python docs/make_results.py --check

format: setup-test
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc adapters/openfoam/src -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu' -o -name '*.[CH]')

# Our own C++ with warnings as errors; the installed extension is built without, so that a new compiler cannot stop a user.
build-strict: setup-test
	@mkdir -p build
	@$(BIN)/cmake -S . -B build/strict -G Ninja -DNEUROSCALE_WERROR=ON -DNEUROSCALE_CUDA=$(CUDA) \
		-DCMAKE_MAKE_PROGRAM=$(BIN)/ninja -DPython_EXECUTABLE=$(BIN)/python \
		-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) >build/strict.log || { cat build/strict.log; exit 1; }
	@$(BIN)/cmake --build build/strict

# Tests that leave a core idle run in two workers, each file in one; the others start solvers and ranks of their own.
# tests/fenicsx skips here, and is counted, where it cannot run in its own environment below.
TWO_WORKERS := tests/contract tests/docs tests/kernels tests/unit
pytest: setup-test
ifdef PYTEST
	$(BIN)/python -m pytest -q -rs $(PYTEST)
else
	$(BIN)/python -m pytest -q -rs -n 2 --dist loadfile $(TWO_WORKERS)
	$(BIN)/python -m pytest -q -rs $(addprefix --ignore=,$(TWO_WORKERS)) \
		$$([ ! -e .venv-fenicsx/ready ] || echo --ignore=tests/fenicsx)
endif

pytest-fenicsx: setup-fenicsx
	@[ ! -e .venv-fenicsx/ready ] || PATH="$(CURDIR)/.venv-fenicsx/bin:/usr/bin:/bin:$(OUTER_PATH)" \
		.venv-fenicsx/bin/python -m pytest -q -rs -p no:cacheprovider tests/fenicsx

docs: setup-test
	$(BIN)/python docs/make_configuration.py
	$(BIN)/python docs/make_results.py

bench: setup-test
	@mkdir -p build/bench
	for script in benchmarks/*.py; do \
		$(BIN)/python $$script --quick --json build/bench/$$(basename $$script .py).json || exit 1; done

# Measure again what README and docs/ state; wants a quiet machine.
record: setup-test
	@mkdir -p docs/results docs/pictures
	$(BIN)/neuroscale-couple run cases/01_fe2_plate/neuroscale.yaml --cold --compare --set settings.steps=100
	cp runs/01_fe2_plate/cold/summary.json docs/results/case_01_cold.json
	$(BIN)/neuroscale-couple run cases/01_fe2_plate/neuroscale.yaml --compare
	cp runs/01_fe2_plate/summary.json docs/results/case_01.json
	cp runs/01_fe2_plate/pictures/overview.png docs/pictures/case_01.png
	$(BIN)/python benchmarks/loop.py --json docs/results/loop.json --plot docs/pictures/loop.png
	$(BIN)/python benchmarks/fine.py --json docs/results/fine.json
	$(BIN)/python benchmarks/surrogate.py --json docs/results/surrogate.json
	$(BIN)/python benchmarks/kernels.py --json docs/results/kernels.json --plot docs/pictures/kernels.png
	$(BIN)/python benchmarks/client.py --json docs/results/client.json
	$(BIN)/python benchmarks/opaque.py --json docs/results/opaque.json
	$(BIN)/python docs/make_results.py

# The same for cases 02 and 03, in the environment of FEniCSx; three ranks of an mpirun may be more than there are cores.
record-fenicsx: setup-fenicsx
	export PATH="$(CURDIR)/.venv-fenicsx/bin:/usr/bin:/bin:$(OUTER_PATH)" OMP_NUM_THREADS=1 \
		OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1 \
		OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_rmaps_base_oversubscribe=1; \
	cases/02_fenicsx_two_scale_heat/run.sh --out $(CURDIR)/runs && cases/03_fenicsx_fe2_cook/run.sh --out $(CURDIR)/runs
	cp runs/02_fenicsx_two_scale_heat/summary.json docs/results/case_02.json
	cp runs/03_fenicsx_fe2_cook/summary.json docs/results/case_03.json
	$(BIN)/python docs/make_results.py

clean:
	rm -rf build runs
