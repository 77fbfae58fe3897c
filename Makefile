# Two commands on a fresh machine: make demo, make test. Both make the virtual environment they need.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= runs/demo
SEED   ?= 0

.PHONY: demo test test-slow lint wheel bench-smoke clean

demo: $(VENV)/.demo
	$(BIN)/rl-ae train --preset pendulum --seed $(SEED) --run $(RUN) --resume
	$(BIN)/rl-ae evaluate $(RUN)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two tasks of a minute each through the runner, and the report of them.
bench-smoke: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.run --suite smoke --algo sac_ae --runs runs/smoke --results runs/smoke/results
	$(BIN)/python -m benchmarks.report runs/smoke/results --out runs/smoke/report

# Builds the package, and imports it in an empty environment.
wheel: $(VENV)/.dev
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m build
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/pip install -q -c constraints.txt dist/*.whl
	cd dist && ../$(VENV)-wheel/bin/python -c "import rl_ae.sb3, pathlib; assert pathlib.Path(rl_ae.__file__).with_name('py.typed').exists()"
	rm -rf $(VENV)-wheel

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) dist runs
