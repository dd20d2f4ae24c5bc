.PHONY: check test test-fast docs results

check:
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test:
	python -m pytest -q -n 2

test-fast:
	python -m pytest -q -n 2 -m "not slow and not browser"

docs:
	python tools/cli_reference.py
	mkdocs build

results:
	python -m benchmarks.cost.step_cost --pipeline
	python -m benchmarks.cost.schedule_cost
	python -m benchmarks.cost.import_time
	python -m benchmarks.cost.performance_table
