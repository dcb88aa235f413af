"""`foredraft serve`: an HTTP server with OpenAI's and TGI's routes, and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli import options
from foredraft.errors import UserError


def serve(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="T5 checkpoint: folder or Hugging Face name. Default: the "
                                                           "embedded model.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    served_name: Annotated[
        str | None, typer.Option("--served-name", help="The model's name for clients. Default: MODEL, or its folder's name.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="FOREDRAFT_API_KEY", show_default=False,
                                 help="Bearer token that clients must send. Default: none.")] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Put before a chat's last message, such as 'summarize: '. Default: none.")] = "",
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    drafter: options.Drafter = "auto",
    draft_tokens: options.DraftTokens = None,
    batch_size: options.BatchSize = 16,
    num_beams: Annotated[
        int, typer.Option("--num-beams", help="Limit of a request's beams; each is a sequence of the batch.")] = 4,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Limit of a request's new tokens.")] = 512,
    max_source: options.MaxSource = None,
    kv_memory: options.KvMemory = None,
    max_queue: Annotated[int, typer.Option("--max-queue", help="Length of the queue; further texts get status 429.")] = 256,
    max_body: Annotated[int, typer.Option("--max-body", help="Limit of a request's body, in bytes.")] = 1_000_000,
    timeout: Annotated[float, typer.Option("--timeout", help="Limit of a request's seconds.")] = 300.0,
    shutdown_timeout: Annotated[
        float, typer.Option("--shutdown-timeout", help="Seconds to finish running requests at shutdown.")] = 30.0,
    dtype: options.Dtype = "float32",
    weights: options.Weights = None,
    threads: options.Threads = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run replicas with Ray Serve; --threads is the number of each.")] = False,
    replicas: Annotated[
        str | None, typer.Option("--replicas", help="With --ray: the number of replicas, or MIN:MAX for as many as the load "
                                                    "needs. Default: 1.")] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="With --ray: a Ray cluster's address, or auto. Default: RAY_ADDRESS, "
                                                       "or else Ray is started here.")] = None,
) -> None:
    """Serve a model over HTTP: OpenAI's and TGI's routes, metrics, and a page that shows the drafts."""
    import foredraft
    from foredraft.cli.output import announce_compilation, notice

    try:
        from foredraft.server import run
        from foredraft.server.app import create_app
        from foredraft.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("foredraft"):
            raise
        raise UserError(f"serve needs the package {error.name!r}: pip install 'foredraft[serve]'") from None

    # of a folder only its name: responses and logs hold no paths
    name = "foredraft" if model is None else Path(model).name if Path(model).is_dir() else model
    settings = ServerSettings(
        name=served_name or name, prefix=prefix, batch_size=batch_size, num_beams=num_beams, max_tokens=max_tokens,
        max_source=max_source, draft_tokens=None if draft_tokens is None else options.parse_draft_tokens(draft_tokens),
        kv_memory=None if kv_memory is None else int(kv_memory * 1e9), max_queue=max_queue, max_body=max_body,
        api_key=api_key, timeout=timeout, shutdown_timeout=shutdown_timeout)
    if not ray and (replicas is not None or ray_address is not None):
        raise UserError(f"{'--replicas' if replicas is not None else '--ray-address'} needs --ray; give it too")
    is_local = run.is_loopback(host)
    if not is_local and api_key is None:
        notice(f"anyone who reaches {host} may use this server; give --api-key to require a key")
    loading = dict(drafter=None if drafter == "none" else drafter, dtype=dtype, weights=weights, adapter=adapter,
                   revision=revision)
    if ray:
        from foredraft.server.replicas import Replicas

        count = Replicas.parse(replicas or "1")
        try:
            from foredraft.server.cluster import serve_ray
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("foredraft"):
                raise
            raise UserError("serve --ray needs Ray Serve: pip install 'foredraft[ray]'") from None
        folder = model is not None and Path(model).is_dir()
        serve_ray({"path": str(Path(model).resolve()) if folder else model, **loading}, settings, host, port,
                  count, threads, ray_address, lambda url: notice(f"{url} serves {settings.name}"))
        return
    listening = run.bind(host, port)
    announce_compilation()
    if threads is not None:
        from foredraft.engine.threads import set_threads

        set_threads(threads)
    loaded = foredraft.load(model, **loading)
    if dtype == "auto":
        notice(f"the encoder runs in {loaded.dtype}")
    app = create_app(loaded, settings, is_local)
    app.state.engine.warm_up()
    at = listening.getsockname()
    notice(f"http://{'localhost' if is_local else at[0]}:{at[1]}/ serves {settings.name}")
    run.serve(app, listening)
