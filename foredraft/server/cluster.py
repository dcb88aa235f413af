"""Runs replicas with Ray Serve until the process receives SIGINT or SIGTERM."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from foredraft.errors import UserError
from foredraft.server import run
from foredraft.server.gateway import Gateway
from foredraft.server.replica import Replica
from foredraft.server.replicas import Replicas, threads_of
from foredraft.server.settings import ServerSettings

APPLICATION = "foredraft"
# Ray Serve's limit of requests in the gateway; the queues of the replicas refuse requests long before.
GATEWAY_REQUESTS = 100_000


def connect(address: str) -> None:
    """Connect to the cluster at `address`; "local" starts Ray here.

    UserError: no cluster answers, or Ray Serve runs there already.
    """
    here = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    own = {"include_dashboard": False} if address == "local" else {}
    # a plain connection fails at once; Ray would try for minutes
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False,
                 logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        reason = first_line(error).partition(". ")[0]
        raise UserError(f"--ray-address {address}: {reason}; give the address of a Ray cluster") from None
    if address != "local" and serve.status().proxies:
        ray.shutdown()
        raise UserError(f"--ray-address {address}: Ray Serve runs there already; end it with `serve shutdown`")


def failure() -> str | None:
    """The message of the error that kept a replica from starting."""
    found = serve.status().applications.get(APPLICATION)
    texts = [deployment.message for deployment in found.deployments.values()] if found is not None else []
    errors = re.findall(r"^[\w.]+Error: (.+)", "\n".join(texts), re.M)
    return errors[-1] if errors else None


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def application(loading: dict[str, Any], settings: ServerSettings, is_local: bool, replicas: Replicas,
                threads: int) -> serve.Application:
    """The gateway and the replicas as an application of Ray Serve."""
    scaling: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        scaling = {"autoscaling_config": {"min_replicas": replicas.least, "max_replicas": replicas.most,
                                          "target_ongoing_requests": settings.batch_size}}
    # environment variables hold for every thread of the replica's process
    names = ("FOREDRAFT_THREADS", *(f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS")))
    variables = dict.fromkeys(names, str(threads))
    engines = serve.deployment(
        Replica, name="replica", **scaling, ray_actor_options={
            "num_cpus": threads, "runtime_env": {"env_vars": variables}},
        # one batch runs and one waits in the replica; other requests wait in the gateway for the first free replica
        max_ongoing_requests=2 * settings.batch_size, max_queued_requests=settings.max_queue,
        graceful_shutdown_timeout_s=settings.shutdown_timeout, graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2, health_check_timeout_s=10, max_constructor_retry_count=1)
    gateway = serve.deployment(
        Gateway, name="gateway", num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=GATEWAY_REQUESTS,
        graceful_shutdown_wait_loop_s=0.5)
    return gateway.bind(engines.bind(loading, settings, threads), settings, is_local)


def serve_ray(loading: dict[str, Any], settings: ServerSettings, host: str, port: int, replicas: Replicas,
              threads: int | None, address: str | None, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; running requests then have `shutdown_timeout` seconds to finish.

    Parameters
    ----------
    loading : dict
        Arguments of `foredraft.load`, the same for every replica.
    settings : ServerSettings
    host, port : str, int
        Address of Ray Serve's HTTP proxies, one on every machine that has replicas.
    replicas : Replicas
    threads : int or None
        CPU threads of a replica; None divides the cluster's cores.
    address : str or None
        Of a Ray cluster; None is RAY_ADDRESS, or else Ray is started here.
    on_ready : callable
        Called with the server's URL when every replica is ready.

    Raises
    ------
    UserError
        The cluster cannot be used, or the replicas do not start.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    is_own = address == "local"
    if is_own:
        with run.bind(host, port) as found:
            port = found.getsockname()[1]
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    connect(address)
    try:
        cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        most = threads_of(cores, replicas.most)
        if is_own and most < (threads or 1):
            raise UserError(f"--replicas {replicas.most}: so many replicas of {threads or 1} threads do not fit on this "
                            f"machine's {sum(cores)} cores; give less")
        serve.start(http_options=HTTPOptions(host=host, port=port),
                    logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False))
        is_local = run.is_loopback(host)
        try:
            handle = serve.run(application(loading, settings, is_local, replicas, threads or max(most, 1)),
                               name=APPLICATION)
        except RuntimeError as error:
            raise UserError(f"the replicas did not start: {failure() or first_line(error)}") from None
        # until here a signal ends the start
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        on_ready(f"http://{'localhost' if is_local else host}:{port}/")
        stopped.wait()
        with suppress(TimeoutError, RayError):
            handle.drain.remote().result(timeout_s=settings.shutdown_timeout + 10)
    finally:
        serve.shutdown()
        ray.shutdown()
