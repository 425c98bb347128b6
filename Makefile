# make demo    train a small conditional GAN on real pictures, from nothing, and show what it learnt
# make test    the test suite, but for what is marked slow
# make slow    the tests that are marked slow
# make lint    ruff, clang-format, mypy
# make aot     every GPU kernel compiled for sm_80, sm_90 and sm_100, with no GPU
# make bench   the committed figures of this machine, made anew
# make tables  the README's and docs' tables, from the committed figures
# Each makes the environment that it needs in .venv, once.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# Python compiles a module when it is first imported; of the 10,000 most never are. It must be free to keep what it made:
# two dozen tests start Pythons that import torch.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# The build that pip leaves, by the name that setup.py gives it.
PLATFORM = import sys, sysconfig; print(sysconfig.get_platform(), sys.implementation.cache_tag, sep="-")
BUILD = build/native-$(shell $(BIN)/python -c '$(PLATFORM)')
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test native-tests test-native test-python slow lint format aot bench tables clean

demo: $(VENV)/installed
	bash examples/demo.sh $(BIN)

# First what needs no torch is compiled, while pip waits for packages and unpacks them with one core.
test: $(VENV)/tools
	$(MAKE) --no-print-directory --jobs 2 native-tests $(VENV)/packages-dev
	$(MAKE) --no-print-directory test-native
	$(MAKE) --no-print-directory test-python

# In the build folder of the extension, which shares its objects. Ninja must not look for make's jobs.
native-tests: $(VENV)/tools
	$(BIN)/cmake -S . -B $(BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DGANKERNELS_BUILD_TESTS=ON \
	  -DGANKERNELS_BUILD_EXTENSION=$(if $(wildcard $(VENV)/installed-dev),ON,OFF)
	MAKEFLAGS= $(BIN)/cmake --build $(BUILD) --target native_tests

test-native: $(VENV)/installed-dev
	$(MAKE) --no-print-directory native-tests
	$(BIN)/ctest --test-dir $(BUILD) --parallel 2 --output-on-failure

test-python: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'tests/native/*' | grep -E '\.(h|cuh|cpp|cu)$$')
	$(BIN)/mypy gankernels

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*' 'tests/native/*' | grep -E '\.(h|cuh|cpp|cu)$$')

aot: $(VENV)/installed-dev
	$(BIN)/python tests/ahead_of_time/triton_kernels.py
	$(BIN)/python tests/ahead_of_time/cuda_kernels.py
	$(BIN)/python tests/ahead_of_time/cuda_bindings.py

bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/record.py

tables: $(VENV)/installed-dev
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf build $(VENV) gankernels/_C*.so gankernels/_build.json *.egg-info

$(VENV)/tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11; set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV) || { echo "make: no venv module; apt-get install python3-venv"; exit 2; }
	$(PIP) cmake ninja
	@touch $@

# torch comes first: the extension is built against the torch that is there.
$(VENV)/torch: $(VENV)/tools
	$(PIP) '$(TORCH)' numpy
	@touch $@

# All that the extras name, in one go with torch, so that building the extension is all that is left to do.
EXTRAS = import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
  print(*extras["train"], *extras["digits"], *extras["dev"], sep="\n")
$(VENV)/packages-dev: $(VENV)/tools pyproject.toml
	$(BIN)/python -c '$(EXTRAS)' > $(VENV)/packages-dev.txt
	$(PIP) '$(TORCH)' numpy -r $(VENV)/packages-dev.txt
	@touch $@ $(VENV)/torch

$(VENV)/installed: $(VENV)/torch $(NATIVE)
	$(PIP) -e '.[train,digits]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/packages-dev $(NATIVE)
	$(PIP) -e '.[train,digits,dev]'
	@touch $@ $(VENV)/installed
