# One word a task. `make demo` and `make test` work from a bare clone: they create .venv, install the pinned packages
# (constraints.txt), build the extensions and run. A second call installs nothing again.
PYTHON ?= python3
VENV := .venv
PY ?= $(VENV)/bin/python
STAMP := $(VENV)/.installed
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f \( -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh' \))
CORPUS ?=
DATA := $(or $(MEGATRON_ALUM_DATA),../shared/data)

.PHONY: demo test test-fast test-slow times mutations lint docs bench bench-text study gpu-check clean

$(STAMP): $(SOURCES)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@# setuptools_scm: seqeval comes as source, and building it without isolation needs what an isolated build would fetch.
	$(VENV)/bin/pip install -q -c constraints.txt -U pip setuptools setuptools_scm wheel pybind11 ninja
	$(VENV)/bin/pip install -q -c constraints.txt torch==2.13.0
	$(VENV)/bin/pip install -q -c constraints.txt --no-build-isolation -e '.[test,dask,wandb]'
	touch $(STAMP)

demo: $(STAMP)
	$(PY) examples/demo.py $(if $(CORPUS),--corpus $(CORPUS))

SUITE := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 tests

test: $(STAMP)
	$(SUITE)

# The files that take seconds, for the loop of writing code.
test-fast: $(STAMP)
	$(SUITE) --fast

# Measures the files anew for the schedule of the two above (tests/file_times.csv).
times: $(STAMP)
	$(SUITE) --times

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n 2 --dist worksteal -o timeout=3000 --results tests/slow_results.csv tests

# Faults put into copies of the project, each of which a test must notice (tests/mutations/faults.toml).
mutations: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n 2 --dist worksteal --results tests/slow_results.csv tests/mutations

lint: $(STAMP)
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
	$(PY) -m pytest -q -s -m "slow or not slow" tests/test_architecture.py tests/ops/test_instructions.py

# The site: build/docs/index.html. A warning is an error, as in the tests.
docs: $(STAMP)
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs

bench: $(STAMP)
	$(PY) -m benchmarks.bench_ops --output benchmarks/results/ops_cpu.csv
	$(PY) -m benchmarks.bench_ops --keep-memory --output benchmarks/results/ops_cpu_kept_memory.csv
	$(PY) -m benchmarks.bench_step --rounds 3 --output benchmarks/results/step_cpu.csv
	test ! -d "$(DATA)" || $(MAKE) bench-text
	$(PY) -m benchmarks.bench_finetune --output benchmarks/results/finetune_cpu.csv
	$(PY) -m benchmarks.bench_sampler --output benchmarks/results/sampler.csv
	test ! -d "$(DATA)" || $(PY) -m benchmarks.bench_data --corpus $(DATA)/wiki/extracted --dump $(DATA)/wiki/dump/enwiki-latest-*.bz2 \
		--vocab-file $(DATA)/vocab/bert-base-uncased-vocab.txt --punkt-dir $(DATA)/punkt/nltk_data --output benchmarks/results/data.csv
	! $(PY) -c "import wikiextractor" 2> /dev/null || test ! -d "$(DATA)" || \
		$(PY) -m benchmarks.compare_cleaners --dump $(DATA)/wiki/dump/enwiki-latest-*.bz2

# Whole steps on real text, beside stock megatron-core on padded rows of the same samples.
bench-text: $(STAMP)
	mkdir -p build/bench
	$(PY) tools/preprocess_data.py --input $(DATA)/wiki/extracted/AA/wiki_0[0-9].bz2 --output-prefix build/bench/wiki \
		--vocab-file $(DATA)/vocab/bert-base-uncased-vocab.txt
	for length in 128 512; do $(PY) -m benchmarks.bench_step --data build/bench/wiki --seq-length $$length --rounds 3 \
		--output benchmarks/results/step_text_$$length.csv; done

# Pre-training methods compared: SCALE=smoke (minutes), cpu (hours, several starts), gpu; paper prints its commands.
SCALE ?= smoke
study: $(STAMP)
	nice $(PY) examples/study/run.py examples/study/$(SCALE).yaml --data-dir "$(DATA)" \
		$(if $(filter smoke,$(SCALE)),,--results examples/study/results)

gpu-check:
	$(PY) -m benchmarks.gpu_check

clean:
	rm -rf build dist *.egg-info demo_output megatron_alum/*.so $(STAMP)
