# Everything runs from its own .venv, made on first use. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
# What pip is asked for; e.g. TORCH="torch --index-url <your CUDA or CPU index>".
TORCH ?= torch==2.13.0
# The Python of `make gpu`: any that has PyTorch, Triton and, but for its first part, the rest of requirements-dev.txt.
GPU_PYTHON ?= $(if $(wildcard .venv/ready),.venv/bin/python,$(PYTHON))
PROMPT ?=
SEED ?=

export PROMPT SEED

READY := .venv/ready
RUN := .venv/bin/python
OLDEST := .venv-oldest/ready
ARL := $(RUN) training/arl_train.py --config training/configs/arl-demo.toml
PERCEPTION := $(patsubst %,tests/test_%.py,caption_gradient captioner grounded_sam grounding_dino_checkpoints \
	demo_judges label_embeddings language_models likelihood llm_faults loading logit_scorer perception ram_checkpoints \
	realign reward_models rewards sam_checkpoints scripts validator weight_files everyday_files bounds \
	precision text opening_pictures picture_files prompt_files region_values verdict key_forms saturated_images fingerprint)

.PHONY: demo refl-demo arl-demo table test test-oldest lint benchmark gpu demo-models demo-metrics clean

# See the method work: one prompt, its coarse image, what is seen in it, the re-aligned image → out/demo.
demo: $(READY)
	$(RUN) demo/run.py --out out/demo $(if $(PROMPT),--prompt "$$PROMPT") $(if $(SEED),--seed "$$SEED")

# Fine-tune the demo model with the caption reward (15 minutes on 2 CPU cores) and measure it on held-out prompts (6)
# → out/refl-demo/report.html, best.safetensors.
refl-demo: $(READY)
	$(RUN) training/refl_train.py --config training/configs/demo.toml \
		$(if $(SEED),--seed "$$SEED" --output "out/refl-demo-$$SEED")
	$(RUN) evaluation/coarse.py "out/refl-demo$(if $(SEED),-$$SEED)/best.safetensors"

# Fine-tune the demo model on the best of its own images, chosen in five ways (some 20 minutes each on a CPU core), and measure
# them on held-out prompts → out/arl-demo/results.md.
arl-demo: $(READY)
	$(ARL) --output out/arl-random --reward caption --winner random
	$(ARL) --output out/arl-caption --reward caption
	$(ARL) --output out/arl-sam --reward sam
	$(ARL) --output out/arl-clip --reward clip
	$(ARL) --output out/arl-sum
	$(RUN) evaluation/evaluate.py --prompts demo --method base $(foreach way,random caption sam clip sum,\
		--method "$(way)=out/arl-$(way)/last.safetensors") --batch 8 --out out/arl-demo

# The measured effect on held-out prompts, with 95 % confidence intervals → out/table/results.md.
table: $(READY)
	$(RUN) evaluation/evaluate.py --prompts demo --method base --method "+ coarse=demo" --method fine --method both \
		--method fine-all --method redraw --batch 8 --out out/table

test: $(READY) lint
	$(RUN) -m pytest

# What looks and reads, with the oldest versions that requirements.txt allows.
test-oldest: $(OLDEST)
	.venv-oldest/bin/python -m pytest $(PERCEPTION)

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Write the texts that follow from the code: locales/en, the help pages' tables, the settings' pages and files.
.PHONY: docs
docs: $(READY)
	$(RUN) scripts/make_docs.py

# Ours, DenseDiffusion's, the obvious implementation and plain attention, side by side: a call, and with COMFYUI_PATH (in
# its Python, COMFYUI_PYTHON) whole sampling; a training step; what looking costs.
benchmark: $(READY)
	$(RUN) benchmarks/attention.py
	$(if $(COMFYUI_PATH),$(or $(COMFYUI_PYTHON),$(RUN)) benchmarks/sampling.py)
	$(RUN) benchmarks/refl.py
	$(RUN) benchmarks/perception.py --batch 1 4

# On a machine with an NVIDIA GPU, in less than nine minutes: is the Triton kernel right, are whole samplings, and what
# does everything cost → out/gpu/report.md. Without a GPU it says so (status 2). No package is installed for it.
gpu:
	$(GPU_PYTHON) benchmarks/gpu/suite.py

# Train all demo models again (core-minutes: demo/README.md) and measure them → demo/weights.
demo-models: $(READY)
	$(RUN) demo/train/all.py --out out/demo-models
	$(RUN) demo/train/pack.py --models out/demo-models

demo-metrics: $(READY)
	$(RUN) demo/metrics.py

$(READY): requirements.txt requirements-train.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $(READY)

$(OLDEST): requirements.txt requirements-train.txt requirements-dev.txt .ci/oldest.txt
	$(PYTHON) -m venv .venv-oldest
	# without triton, of which an old torch wants its own
	cat requirements-train.txt requirements-dev.txt | grep -vE '^(-r|triton)' > .venv-oldest/requirements-dev.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .ci/oldest.txt \
		-r requirements.txt -r .venv-oldest/requirements-dev.txt
	touch $(OLDEST)

clean:
	rm -rf .venv .venv-oldest out
