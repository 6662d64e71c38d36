# make demo and make test do all the set-up they need; the second time they start at once.

VENV := .venv
# PYTHON=... wins; else the newest of these that can make an environment (a shim of pyenv may be there and not start)
ifdef PYTHON
ASKED := asked-python
endif
PYTHON ?= $(or $(firstword $(foreach name,python3.13 python3.12 python3.11,$(shell $(name) -c "import ensurepip" >/dev/null 2>&1 && echo $(name)))),python3.11)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEWEST := .venv-newest
EXTRAS := baselines,dicom,docs,export,publish,report,dev
DEMO := runs/demo
OWNER := OWNER

# torch.compile reads its own sources in the encoding of the locale
export PYTHONUTF8 := 1
export LUNA16_DATA ?= data/phantom
export LUNA16_STORE ?= data/store

.PHONY: demo demo-malignancy demo-detection phantom-baselines phantom-malignancy bench compare-networks test test-all test-newest asked-python notebooks check docs dist publish-check clean-demo setup

demo: $(READY)
	$(BIN)/luna16 demo --output $(DEMO)

# the second bundle: malignant against benign nodules, fine-tuned from the demo's network (which is made if need be)
demo-malignancy: $(READY)
	$(BIN)/luna16 demo --output $(DEMO) --malignancy $(DEMO)-malignancy

# the detector on the demo's scans, alone and with the demo's network behind it, beside a plain blob detector
demo-detection: $(READY)
	$(BIN)/luna16 demo --output $(DEMO) --detection $(DEMO)-detection

# 200 synthetic scans, 40 minutes in all: how hard the phantom is
phantom-baselines: $(READY)
	$(BIN)/luna16 demo --long --output runs/phantom-baselines

# the second bundle, trained on those 200 scans from that network; the weights it comes with are older
phantom-malignancy: $(READY)
	$(BIN)/luna16 demo --long --output runs/phantom-baselines --malignancy runs/phantom-malignancy

# ours against the naive way, MONAI's stock way and the machine's limit
bench: $(READY)
	$(BIN)/python -W ignore benchmarks/bench.py --output runs/bench.json

# as the table of docs/comparison.md, by the recipe: its network, ResNet10, DenseNet121 and boosted trees, for 12 minutes each
compare-networks: $(READY)
	$(BIN)/python -m luna16_monai phantom --output $(LUNA16_DATA) --scans 60
	$(BIN)/python -m luna16_monai prepare --data $(LUNA16_DATA) --store $(LUNA16_STORE)
	$(BIN)/python -W ignore benchmarks/networks.py --output runs/networks

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto

# with Ray, Optuna and MLflow, 600 MB that nothing else needs
test-all: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray,tune,mlflow]'
	$(BIN)/python -m pytest --numprocesses auto

# the tests with the newest releases that pyproject.toml admits, in an environment of its own; versions.txt names them
test-newest:
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[$(EXTRAS)]'
	$(NEWEST)/bin/python -m pip freeze --exclude-editable > $(NEWEST)/versions.txt
	grep -iE '^(torch|monai|pytorch-ignite|numpy|scipy|simpleitk|nibabel|blosc2|onnx|openvino)==' $(NEWEST)/versions.txt
	$(NEWEST)/bin/python -m pytest -m "not slow" --numprocesses auto

# the notebooks on the data of make demo, with what they show stored in them
notebooks: $(READY)
	LUNA16_DATA=$(abspath $(LUNA16_DATA)) LUNA16_STORE=$(abspath $(LUNA16_STORE)) LUNA16_RUNS=$(abspath runs) \
		$(BIN)/jupyter execute --inplace docs/notebooks/*.ipynb

check: $(READY) docs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# the pages of docs/ as a site in site/, built offline; a warning fails it. The variable silences advertising.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# wheel and source distribution in dist/, as they would be published
dist: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[release]'
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# the bundles as they must lie on Hugging Face, in dist/hub, OWNER=your name there; MONAI's own code downloads them from a stand-in and runs one
publish-check: $(READY)
	rm -rf dist/hub
	$(BIN)/python tools/publish.py --output dist/hub --owner $(OWNER)
	$(BIN)/python -m pytest -q tests/test_publish.py

clean-demo:
	rm -rf $(DEMO) $(DEMO)-malignancy $(DEMO)-detection

setup: $(READY)

$(READY): pyproject.toml constraints.txt | $(ASKED)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "make: $$($(BIN)/python --version) in $(VENV)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

# an environment keeps the Python that it was made with
asked-python:
	@test ! -x $(BIN)/python || test "$$($(PYTHON) --version)" = "$$($(BIN)/python --version)" || \
		{ echo "make: $(VENV) has $$($(BIN)/python --version), not $(PYTHON): remove $(VENV), or leave PYTHON out" >&2; exit 1; }
