# Every target sets itself up in .venv from a bare clone.
PYTHON ?= python3
TORCH ?= torch==2.13.0
RUN = .venv/bin/python -m
# each process starts with tests of other kernels, so that few are compiled twice
PYTEST = $(RUN) pytest -q -n 2 --dist worksteal

.PHONY: demo test test-all check bench docs serve axe clean

demo: .venv/.ready
	$(RUN) foredraft demo

# every room and every law once, at small size
test: .venv/.ready
	$(PYTEST) -m "not slow and not full"

# everything but minutes-long single tests; tests on real articles where FOREDRAFT_DATA names them
TESTS ?= not slow
test-all: .venv/.ready .venv/triton-3.6.0 check
	$(PYTEST) -rs -m "$(TESTS)"

# the triton of the GPU machine, beside the environment's own; a test compiles for both, and skips this one if it is missing
.venv/triton-3.6.0: | .venv/.ready
	-$(RUN) pip install --quiet --no-deps --target $@ triton==3.6.0

check: .venv/.ready
	$(RUN) ruff check .
	.venv/bin/codespell
	$(RUN) mypy

# one thread, so that a run means something on a machine that others use too; foredraft bench compare A B tells two apart
bench: .venv/.ready
	OMP_NUM_THREADS=1 FOREDRAFT_THREADS=1 $(RUN) pytest -q bench --benchmark-enable --benchmark-min-rounds=20 --benchmark-autosave --benchmark-columns=median,iqr,rounds

# the embedded model on http://localhost:8000/; drafts of a fixed length, so that the page always shows some
serve: .venv/.ready
	$(RUN) foredraft serve --drafter lookup+ngram --draft-tokens 5

# the checker of the page's accessibility; without it that test is skipped
axe:
	npm install --prefix .venv/axe --no-save axe-core

docs: .venv/.docs
	$(RUN) mkdocs build --strict

# torch comes first and pinned: left to resolve on its own, the newest build for a GPU may be fetched instead
.venv/.ready: setup.py pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(RUN) pip install --quiet $(TORCH)
	$(RUN) pip install --quiet -e '.[dev]'
	touch $@

.venv/.docs: .venv/.ready
	$(RUN) pip install --quiet -e '.[docs]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
