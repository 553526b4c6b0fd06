# hadal: the targets that people type. `make help` lists them.
# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
JOBS ?= $(shell nproc)
TEXT ?=

.PHONY: help setup build quickstart test sanitize fuzz mutate peers parallel soak format tidy clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## install what is needed (Debian 12)
	@scripts/setup.sh

build: setup  ## build build/release/hadal
	@cmake --preset release >/dev/null
	@cmake --build --preset release -j $(JOBS) --target hadal

quickstart:  ## install, build, train a small DeepSeek-V3 on real text, generate; TEXT=FILE for your own
	@scripts/quickstart.sh $(if $(TEXT),--text "$(TEXT)")

test: setup  ## install, build and pass all tests
	@cmake --preset release >/dev/null
	@cmake --build --preset release -j $(JOBS)
	@ctest --preset release -j $(JOBS)

# Those under TSan: what runs on the thread pool, the engine, and the server with its clients.
TSAN_TARGETS = hadal unit_thread_pool_test unit_gemm_test model_invariance_test \
  model_decode_invariance_test serve_engine_test serve_scheduler_test serve_page_pool_test
sanitize: setup  ## all tests under ASan and UBSan, those with threads under TSan
	@cmake --preset debug >/dev/null
	@cmake --build --preset debug -j $(JOBS)
	@ctest --preset debug -j $(JOBS)
	@cmake --preset tsan >/dev/null
	@cmake --build --preset tsan -j $(JOBS) --target $(TSAN_TARGETS)
	@ctest --preset tsan -R 'ThreadPool|Invariance|Gemm|^serve\.|^server\.[a-z]' -j 1

SECONDS_EACH ?= 1200
fuzz:  ## libFuzzer on every reader of files and requests, SECONDS_EACH=1200 each
	@scripts/setup.sh --full
	@scripts/fuzz.sh $(SECONDS_EACH)

mutate: setup  ## remove single terms from backward code; every one must fail a test
	@python3 scripts/mutate.py

peers:  ## compare with Hugging Face's libraries and OpenAI's client (a Python environment under build/)
	@scripts/setup.sh --full
	@$(MAKE) --no-print-directory build
	@tests/peers/run.sh

parallel: build  ## every mesh and schedule of up to 8 ranks against one rank
	@cmake --build --preset release -j $(JOBS) --target parallel_check
	@scripts/parallel_check.sh --ranks 1,2,4,8

SECONDS_LONG ?= 900
soak: build  ## the server at twice its capacity with clients that leave, SECONDS_LONG=900
	@tests/server/soak.py $(SECONDS_LONG)

format:  ## format all sources
	@git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format -i

tidy:  ## clang-tidy over src
	@cmake --preset release >/dev/null
	@git ls-files 'src/*.cc' | xargs -P $(JOBS) -n 4 clang-tidy -p build/release --quiet

clean:  ## remove what was built
	@rm -rf build
