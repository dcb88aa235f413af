"""The worker threads of this process, and `parallel`, by which compiled kernels divide their tasks among them.

The tasks are divided into ranges. Each thread, the calling one included, takes the next range when it is free. So a thread
whose core is busy with another process takes few ranges or none, and the others wait for at most one range of it. Threads
that wait spin for a moment and then sleep; the operating system may then move the delayed thread to their core.

A second kernel that starts meanwhile, in another thread of the process, runs all of its ranges itself.

numba's own `prange` divides the work evenly beforehand: one busy core delays every kernel by a time slice of the operating
system, and its threads do not survive a fork.
"""

from __future__ import annotations

import _thread
import atexit
import ctypes
import os
import threading
import time

from foredraft.kernels.core.atomic import (
    add_to_word,
    load_word,
    replace_word,
    sleep_while,
    spin,
    store_word,
    wake,
)
from foredraft.kernels.core.backend import HAS_NUMBA, intrinsic, njit
from foredraft.kernels.core.thread_count import available_threads

# Words of the shared memory, by byte; words that different threads write are in different cache lines.
# TICKET: number of the current kernel << TICKET_BITS | ranges that nobody has taken yet
TICKET, DONE, BUSY, SLEEPERS, WAKES, CALLER_SLEEPS, STOP = (128 * n for n in range(7))
# what the ranges of the current kernel are: function, its arguments, tasks, ranges, threads that may take part
ENTRY, ARGUMENTS, TASKS, RANGES, THREADS = (896 + 8 * n for n in range(5))
SIZE = 1024
TICKET_BITS = 20
LEFT = (1 << TICKET_BITS) - 1
# Ranges for each thread. With more of them, a thread that is interrupted within one delays the others less, but each needs
# two atomic operations.
RANGES_PER_THREAD = 4
# Spins before a thread sleeps: tens of microseconds, which is about what it costs to put it to sleep and to wake it.
SPINS = 1500
# Below this many multiply-adds one thread does all the work: to wake a second one takes longer.
THREAD_WORK = 500_000

NAME = "foredraft_workers"
# never freed: a thread may still look at it while the interpreter ends
_memory = ctypes.create_string_buffer(SIZE + 128)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_memory))
_address = -(-ctypes.addressof(_memory) // 128) * 128
if HAS_NUMBA:
    from llvmlite import binding

    binding.add_symbol(NAME, _address)

_lock = threading.Lock()
_number: int | None = None
_started = 0
_running = 0


@intrinsic
def _shared(typingctx):
    """The address of the shared memory. Compiled code that is kept on disk knows it by name."""
    from numba import types

    def codegen(_context, builder, _signature, _args):
        from llvmlite import ir
        from numba.core.cgutils import add_global_variable

        word = ir.IntType(64)
        found = builder.module.globals.get(NAME)
        if found is None:
            found = add_global_variable(builder.module, word, NAME)
        return builder.ptrtoint(found, word)

    return types.int64(), codegen


@intrinsic
def _address_of(typingctx, arguments):
    """The address of a copy of the arguments, which lives until the calling function returns."""
    from numba import types

    def codegen(_context, builder, _signature, args):
        from llvmlite import ir
        from numba.core import cgutils

        return builder.ptrtoint(cgutils.alloca_once_value(builder, args[0]), ir.IntType(64))

    return types.int64(arguments), codegen


@intrinsic
def _call(typingctx, entry, arguments, first, last):
    from numba import types

    def codegen(context, builder, _signature, args):
        from llvmlite import ir

        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@njit()
def _take(ticket):
    """Run the range that the ticket offers, unless another thread has taken it; returns whether it ran."""
    shared = _shared()
    entry, arguments = load_word(shared + ENTRY), load_word(shared + ARGUMENTS)
    tasks, ranges = load_word(shared + TASKS), load_word(shared + RANGES)
    # success means that this kernel still runs, so that what was read is its own
    if not replace_word(shared + TICKET, ticket, ticket - 1):
        return False
    number = ranges - (ticket & LEFT)
    _call(entry, arguments, tasks * number // ranges, tasks * (number + 1) // ranges)
    if add_to_word(shared + DONE, 1) + 1 == ranges and load_word(shared + CALLER_SLEEPS) != 0:
        wake(shared + DONE)
    return True


@njit()
def _run(entry, arguments, tasks, threads):
    """Divide the tasks among the threads, and return when all are done."""
    shared = _shared()
    if not replace_word(shared + BUSY, 0, 1):
        _call(entry, arguments, 0, tasks)
        return
    ranges = min(tasks, threads * RANGES_PER_THREAD, LEFT)
    store_word(shared + ENTRY, entry)
    store_word(shared + ARGUMENTS, arguments)
    store_word(shared + TASKS, tasks)
    store_word(shared + RANGES, ranges)
    store_word(shared + THREADS, threads)
    store_word(shared + DONE, 0)
    store_word(shared + TICKET, ((load_word(shared + TICKET) >> TICKET_BITS) + 1) << TICKET_BITS | ranges)
    if load_word(shared + SLEEPERS) > 0:
        add_to_word(shared + WAKES, 1)
        wake(shared + WAKES)
    ticket = load_word(shared + TICKET)
    while ticket & LEFT:
        _take(ticket)
        ticket = load_word(shared + TICKET)
    spins = 0
    done = load_word(shared + DONE)
    while done < ranges:
        if spins < SPINS:
            spins += 1
            spin()
        else:
            store_word(shared + CALLER_SLEEPS, 1)
            sleep_while(shared + DONE, done)
        done = load_word(shared + DONE)
    store_word(shared + CALLER_SLEEPS, 0)
    store_word(shared + BUSY, 0)


@njit()
def _work(index):
    """What the worker thread `index`, from 1, does until STOP."""
    shared = _shared()
    spins = 0
    while load_word(shared + STOP) == 0:
        ticket = load_word(shared + TICKET)
        if ticket & LEFT and index < load_word(shared + THREADS):
            _take(ticket)
            spins = 0
        elif spins < SPINS:
            spins += 1
            spin()
        else:
            wakes = load_word(shared + WAKES)
            add_to_word(shared + SLEEPERS, 1)
            if load_word(shared + STOP) == 0:
                ticket = load_word(shared + TICKET)
                if ticket & LEFT == 0 or index >= load_word(shared + THREADS):
                    sleep_while(shared + WAKES, wakes)
            add_to_word(shared + SLEEPERS, -1)
            spins = 0


def _make_entry_of(body):
    @intrinsic
    def entry_of(typingctx, arguments):
        """The address of a function (address of the arguments, first, last) that calls the body."""
        from numba import typeof, types

        kinds = (types.int64, types.int64, *(types.unliteral(kind) for kind in arguments))
        signature = typeof(body).get_call_type(typingctx, kinds, {})

        def codegen(context, builder, _signature, args):
            from llvmlite import ir
            from numba.core.cgutils import unpack_tuple

            compiled = body.get_compile_result(signature)
            context.add_linking_libs([compiled.library])
            word = ir.IntType(64)
            entry = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [word] * 3),
                                builder.module.get_unique_name(f"{NAME}_entry"))
            entry.linkage = "internal"
            inner = ir.IRBuilder(entry.append_basic_block())
            values = inner.load(inner.inttoptr(entry.args[0], args[0].type.as_pointer()))
            context.call_conv.call_function(
                inner, context.declare_function(builder.module, compiled.fndesc), compiled.fndesc.restype,
                compiled.fndesc.argtypes, [*entry.args[1:], *unpack_tuple(inner, values)])
            inner.ret_void()
            return builder.ptrtoint(entry, word)

        return types.int64(arguments), codegen

    return entry_of


def parallel(body):
    """Turn a compiled kernel body(first, last, *arguments), which runs tasks first..last-1, into one that is called as
    body(tasks, threads, *arguments) and runs tasks 0..tasks-1 by up to `threads` threads.

    The body returns nothing and raises nothing, and its results do not depend on how the tasks are divided.
    """
    entry_of = _make_entry_of(body)

    # not kept on disk by itself: the kernels that call it contain it
    @njit(cache=False)
    def divided(tasks, threads, *arguments):
        if threads == 1 or tasks < 2:
            body(0, tasks, *arguments)
        else:
            _run(entry_of(arguments), _address_of(arguments), tasks, threads)

    return divided


@njit()
def threads_for(work, threads):
    """The number of threads for a kernel of `work` multiply-adds: 1 or `threads`."""
    return 1 if work < THREAD_WORK else threads


def get_num_threads() -> int:
    """The number of threads that a kernel may use; starts the workers when they are first needed."""
    number = _number or available_threads()
    if HAS_NUMBA and number > _started + 1:
        _start(number - 1)
    return number


def set_num_threads(number: int) -> None:
    """Set the number of threads that a kernel of this process may use."""
    global _number
    _number = number


def _start(number: int) -> None:
    global _started
    # compiled, or read from disk, by the calling thread, so that no worker holds numba's lock
    _wake_all()
    _work.compile("void(int64)")
    with _lock:
        while _started < number:
            # unlike threading.Thread.start, this waits for nothing, so that an interrupt has no effect on it
            _thread.start_new_thread(_serve, (_started + 1,))
            _started += 1


def _serve(index: int) -> None:
    global _running
    with _lock:
        _running += 1
    _work(index)
    with _lock:
        _running -= 1


def _word_at(offset: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(_address + offset)


@atexit.register
def _stop() -> None:
    """Let the workers leave compiled code before the interpreter frees it."""
    _word_at(STOP).value = 1
    while _running:
        _wake_all()
        time.sleep(0.001)


@njit()
def _wake_all():
    add_to_word(_shared() + WAKES, 1)
    wake(_shared() + WAKES)


def _forget() -> None:
    """A fork copies only the thread that called it."""
    global _started, _running, _lock
    ctypes.memset(_address, 0, SIZE)
    _started = _running = 0
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
