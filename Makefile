# Every target installs what it needs; a fresh Debian with rustup, git, make
# and python3 needs nothing else typed.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo

# The Chinese GLM vocabulary comes in a wheel; without it its tests say so.
SAT_VERSION := 0.4.12
TOKENIZERS := target/tokenizers

# ONNX Runtime comes from its wheel; without it the tests that need it say so.
ORT_VERSION := 1.32.0
ORT_DIR := target/onnxruntime
ORT_LIB = $(abspath $(ORT_DIR)/libonnxruntime.so.$(ORT_VERSION))

# What `make run` serves.
MODEL ?= models/glm-mini

# What checks exported models from outside; rebuilt when its requirements change.
PYTHON_ENV := target/python
PYTHON_STAMP = $(PYTHON_ENV)/$(shell cat tests/python/requirements*.txt | sha256sum | cut -c1-16)

.PHONY: help run test eval test-providers bench faults small-box test-own-kernel sanitize test-cross test-home-assistant cargo-deb package-build deb test-deb bundle lint check-units clean onnxruntime tokenizers mosquitto train train-env train-data train-smoke python-env python-tests

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s:

lint: check-units ## rustfmt, clippy, rustdoc, the dependency policy and the units
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --locked --workspace --lib --no-deps
	@if command -v cargo-deny >/dev/null; then \
	  cargo deny --locked check licenses bans sources || exit 1; \
	else echo "cargo-deny is not installed: dependency policy not checked."; fi

check-units: ## Let systemd check its units
	@systemd/check

run: onnxruntime $(if $(MQTT),mosquitto) ## Build, start glmd with the bundled model, ask it, and leave it running (MQTT=1 with a broker, RUN_ONCE=1 to end then)
	@if test -f $(ORT_LIB); then export ORT_DYLIB_PATH=$(ORT_LIB); \
	else echo "Running on tract, which needs no libonnxruntime."; fi; \
	$(CARGO) build --locked -p glmd -p glmctl; \
	exec tests/first_run.sh target/debug $(MODEL)

eval: onnxruntime ## Measure the bundled model on its held-out sets (ARGS="--json", "--limit 100")
	@if test -f $(ORT_LIB); then export ORT_DYLIB_PATH=$(ORT_LIB); fi; \
	$(CARGO) build --locked --release --workspace --bin glmctl && \
	exec target/release/glmctl eval $(MODEL) $(ARGS)

onnxruntime: ## Fetch libonnxruntime from its wheel into target/
	@test -f $(ORT_LIB) || { \
	  rm -rf $(ORT_DIR).part && mkdir -p $(ORT_DIR).part && \
	  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	    -d $(ORT_DIR).part onnxruntime==$(ORT_VERSION) && \
	  python3 -m zipfile -e $(ORT_DIR).part/onnxruntime-*.whl $(ORT_DIR).part && \
	  mkdir -p $(ORT_DIR) && \
	  mv $(ORT_DIR).part/onnxruntime/capi/libonnxruntime.so.$(ORT_VERSION) $(ORT_LIB) && \
	  rm -rf $(ORT_DIR).part; \
	} || echo "libonnxruntime $(ORT_VERSION) could not be fetched: its tests are skipped."

tokenizers: ## Fetch released tokenizer files from a wheel into target/
	@test -f $(TOKENIZERS)/cog-pretrain.model || { \
	  rm -rf $(TOKENIZERS).part && mkdir -p $(TOKENIZERS).part && \
	  python3 -m pip download --quiet --disable-pip-version-check --no-deps \
	    -d $(TOKENIZERS).part SwissArmyTransformer==$(SAT_VERSION) && \
	  python3 -m zipfile -e $(TOKENIZERS).part/SwissArmyTransformer-*.whl $(TOKENIZERS).part && \
	  mkdir -p $(TOKENIZERS) && \
	  find $(TOKENIZERS).part -path '*/embed_assets/*' -type f -exec cp {} $(TOKENIZERS)/ \; && \
	  test -f $(TOKENIZERS)/cog-pretrain.model && rm -rf $(TOKENIZERS).part; \
	} || echo "SwissArmyTransformer $(SAT_VERSION) could not be fetched: tests of its tokenizer files are skipped."

# Qualcomm's plug-in of ONNX Runtime; its x86 library emulates the NPU. It is fetched for this test only.
QNN_VERSION := 2.7.0
QNN_DIR := target/qnn-$(QNN_VERSION)

test-providers: onnxruntime ## Try an execution provider on its emulator, with the bundled model too (fetches 96 MB, takes minutes)
	@test -f $(QNN_DIR)/libQnnHtp.so || { \
	  rm -rf $(QNN_DIR).part && mkdir -p $(QNN_DIR).part $(QNN_DIR) && \
	  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	    -d $(QNN_DIR).part onnxruntime-qnn==$(QNN_VERSION) && \
	  python3 -m zipfile -e $(QNN_DIR).part/onnxruntime_qnn-*.whl $(QNN_DIR).part && \
	  cp $(QNN_DIR).part/onnxruntime_qnn.libs/*.so* $(QNN_DIR)/ 2>/dev/null || true; \
	  cp $(QNN_DIR).part/onnxruntime_qnn/*.so $(QNN_DIR)/ && rm -rf $(QNN_DIR).part; \
	} || echo "onnxruntime-qnn $(QNN_VERSION) could not be fetched: its tests are skipped."
	ORT_DYLIB_PATH=$(ORT_LIB) GLMD_QNN_DIR=$(abspath $(QNN_DIR)) \
	  $(CARGO) test --locked --workspace --test providers -- --nocapture

mosquitto: ## Install the broker that MQTT is tested with
	@test -x /usr/sbin/mosquitto || { test "$$(id -u)" = 0 && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends mosquitto mosquitto-clients >/dev/null; \
	} || echo "mosquitto is not installed and cannot be: tests with a real broker are skipped."

python-env: ## Set up the Python that checks exported models from outside
	@test -f $(PYTHON_STAMP) || { \
	  rm -rf $(PYTHON_ENV) && python3 -m venv $(PYTHON_ENV) && \
	  $(PYTHON_ENV)/bin/pip install --quiet --disable-pip-version-check --only-binary=:all: \
	    -r tests/python/requirements.txt && { \
	    $(PYTHON_ENV)/bin/pip install --quiet --disable-pip-version-check --only-binary=:all: \
	      -r tests/python/requirements-genai.txt || \
	    echo "onnxruntime-genai has no wheel for this machine: its tests are skipped."; \
	  } && touch $(PYTHON_STAMP); \
	} || echo "The packages of tests/python could not be installed: its tests are skipped."

python-tests: python-env ## Run exported fixtures in onnxruntime and onnxruntime-genai
	@# Built as `make test` builds it: other selections of packages give dependencies other features.
	@if test -f $(PYTHON_STAMP); then \
	  $(CARGO) test --locked --workspace --test export --no-run && cd tests/python && \
	  timeout 300 $(abspath $(PYTHON_ENV))/bin/python -m unittest; \
	fi

test: onnxruntime tokenizers python-env mosquitto ## Every fast test
	@if test -f $(ORT_LIB); then export ORT_DYLIB_PATH=$(ORT_LIB); fi; \
	$(CARGO) test --locked --workspace
	$(MAKE) --no-print-directory python-tests

test-home-assistant: onnxruntime mosquitto ## Let Home Assistant find glmd over MQTT, ask it and press its buttons (in a Debian of its own, 1.5 GB)
	@if test -f $(ORT_LIB); then export ORT_DYLIB_PATH=$(ORT_LIB); fi; \
	$(CARGO) test --locked --workspace --test mqtt --no-run && tests/home_assistant/run target/debug/glmd $(MODEL)

bench: onnxruntime mosquitto ## What kernels, scheduler, export and daemon cost, what clients feel, and whether memory stays flat
	$(CARGO) bench --locked --workspace --bench kernels
	$(CARGO) bench --locked --workspace --bench scheduler
	$(CARGO) bench --locked --workspace --bench soak
	$(CARGO) bench --locked --workspace --bench export
	$(CARGO) bench --locked --workspace --bench overhead
	$(CARGO) bench --locked --workspace --bench mqtt
	@if test -f $(ORT_LIB); then export ORT_DYLIB_PATH=$(ORT_LIB); fi; \
	$(CARGO) bench --locked --workspace --bench serving

# AddressSanitizer comes with nightly compilers only. It keeps freed memory for
# a while, 256 MiB by default, which a test that watches memory takes for a leak.
NIGHTLY ?= nightly
SANITIZED = $(shell rustc -vV | sed -n 's/^host: //p')

sanitize: ## Kernels, caches and threads under AddressSanitizer, then 100,000 random steps on the caches
	@if rustup toolchain list | grep -q '^$(NIGHTLY)' || rustup toolchain install $(NIGHTLY) --profile minimal; then \
	  ASAN_OPTIONS=quarantine_size_mb=1:thread_local_quarantine_size_kb=64 \
	  RUSTFLAGS=-Zsanitizer=address $(CARGO) +$(NIGHTLY) test --locked -p glm-kernels --target $(SANITIZED) \
	    --target-dir target/sanitize --test pool --test team --test attention --test matmul; \
	else echo "There is no nightly compiler: AddressSanitizer was not used."; fi
	$(CARGO) test --locked -p glm-kernels --test pool -- --ignored

faults: onnxruntime mosquitto ## The engine beside a hog under a hard memory limit, ten times; MQTT with a broker and a daemon that die; a box of 128 MiB
	$(CARGO) test --locked --workspace --test faults -- --runs $(or $(RUNS),10)
	@if test -f $(ORT_LIB); then export ORT_DYLIB_PATH=$(ORT_LIB); fi; \
	$(CARGO) test --locked --workspace --test mqtt_faults -- --prompts 2000 --clients 50 --rounds 5 --cut 30 --messages 1000000 --hours 168
	$(CARGO) build --locked -p glmd -p glmctl
	@if test -f $(ORT_LIB); then \
	  ORT_DYLIB_PATH=$(ORT_LIB) GLMD_MODEL__BACKEND=ort-paged tests/small_box.sh target/debug $(MODEL) 128; \
	fi; \
	GLMD_MODEL__BACKEND=tract-paged tests/small_box.sh target/debug $(MODEL) 128

# Random weights in the shape of a released model: speed and memory depend on nothing else.
EDGE := target/glm-edge-1.5b-int4

$(EDGE)/glm.json:
	GLMD_BENCH_LAYERS=28 GLMD_BENCH_ROWS=59264 GLMD_BENCH_OUT=$(abspath $(EDGE)) \
	  $(CARGO) bench --locked --workspace --bench export

small-box: onnxruntime $(EDGE)/glm.json ## Start-up, memory and speed on one processor: the bundled model in 128 MiB, GLM-Edge-1.5B in 2 GiB
	$(CARGO) build --locked --release --workspace --bin glmd --bin glmctl
	@if test -f $(ORT_LIB); then \
	  export ORT_DYLIB_PATH=$(ORT_LIB) GLMD_MODEL__BACKEND=ort-paged; \
	  tests/small_box.sh target/release $(MODEL) 128; tests/small_box.sh target/release $(EDGE) 2048; \
	fi
	GLMD_MODEL__BACKEND=tract-paged tests/small_box.sh target/release $(MODEL) 128
	GLMD_MODEL__BACKEND=tract-paged tests/small_box.sh target/release $(EDGE) 2048

test-own-kernel: ## glmd on control groups of version 2, beside a program that takes the memory, in an emulated PC
	$(CARGO) build --locked --release --workspace --bin glmd --bin glmctl
	tests/own_kernel.sh target/release $(MODEL)

# CROSS=kernels leaves out what takes longer than a few minutes, PROFILE=dev does not optimise.
test-cross: ## Under emulation: kernels on four ARM cores, glmd and glmctl with the bundled model
	@if cross/setup aarch64; then PROFILE=$(PROFILE) cross/test $(CROSS); \
	else echo "What builds for ARM could not be installed: nothing was tested."; fi

# What packages are made of: PROFILE=dist is smallest and takes longest; ARCH=aarch64 or armv7 for boards.
PROFILE ?= release
ARCH ?= native
DEB_ARCH = $(if $(filter aarch64,$(ARCH)),arm64,$(if $(filter armv7,$(ARCH)),armhf,$(shell dpkg --print-architecture)))
CARGO_DEB_VERSION := 3.8.0

cargo-deb:
	@cargo deb --version >/dev/null 2>&1 || \
	  $(CARGO) install --quiet --debug --locked --no-default-features cargo-deb@$(CARGO_DEB_VERSION)

# PROFILE=dev is for tests of the packages: it takes the programs that `make test` built, and builds nothing twice.
package-build:
ifeq ($(ARCH)-$(PROFILE),native-dev)
	$(CARGO) test --locked --workspace --no-run
else ifeq ($(ARCH),native)
	$(CARGO) build --locked --profile $(PROFILE) -p glmd -p glmctl
else
	cross/setup $(ARCH)
	cross/cargo $(ARCH) build --locked --profile $(PROFILE) -p glmd -p glmctl
endif

deb: cargo-deb package-build ## Debian packages in target/packages (ARCH=aarch64|armv7, PROFILE=dist)
	@packaging/build deb $(ARCH) $(PROFILE)

test-deb: deb ## Check, install, ask and purge the packages in a fresh Debian, and boot one with them
	@packaging/test $(DEB_ARCH)
	@if test $(ARCH) = native; then packaging/boot $(DEB_ARCH); fi

bundle: onnxruntime package-build ## A tar with glmd, glmctl, libonnxruntime and the bundled model, for boxes without packages
	@packaging/build bundle $(ARCH) $(PROFILE)

TRAIN := models/train
TRAIN_PYTHON := $(TRAIN)/.venv/bin/python

train-env: ## Make the trainer's own Python environment
	@test -x $(TRAIN_PYTHON) || python3 -m venv $(TRAIN)/.venv
	@$(TRAIN)/.venv/bin/pip install --quiet --disable-pip-version-check -r $(TRAIN)/requirements.txt

train-data: train-env ## Download the text of the bundled model and build its corpus
	$(TRAIN_PYTHON) $(TRAIN)/fetch.py
	$(TRAIN_PYTHON) $(TRAIN)/data.py

train: train-data ## Train the bundled model (hours); goes on where it stopped
	GOMP_SPINCOUNT=0 OMP_WAIT_POLICY=PASSIVE \
	  $(TRAIN_PYTHON) $(TRAIN)/train.py --run $(TRAIN)/work/runs/main --steps $(or $(STEPS),4000)

train-smoke: train-env ## Check the trainer in a minute: the loss falls, resuming is exact, an export is the network
	$(CARGO) build --locked -p glmctl
	$(TRAIN_PYTHON) $(TRAIN)/smoke.py

clean: ## Remove what was built
	$(CARGO) clean
