"""Run an application with uvicorn until the process receives SIGINT or SIGTERM."""

from __future__ import annotations

import ipaddress
import signal
import socket

import uvicorn
from fastapi import FastAPI

from foredraft.errors import UserError
from foredraft.server.logs import configure, log


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address, which only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket. UserError: the address is in use, or is not an address of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
        return found
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; give another address or port") from None


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; running requests then have `shutdown_timeout` seconds to finish."""
    configure()
    engine = app.state.engine
    settings = engine.settings
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, date_header=True, lifespan="on",
        timeout_graceful_shutdown=int(settings.shutdown_timeout) + 1, timeout_keep_alive=30, ws="none")
    at = listening.getsockname()
    log("serving", model=settings.name, address=f"{at[0]}:{at[1]}", drafter=engine.model.drafter.name)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises the signal again after its shutdown; the default handlers would exit with an error
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])
    log("stopped")
