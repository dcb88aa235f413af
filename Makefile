# Every target sets itself up in .venv from a bare clone.
PYTHON ?= python3
TORCH ?= torch==2.13.0
RUN = .venv/bin/python -m

.PHONY: demo test check bench clean

demo: .venv/.ready
	$(RUN) foredraft demo

test: .venv/.ready
	$(RUN) pytest -q -n 2

check: .venv/.ready
	$(RUN) ruff check .

# one thread, so that a run means something on a machine that others use too; foredraft bench compare A B tells two apart
bench: .venv/.ready
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(RUN) pytest -q bench --benchmark-enable --benchmark-min-rounds=20 --benchmark-autosave --benchmark-columns=median,iqr,rounds

# torch comes first and pinned: left to resolve on its own, the newest build for a GPU may be fetched instead
.venv/.ready: setup.py pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(RUN) pip install --quiet $(TORCH)
	$(RUN) pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .benchmarks
