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
# The build that pip leaves, by the name that setup.py gives it.
PLATFORM = import sys, sysconfig; print(sysconfig.get_platform(), sys.implementation.cache_tag, sep="-")
BUILD = build/native-$(shell $(BIN)/python -c '$(PLATFORM)')
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test test-native test-python slow lint format aot bench tables clean

demo: $(VENV)/installed
	bash examples/demo.sh $(BIN)

test: test-native test-python

test-native: $(VENV)/installed-dev
	$(BIN)/cmake -S . -B $(BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DGANKERNELS_BUILD_TESTS=ON
	$(BIN)/cmake --build $(BUILD) --target native_tests
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

# torch comes first: the extension is built against the torch that is there.
$(VENV)/torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11; set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV) || { echo "make: no venv module; apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' numpy
	@touch $@

$(VENV)/installed: $(VENV)/torch $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,digits]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/torch $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,digits,dev]'
	@touch $@ $(VENV)/installed
