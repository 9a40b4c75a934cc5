# Every target makes what it needs. `make help` lists them.
#
#   PYTHON     the Python that .venv is made with: 3.11, which the pinned bpy wheel is for
#   WHEELS     for zip-full: a folder of downloaded wheels; without it pip downloads them
#   MACHINE    for zip-full: only these, such as windows-cp311
#   PIP_ARGS   passed on to pip, for instance to choose a CPU build of torch (README.md)

PYTHON   ?= $(shell command -v python3.11 || echo python3)
PIP_ARGS ?=
WHEELS   ?=
MACHINE  ?=
BLENDERS := 4.2.23 4.5.15 5.0.1
VENV     := .venv
RUN      := $(VENV)/bin/python
PIP      := -m pip install --disable-pip-version-check $(PIP_ARGS)

.DEFAULT_GOAL := help
# Make would delete the stamps of the pattern rule as intermediate files.
.PRECIOUS: .venv-bpy-%/ready
.PHONY: help demo test test-slow test-blenders test-window zip zip-full bench lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24
	@echo "  make test-blender-X     one of: $(BLENDERS)"

# An environment is ready when its stamp is newer than what it was made from. $(1): folder, $(2): constraints file.
define make_environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "The pinned bpy wheels are for Python 3.11, $(PYTHON) is another: install python3.11 and python3.11-venv, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1) || \
	  { rm -rf $(1); echo "$(PYTHON) cannot make an environment: install python3.11-venv"; exit 1; }
	@echo "Installing into $(1): Blender's Python module and PyTorch, some gigabytes and minutes the first time"
	$(1)/bin/python $(PIP) -c $(2) setuptools wheel
	$(1)/bin/python $(PIP) -c $(2) --no-build-isolation -e '.[bpy,dev]'
	@$(1)/bin/python tools/check_libraries.py
	@touch $(1)/ready
endef

$(VENV)/ready: constraints.txt pyproject.toml
	$(call make_environment,$(VENV),constraints.txt)

.venv-bpy-%/ready: constraints.txt pyproject.toml
	@mkdir -p build
	sed 's/^bpy==.*/bpy==$*/' constraints.txt > build/constraints-bpy-$*.txt
	$(call make_environment,.venv-bpy-$*,build/constraints-bpy-$*.txt)

demo: $(VENV)/ready ## rig the embedded example into demo/
	$(VENV)/bin/sprig demo

test: $(VENV)/ready ## the tests that belong to every change
	$(RUN) -m pytest

test-slow: $(VENV)/ready ## every real clip, and what needs CUDA where there is one
	$(RUN) -m pytest -m "slow or gpu"

# What touches Blender, with other versions of the bpy wheel. The pinned one is already in .venv.
test-blenders: $(BLENDERS:%=test-blender-%) ## the Blender tests in each supported bpy wheel
test-blender-4.5.15: $(VENV)/ready
	$(RUN) -m pytest tests/blender
test-blender-%: .venv-bpy-%/ready
	.venv-bpy-$*/bin/python -m pytest tests/blender

test-window: $(VENV)/ready ## the tests in the window of the Blender on the PATH, or named in BLENDER
	$(RUN) -m pytest -m window tests/window

zip: $(VENV)/ready ## the Blender extension, dist/sprig-VERSION.zip
	$(RUN) tools/build_zip.py dist

zip-full: $(VENV)/ready ## the extension with its libraries, one zip per system and Python
	$(RUN) tools/build_zip.py dist --full $(if $(WHEELS),--wheels '$(WHEELS)') $(MACHINE:%=--machine %)

bench: $(VENV)/ready ## tables: accuracy, speed, scaling, networks, time of every stage
	$(RUN) benchmarks/accuracy.py
	$(RUN) benchmarks/auto.py
	$(RUN) benchmarks/speed.py
	$(RUN) benchmarks/cold_start.py
	$(RUN) benchmarks/scaling.py
	$(RUN) benchmarks/networks.py
	$(RUN) -m pytest -q benchmarks/test_stages.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

lint: $(VENV)/ready ## ruff
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-bpy-* build dist demo *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +
