# Everything here sets itself up: a virtual environment in .venv and kprune in it, as a wheel built from this folder.
.DEFAULT_GOAL := help
.SUFFIXES:
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo quick test test-slow test-faults test-oldest test-newest test-private test-gpu run-on-gpu test-like-gpu test-tpu mutations compile-for-tpu \
	strategies bench bench-check bench-applications bench-shrink bench-export bench-trained test-formats run-formats clean lint types docs doctest dist try-dist try-dist-jax test-tensorflow \
	test-jax test-jax-distribution test-tf-keras test-tf-distribute test-tf-keras-and-devices install-demo install-test install-gpu install-tpu install-docs install-formats

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
# A worker takes up to 3 GB.
PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 6
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Otherwise each process would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make demo   train a network on digits dense and sparse, export it, draw out/demo.png (2 minutes on 2 cores)"
	@echo "make quick  run the tests of the seams, in a minute or two"
	@echo "make test   check style, types and documentation, run the tests"
	@echo "make test-slow   run what make test leaves out: deep networks, more kills, the notebooks, more on JAX"
	@echo "make test-faults   kill trainings at random, ten times of each of eight kinds, and compare how they end; read"
	@echo "                   10,000 damaged and hostile files of each kind, and bombs; shrink 500 random networks"
	@echo "make strategies   run every callback on every strategy, in one process and in several, print a table"
	@echo "make mutations   damage 30 functions, one after the other, and see which test notices (an hour)"
	@echo "make test-oldest   run the tests with the oldest versions that kprune is for"
	@echo "make test-newest   run the tests of what Keras and JAX keep private with the newest of both"
	@echo "make test-gpu   run the tests on an NVIDIA GPU, under JAX (3 GB)"
	@echo "make test-like-gpu   the same on a CPU whose float32 is rounded as a GPU rounds it"
	@echo "make test-formats   install what LiteRT, ONNX and OpenVINO files take, and test those exports (1 GB)"
	@echo "make test-tpu   compile train steps with the TPU's own compiler (3.5 GB, 10 minutes), print a table of them"
	@echo "make bench  time imports, steps, updates, fits under callbacks, SynFlow, SNIP and GraSP beside what they are held"
	@echo "            against, print the tables of docs/benchmarks.md (20 minutes on 2 idle cores; PyTorch, if installed)"
	@echo "make bench-check   fail where that has become slower than the ratios in benchmarks/ratios.json"
	@echo "make bench-applications   print which of keras.applications SynFlow takes"
	@echo "make bench-shrink   prune the channels of three networks, shrink them, print the table of docs/shrink.md"
	@echo "make bench-export   export sparse networks in every format, print the table of docs/export.md"
	@echo "make bench-trained   prune channels of four networks as they train, shrink, export, and hold them against onnxsim's:"
	@echo "                     the second table of docs/shrink.md (6 minutes on 2 cores)"
	@echo "make docs   build the documentation into out/site; any warning is an error"
	@echo "make dist   build sdist and wheel into dist/, install each in a fresh environment and train with it"
	@echo "make clean  remove what these leave behind"
	@echo "All need Python 3.11, 3.12 or 3.13: PYTHON=/path/to/python3 says which."

demo: install-demo
	$(BIN)/python examples/demo.py

bench-shrink: install-demo
	$(BIN)/python benchmarks/shrink.py

# In an environment of its own, as test-formats is: OpenVINO alone is larger than all that kprune needs.
bench-export:
	$(MAKE) VENV=.venv-formats install-formats
	KERAS_BACKEND=tensorflow .venv-formats/bin/python benchmarks/export.py

# Beside onnxsim, which nothing else needs.
bench-trained:
	$(MAKE) VENV=.venv-formats install-formats
	.venv-formats/bin/pip install -q --disable-pip-version-check -c $(CONSTRAINTS) onnxsim==0.8.1
	KERAS_BACKEND=tensorflow .venv-formats/bin/python benchmarks/trained.py

bench: install-demo
	$(BIN)/python benchmarks/bench.py

bench-check: install-demo
	$(BIN)/python benchmarks/bench.py --check

bench-applications: install-demo
	$(BIN)/python benchmarks/applications.py

test: lint types docs doctest test-tensorflow test-jax test-tf-keras-and-devices

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The wheel, not this folder: only there kprune.callbacks and kprune.models are where a type checker looks for them.
types: install-test
	cd $(VENV) && bin/mypy --config-file ../setup.cfg -p kprune

# Not `--quiet`, which hides the warnings from `--strict`, too.
docs: install-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "the documentation: out/site/index.html"

# `-p conftest` has every doctest start from the same seed and from fresh layer names, like every test.
doctest: install-test
	PYTHONPATH=tests KERAS_BACKEND=tensorflow $(PYTEST) -p conftest --doctest-modules --pyargs kprune

# The seams, in a minute or two: what reads and writes masks, and what decides which.
QUICK := floors layout masks masks_as_state patterns prune schedules scopes selection ticket undo
quick: install-test
	KERAS_BACKEND=tensorflow $(PYTEST) $(QUICK:%=tests/test_%.py)

# Tests with a process of their own, by the targets below.
APART := tf_keras tf_distribute jax_distribution tpu
test-tensorflow: install-test
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not slow" tests $(APART:%=--ignore=tests/%)

# What works on NumPy's arrays, or takes minutes to start processes, is the same on both backends: these files, and what
# is marked `once` in others.
ONCE := bombs data faults files fuzz golden_masks layout locks lottery_runs models own_data patterns plotting schedules scopes shrink_random sweep
ON_JAX := tests $(APART:%=--ignore=tests/%) $(ONCE:%=--ignore=tests/test_%.py)
test-jax: install-test
	KERAS_BACKEND=jax $(PYTEST) -m "not once and not slow and not slow_on_jax" $(ON_JAX)

# On four virtual devices, and in several processes. A file stays in one worker, which compiles each step once.
test-jax-distribution: install-test
	$(JAX_DISTRIBUTION)
JAX_DISTRIBUTION := KERAS_BACKEND=jax $(PYTEST) --dist loadfile --junitxml=out/jax_distribution.xml tests/jax_distribution

test-faults: install-test
	KERAS_BACKEND=tensorflow KPRUNE_FUZZ=10000 $(PYTEST) tests/test_fuzz.py -rP
	KERAS_BACKEND=jax KPRUNE_FUZZ=10000 $(PYTEST) tests/test_fuzz.py -rP
	KERAS_BACKEND=tensorflow KPRUNE_NETWORKS=500 $(PYTEST) tests/test_shrink_random.py -rP
	KERAS_BACKEND=tensorflow KPRUNE_KILLS=10 $(PYTEST) tests/test_faults.py -k "random or memory" -rP
	KERAS_BACKEND=jax KPRUNE_KILLS=10 $(PYTEST) tests/test_faults.py -k memory -rP
	KERAS_BACKEND=tensorflow KPRUNE_INPUTS=10000 $(PYTEST) tests/test_readers.py -k random -rP
	KERAS_BACKEND=jax KPRUNE_INPUTS=10000 $(PYTEST) tests/test_readers.py -k random -rP
	KERAS_BACKEND=tensorflow KPRUNE_INPUTS=10000 $(PYTEST) tests/tf_keras/test_readers_tf_keras.py -k random -rP
	KERAS_BACKEND=tensorflow $(PYTEST) tests/test_bombs.py -rP
	KERAS_BACKEND=jax $(PYTEST) tests/test_bombs.py -rP

# Goes on where it was stopped; out/mutations.jsonl says what was noticed, and by which test.
mutations: install-test
	$(BIN)/python tests/mutants.py run tests/fixtures/mutations_30.json out/mutations.jsonl

# With the oldest versions of all that kprune stands on; PYTHON says on which Python.
test-oldest:
	$(MAKE) test-tensorflow test-jax test-tf-keras VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

# What Keras and JAX do not promise may change in any release. kprune itself asks for versions it was tested with, so the
# newest are put over those, in an environment of its own.
test-newest:
	$(MAKE) test-private VENV=.venv-newest CONSTRAINTS=/dev/null

test-private: install-test
	$(BIN)/pip install -q --disable-pip-version-check --upgrade keras jax jaxlib
	$(BIN)/pip list --disable-pip-version-check | grep -E "^(keras|jax|jaxlib|tensorflow) "
	KERAS_BACKEND=tensorflow $(PYTEST) -m private_api tests $(APART:%=--ignore=tests/%)
	KERAS_BACKEND=jax $(PYTEST) -m private_api tests $(APART:%=--ignore=tests/%)
	KERAS_BACKEND=jax $(PYTEST) -m private_api tests/jax_distribution

# Products in full, so that two programs can be compared; kernels chosen without timing them, so that one program is
# compiled alike each time; the memory as it is needed, as several workers share it. Tests of criteria that ask the
# loss go back to default precision: their scores must not need this.
GPU := XLA_FLAGS=--xla_gpu_autotune_level=0 XLA_PYTHON_CLIENT_PREALLOCATE=false TF_FORCE_GPU_ALLOW_GROWTH=true
FULL := JAX_DEFAULT_MATMUL_PRECISION=highest JAX_DISABLE_MOST_OPTIMIZATIONS=0
ON_GPU := -m "not once" $(ON_JAX)
test-gpu:
	$(MAKE) VENV=.venv-gpu run-on-gpu
run-on-gpu: install-gpu
	$(BIN)/python -c 'import jax; assert jax.default_backend() == "gpu", f"JAX sees {jax.devices()}"'
	$(GPU) $(FULL) KERAS_BACKEND=jax $(PYTEST) $(ON_GPU)

test-formats:
	$(MAKE) VENV=.venv-formats run-formats
FORMATS := tests/test_export_formats.py
run-formats: install-formats
	KERAS_BACKEND=tensorflow $(PYTEST) $(FORMATS)
	KERAS_BACKEND=jax $(PYTEST) $(FORMATS)
	KERAS_BACKEND=tensorflow $(PYTEST) tests/tf_keras/test_adopt_tf_keras.py

test-like-gpu: install-test
	PYTHONPATH=tests $(FULL) KERAS_BACKEND=jax $(PYTEST) -p like_a_gpu $(ON_GPU)

# libtpu compiles for TPUs on any machine; it is large, so it has an environment of its own.
test-tpu:
	$(MAKE) VENV=.venv-tpu compile-for-tpu

TPU_PYTEST = KPRUNE_TPU_ROWS=out/tpu.jsonl JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) --maxprocesses 2
compile-for-tpu: install-tpu
	@mkdir -p out && rm -f out/tpu.jsonl
	KERAS_BACKEND=jax $(TPU_PYTEST) tests/tpu/test_tpu_jax.py
	KERAS_BACKEND=tensorflow $(TPU_PYTEST) tests/tpu/test_tpu_tensorflow.py
	KERAS_BACKEND=tensorflow $(TPU_PYTEST) tests/tpu/test_tpu_tf_keras.py
	$(BIN)/python tests/tpu/tpu_table.py out/tpu.jsonl > out/tpu.md
	@cat out/tpu.md

# In a process of their own, as tfmot changes what `tf.keras` is.
test-tf-keras: install-test
	$(TF_KERAS)
TF_KERAS := KERAS_BACKEND=tensorflow $(PYTEST) -m "not slow" tests/tf_keras

# In a process of their own, as TensorFlow is given several CPU devices before it uses the first. A file per process, as
# the tests of a file share what they trace and the workers they start.
test-tf-distribute: install-test
	$(SOME_TF_DISTRIBUTE)
TF_DISTRIBUTE := KERAS_BACKEND=tensorflow $(BIN)/pytest -q -n 2 --dist loadfile --junitxml=out/tf_distribute.xml tests/tf_distribute
SOME_TF_DISTRIBUTE := $(TF_DISTRIBUTE) -m "not slow"

# Tests on several devices wait for processes more than they compute, so they run beside those of tf_keras.
test-tf-keras-and-devices: install-test
	@mkdir -p out
	$(JAX_DISTRIBUTION) >out/jax_distribution.txt 2>&1 & jax=$$!; \
		$(SOME_TF_DISTRIBUTE) >out/tf_distribute.txt 2>&1 & tf=$$!; \
		$(TF_KERAS); status=$$?; \
		wait $$jax || status=1; cat out/jax_distribution.txt; \
		wait $$tf || status=1; cat out/tf_distribute.txt; \
		exit $$status

test-slow: install-test
	KERAS_BACKEND=tensorflow $(PYTEST) -m slow tests $(APART:%=--ignore=tests/%)
	KERAS_BACKEND=jax $(PYTEST) -m "(slow or slow_on_jax) and not once" $(ON_JAX)

# What all tests on several devices have shown, as a table.
strategies: test-jax-distribution
	$(TF_DISTRIBUTE)
	$(BIN)/python tests/strategies_table.py out/jax_distribution.xml out/tf_distribute.xml

# The wheel is built from the sdist, so what the sdist lacks would be missed here. Each is then installed in a fresh
# environment, and the wheel in one more, without what it asks for, beside Keras and JAX: so it is on Colab's TPU runtime.
dist:
	rm -rf dist .venv-dist .venv-dist-*
	$(MAKE) VENV=.venv-dist .venv-dist/bin/python
	.venv-dist/bin/pip install -q --disable-pip-version-check -c $(CONSTRAINTS) build
	.venv-dist/bin/python -m build -q --outdir dist .
	@rm -rf build kprune.egg-info
	.venv-dist/bin/python tests/packaging/contents.py dist
	$(MAKE) try-dist VENV=.venv-dist-sdist FILE='dist/*.tar.gz'
	$(MAKE) try-dist VENV=.venv-dist-wheel FILE='dist/*.whl'
	$(MAKE) try-dist-jax VENV=.venv-dist-jax FILE='dist/*.whl'

try-dist: $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check -c $(CONSTRAINTS) $(FILE)
	KERAS_BACKEND=tensorflow $(BIN)/python -P tests/packaging/one_fit.py

try-dist-jax: $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check -c $(CONSTRAINTS) keras jax absl-py matplotlib rich tqdm
	$(BIN)/pip install -q --disable-pip-version-check --no-deps $(FILE)
	KERAS_BACKEND=jax $(BIN)/python -P tests/packaging/one_fit.py
	$(BIN)/pip install -q --disable-pip-version-check -c $(CONSTRAINTS) scikit-learn hypothesis
	KERAS_BACKEND=jax $(BIN)/python tests/without_tensorflow.py "$$(mktemp -d)"

# What kprune needs, once and again when that changes; then kprune itself, each time, so that no run sees stale code.
# Python compiles the modules that it imports; for pip to compile all of them takes half a minute.
# setuptools leaves `build` and `kprune.egg-info` behind, from where a deleted module would find its way into a wheel.
install-demo: $(VENV)/.stamp-demo
install-test: $(VENV)/.stamp-test
install-gpu: $(VENV)/.stamp-gpu
install-tpu: $(VENV)/.stamp-tpu
install-docs: $(VENV)/.stamp-docs
install-formats: $(VENV)/.stamp-formats
install-demo install-test install-gpu install-tpu install-docs install-formats:
	@rm -rf build kprune.egg-info
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	@rm -rf build kprune.egg-info

$(VENV)/.stamp-demo: EXTRAS := demo
$(VENV)/.stamp-test: EXTRAS := demo,jax,test
$(VENV)/.stamp-gpu: EXTRAS := demo,gpu,test
$(VENV)/.stamp-tpu: EXTRAS := demo,test,tpu
$(VENV)/.stamp-docs: EXTRAS := docs
$(VENV)/.stamp-formats: EXTRAS := demo,jax,litert,onnx,openvino,test
$(foreach kind,demo test gpu tpu docs formats,$(VENV)/.stamp-$(kind)): $(BIN)/python setup.cfg pyproject.toml $(CONSTRAINTS)
	$(BIN)/pip install -q --disable-pip-version-check --no-compile -c $(CONSTRAINTS) ".[$(EXTRAS)]"
	@touch $@

$(BIN)/python:
	@for python in $(PYTHON) python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
			echo "$$python -m venv $(VENV)  # $$($$python --version)"; \
			$$python -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); exit 1; \
		fi; \
	done; \
	echo "kprune needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is none (nor is there a python3.13, python3.12 or" \
		"python3.11). Say where one is: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1

clean:
	rm -rf .venv .venv-* build dist kprune.egg-info out .pytest_cache .mypy_cache .ruff_cache .hypothesis .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
