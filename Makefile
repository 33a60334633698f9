# `make demo` and `make test` are all that a newcomer needs; both make .venv first.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
RUN    := runs/demo
DATA   := $(RUN)/data
HEIGHT := 192
WIDTH  := 384

.PHONY: demo view web test lint format clean

demo: $(VENV)/.installed
	$(PY) synthetic.py --output $(DATA) --height $(HEIGHT) --width $(WIDTH) --train 200 --val 40 --test 4 --seed 0
	env -u CITYSCAPES_RESULTS $(PY) train.py --data_path $(DATA) --crop_h $(HEIGHT) --crop_w $(WIDTH) --batch_size 4 \
	    --epochs 11 --optimizer adamw --lr 5e-3 --power 0.9 --ema 0.97 --lovasz_weight 1 --scales 0.75,1,1.25 \
	    --output_dir $(RUN) --overwrite
	$(PY) viewer.py --data_path $(DATA) --model_weight $(RUN)/$(HEIGHT)_$(WIDTH)_model.pth \
	    --input_pic val/samplestadt/samplestadt_000020_000019_leftImg8bit.png --output $(RUN)/result.png
	CITYSCAPES_DATASET=$(DATA) CITYSCAPES_RESULTS=$(RUN)/results CITYSCAPES_EXPORT_DIR=$(RUN) \
	    $(VENV)/bin/csEvalPixelLevelSemanticLabeling > $(RUN)/official.txt
	@grep "Score Average" $(RUN)/official.txt | sed '1s/^/official class    /;2s/^/official category /;s/ :/:/'
	@echo "data $(DATA)  weights $(RUN)/$(HEIGHT)_$(WIDTH)_model.pth  statistics $(RUN)/$(HEIGHT)_$(WIDTH)_statistics.csv"
	@echo "official evaluation $(RUN)/official.txt  picture $(RUN)/result.png"

view: $(VENV)/.installed
	$(PY) viewer.py --model_weight weights/street.pth --input_pic docs/street_input.jpg --output runs/view/result.png

web: $(VENV)/.installed-deploy
	@command -v npm > /dev/null || { echo "npm is missing, which gets the page's runtime: install Node.js"; exit 2; }
	rm -rf runs/web/package && mkdir -p runs/web
	cd runs/web && npm pack --silent $$(cd ../.. && $(PY) -c "from web.site import RUNTIME_PACKAGE as p; print(p)")
	tar -xzf runs/web/onnxruntime-web-*.tgz -C runs/web && rm runs/web/onnxruntime-web-*.tgz
	$(PY) deploy.py --model_weight weights/street.pth --format web --runtime runs/web/package --output runs/web/site

test: $(VENV)/.installed-dev
	$(PY) -m pytest -n auto --maxprocesses 4

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf runs .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-deploy: requirements-deploy.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-deploy.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed-deploy
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
