"""Several processes of one machine that create a pseudo-dataset, and its progress bar."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import threading
import time
from pathlib import Path

from tqdm import tqdm

from foredraft.engine.threads import set_threads
from foredraft.errors import UserError
from foredraft.kernels.core.thread_count import available_threads
from foredraft.train.data import pseudo


class ProgressBar:
    """Summaries done, remaining time and tokens a second, on stderr."""

    def __init__(self, total: int, done: int, show: bool):
        self.bar = tqdm(total=total, initial=done, desc="summaries", unit="", disable=not show, smoothing=0.05)
        self.tokens, self.began = 0, time.perf_counter()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_exc) -> None:
        self.bar.close()

    def add(self, summaries: int, tokens: int) -> None:
        """Count finished summaries and tokens."""
        self.tokens += tokens
        self.bar.set_postfix_str(f"{self.tokens / (time.perf_counter() - self.began):,.0f} tokens/s", refresh=False)
        self.bar.update(summaries)


def run_processes(data: str | Path, out: Path, config: pseudo.PseudoConfig, engine: pseudo.EngineConfig, shards: int,
                  workers: int, on_done: pseudo.OnDone) -> None:
    """Write all shards with `workers` processes; the others take over the shards of a process that ends early."""
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    arguments = (str(data), str(out), config, engine, shards, workers, reports)
    running = [context.Process(target=_process, args=arguments, daemon=True) for _ in range(workers)]
    for process in running:
        process.start()
    message = None
    try:
        while any(process.is_alive() for process in running) or not reports.empty():
            try:
                report = reports.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(report, str):
                message = report
            else:
                on_done(*report)
    finally:
        for process in running:
            process.terminate()
            process.join()
    if message is not None:
        raise UserError(message)
    if missing := pseudo.missing_shards(out, config, shards):
        raise UserError(f"{out}: all workers were killed and {len(missing)} shards are missing; run the same command again")


def _process(data: str, out: str, config: pseudo.PseudoConfig, engine: pseudo.EngineConfig, shards: int, workers: int,
             reports) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_threads(max(1, available_threads() // workers))
    try:
        pseudo.work(data, Path(out), config, engine, shards, lambda *report: reports.put(report))
    except UserError as error:
        reports.put(str(error))


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
