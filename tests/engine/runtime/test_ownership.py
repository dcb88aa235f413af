"""Streams of several threads, forks, failures and interrupts; test_threads.py is the stress test."""

import subprocess
import sys
import threading

import pytest

import foredraft
from foredraft.engine.runtime.requests import Request
from foredraft.errors import UserError

TEXTS = [f"w{5 + i} w9 w{30 + i} " * (1 + i % 5) for i in range(12)]
NEW = 8


@pytest.fixture
def model(tiny_model_path):
    model = foredraft.load(tiny_model_path, drafter="lookup")
    model.target.end_token = -1  # random weights end too early to see anything
    return model


def interleaved(model):
    """The tokens of a stream's second request, during which another call decodes."""
    requests = [Request(TEXTS[0], id=0, max_new_tokens=2), Request(TEXTS[4], id=1)]
    with model.stream(requests, max_new_tokens=NEW, batch_size=2, draft_tokens=0) as stream:
        assert next(stream).id == 0
        model.generate(TEXTS[5:9], max_new_tokens=2 * NEW)
        return next(stream).token_ids


def test_without_ownership_calls_disturb_each_other(model, monkeypatch):
    """test_threads.py can fail."""
    with pytest.raises(UserError, match="still running"):
        interleaved(model)
    monkeypatch.setattr(model.ownership, "acquire", lambda owner: None)
    monkeypatch.setattr(model.ownership, "release", lambda owner: None)
    # the other call has released the stream's source: its attention divides by zero
    with pytest.raises(ZeroDivisionError):
        interleaved(model)


def test_a_stream_may_be_closed_and_cancelled_by_another_thread(model):
    stream = model.stream([Request(text, id=index) for index, text in enumerate(TEXTS)], max_new_tokens=NEW, batch_size=1)
    next(stream)
    other = threading.Thread(target=lambda: (stream.cancel(5), stream.close()))
    other.start()
    other.join()
    assert list(stream) == [] or all(result.finish_reason == "cancelled" for result in stream)
    assert model.generate("w5", max_new_tokens=2).texts


def test_a_waiting_stream_can_be_closed(model):
    running, waiting = model.stream(TEXTS, max_new_tokens=NEW), model.stream(TEXTS, max_new_tokens=NEW)
    next(running)
    results = []
    other = threading.Thread(target=lambda: results.extend(waiting))
    other.start()
    waiting.close()
    running.close()
    other.join()
    assert results == []
    assert model.generate("w5", max_new_tokens=2).texts


class Interrupting:
    """A streamer that is interrupted at its n-th put."""

    def __init__(self, n):
        self.left, self.ended = n, False

    def put(self, _tokens):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def end(self):
        self.ended = True


def test_an_interrupted_call_ends_its_streamer_and_leaves_the_model_usable(model):
    right = model.generate(TEXTS[0], max_new_tokens=NEW).token_ids
    for n in (1, 2, 3):
        streamer = Interrupting(n)
        with pytest.raises(KeyboardInterrupt):
            model.generate(TEXTS[0], max_new_tokens=NEW, draft_tokens=0, streamer=streamer)
        assert streamer.ended
        assert model.generate(TEXTS[0], max_new_tokens=NEW).token_ids == right


def test_a_refused_call_ends_its_streamer(model):
    streamer = Interrupting(-1)
    with pytest.raises(UserError, match="is empty"):
        model.generate("", streamer=streamer)
    assert streamer.ended


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_fork_after_loading_is_refused_and_one_before_works(tiny_model_path):
    code = f"""
import os, foredraft
from foredraft.errors import UserError
def child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except UserError as error:
            os._exit(7 if "forked" in str(error) else 8)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def use():
    foredraft.load({str(tiny_model_path)!r}).generate("w5", max_new_tokens=2)
found = [child(use)]
model = foredraft.load({str(tiny_model_path)!r})
found += [child(lambda: model.generate("w5", max_new_tokens=2)), child(use)]
model.generate("w5", max_new_tokens=2)
print(found)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[0, 7, 7]", done.stderr
