# Everything runs in .venv, which is made on first use. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
# What pip installs as torch; for example TORCH="torch --index-url <a CUDA or CPU index>".
TORCH ?= torch==2.13.0
# The ComfyUI that `make test-comfy` tests in: COMFYUI_PATH, else .comfyui (`make comfyui`), else the one around this pack.
COMFYUI_RELEASE ?= v0.3.64
HOST := $(or $(COMFYUI_PATH),$(patsubst %/comfyui_version.py,%,$(firstword $(wildcard $(addsuffix \
	/comfyui_version.py,.comfyui ../..)))))
# The Python of `make gpu`: PyTorch and Triton are enough for its first part, the rest needs requirements-dev.txt.
GPU_PYTHON ?= $(if $(wildcard .venv/ready),.venv/bin/python,$(PYTHON))
PROMPT ?=
SEED ?=

export PROMPT SEED

READY := .venv/ready
RUN := .venv/bin/python
OLDEST := .venv-oldest/ready
# One stamp per set of requirements, because COMFYUI_PATH may name another ComfyUI next time.
COMFY_READY = .venv-comfy/ready-$(shell cat "$(HOST)/requirements.txt" requirements*.txt 2>/dev/null | cksum | cut -d" " -f1)
PIP := -m pip install --quiet --disable-pip-version-check
ARL := $(RUN) training/arl_train.py --config training/configs/arl-demo.toml
PERCEPTION := $(patsubst %,tests/test_%.py,caption_gradient captioner grounded_sam grounding_dino_checkpoints \
	demo_judges label_embeddings language_models likelihood llm_faults loading logit_scorer perception ram_checkpoints \
	realign reward_models rewards sam_checkpoints scripts validator weight_files everyday_files bounds \
	precision text opening_pictures picture_files prompt_files region_values verdict key_forms saturated_images fingerprint)

.PHONY: demo refl-demo arl-demo table test test-comfy comfyui test-oldest style lint benchmark gpu demo-models demo-metrics clean

# See the method work on one prompt: first image, the regions found in it, re-aligned image → out/demo.
demo: $(READY)
	$(RUN) demo/run.py --out out/demo $(if $(PROMPT),--prompt "$$PROMPT") $(if $(SEED),--seed "$$SEED")

# Fine-tune the demo model with the caption reward (15 minutes on 2 CPU cores) and evaluate it on held-out prompts
# (6 minutes) → out/refl-demo/report.html, best.safetensors.
refl-demo: $(READY)
	$(RUN) training/refl_train.py --config training/configs/demo.toml \
		$(if $(SEED),--seed "$$SEED" --output "out/refl-demo-$$SEED")
	$(RUN) evaluation/coarse.py "out/refl-demo$(if $(SEED),-$$SEED)/best.safetensors"

# Fine-tune the demo model on the best of its own images, chosen in five ways (about 20 minutes each on a CPU core), and
# evaluate all five on held-out prompts → out/arl-demo/results.md.
arl-demo: $(READY)
	$(ARL) --output out/arl-random --reward caption --winner random
	$(ARL) --output out/arl-caption --reward caption
	$(ARL) --output out/arl-sam --reward sam
	$(ARL) --output out/arl-clip --reward clip
	$(ARL) --output out/arl-sum
	$(RUN) evaluation/evaluate.py --prompts demo --method base $(foreach way,random caption sam clip sum,\
		--method "$(way)=out/arl-$(way)/last.safetensors") --batch 8 --out out/arl-demo

# Evaluate re-alignment and fine-tuning on held-out prompts, with 95 % confidence intervals → out/table/results.md.
table: $(READY)
	$(RUN) evaluation/evaluate.py --prompts demo --method base --method "+ coarse=demo" --method fine --method both \
		--method fine-all --method redraw --batch 8 --out out/table

test: $(READY) style
	$(RUN) -m pytest --ignore tests/comfy
	@echo "The tests in ComfyUI were not run:" $(if $(HOST),"\`make test-comfy\` runs them in $(HOST).",\
		"run \`make comfyui && make test-comfy\`, or COMFYUI_PATH=<a checkout> make test-comfy.")

ifeq ($(HOST),)
test-comfy:
	@echo "There is no ComfyUI to test in: run \`make comfyui\`, or set COMFYUI_PATH to a checkout." >&2; exit 1
else
test-comfy: $(COMFY_READY)
	COMFYUI_PATH="$(HOST)" .venv-comfy/bin/python -m pytest tests/comfy
	@echo "The tests in ComfyUI were run in $(HOST)."
endif

# Clone the pinned release of ComfyUI to .comfyui.
comfyui: .comfyui/comfyui_version.py

# Tests of perception and language with the oldest versions that requirements.txt allows.
test-oldest: $(OLDEST)
	.venv-oldest/bin/python -m pytest $(PERCEPTION)

style: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Style and types. Types depend on the libraries' newest versions, so `make test` does without.
lint: style
	$(RUN) $(PIP) "pyright[nodejs]>=1.1.400"
	.venv/bin/pyright

# Write the texts that follow from the code: locales/en, the help pages' tables, the settings' pages and files.
.PHONY: docs
docs: $(READY)
	$(RUN) scripts/make_docs.py

# Time and memory of our attention, DenseDiffusion's, a naive implementation and plain attention: per call and, where
# COMFYUI_PATH names a ComfyUI (COMFYUI_PYTHON its Python), for whole sampling; then of a training step and of perception.
benchmark: $(READY)
	$(RUN) benchmarks/attention.py
	$(if $(COMFYUI_PATH),$(or $(COMFYUI_PYTHON),$(RUN)) benchmarks/sampling.py)
	$(RUN) benchmarks/refl.py
	$(RUN) benchmarks/perception.py --batch 1 4

# On a machine with an NVIDIA GPU, in under nine minutes: test the Triton kernel and whole sampling, measure time and
# memory → out/gpu/report.md. Without a GPU it exits with status 2. It installs no package.
gpu:
	$(GPU_PYTHON) benchmarks/gpu/suite.py

# Train all demo models again (demo/README.md says how long that takes) and evaluate them → demo/weights.
demo-models: $(READY)
	$(RUN) demo/train/all.py --out out/demo-models
	$(RUN) demo/train/pack.py --models out/demo-models

demo-metrics: $(READY)
	$(RUN) demo/metrics.py

$(READY): requirements.txt requirements-train.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(RUN) $(PIP) $(TORCH)
	$(RUN) $(PIP) -r requirements-dev.txt
	touch $@

$(OLDEST): requirements.txt requirements-train.txt requirements-dev.txt .ci/oldest.txt
	$(PYTHON) -m venv .venv-oldest
	# without triton, because an old torch needs an older one
	cat requirements-train.txt requirements-dev.txt | grep -vE '^(-r|triton)' > .venv-oldest/requirements-dev.txt
	.venv-oldest/bin/python $(PIP) -c .ci/oldest.txt -r requirements.txt -r .venv-oldest/requirements-dev.txt
	touch $@

ifneq ($(HOST),)
# ComfyUI needs torchvision to start. Where none fits this torch, tests/comfy/torch_stand_ins.py helps; it also replaces
# torchaudio. spandrel is left out because it would install another torch, and no test uses it.
$(COMFY_READY):
	$(PYTHON) -m venv --clear .venv-comfy
	grep -vE '^(torch|torchvision|torchaudio|spandrel)\b *([=<>~!].*)?$$' "$(HOST)/requirements.txt" > .venv-comfy/requirements.txt
	.venv-comfy/bin/python $(PIP) $(TORCH) torchvision || { .venv-comfy/bin/python $(PIP) $(TORCH) && \
		.venv-comfy/bin/python $(PIP) --no-deps torchvision; }
	.venv-comfy/bin/python $(PIP) -r .venv-comfy/requirements.txt -r requirements-dev.txt
	touch $@
endif

.comfyui/comfyui_version.py:
	@git clone --quiet --depth 1 --branch $(COMFYUI_RELEASE) https://github.com/comfyanonymous/ComfyUI .comfyui || { \
		echo "ComfyUI was not cloned: copy or link a checkout of $(COMFYUI_RELEASE) to .comfyui, or set COMFYUI_PATH to one." >&2; \
		exit 1; }

clean:
	rm -rf .venv .venv-oldest .venv-comfy out
