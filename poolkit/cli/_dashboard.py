"""``poolkit dashboard``: the page of services that run in other processes, on uvicorn."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

import click

from poolkit import ConfigError, MissingExtra
from poolkit.dashboard._asgi import RemoteApp
from poolkit.dashboard._remote import Everybody, attach
from poolkit.dashboard._server import bind_tcp

__all__ = ("attached", "run")


def run(
    targets: Sequence[str],
    *,
    host: str,
    port: int,
    allow_host: Sequence[str],
    actions: bool,
    token_file: str | None,
) -> int:
    """Serve until Ctrl-C; 0.

    Raises ConfigError for a target, token or address that cannot be used, PoolError if nothing is there to be shown,
    MissingExtra without uvicorn.
    """
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra("poolkit dashboard needs uvicorn: pip install 'poolkit[dashboard]'") from None
    if token_file is not None and not actions:
        raise click.UsageError("--token-file is for --actions, which are not enabled")
    token = _token(token_file) if actions else None
    source = attached(targets)
    if actions and any(remote.is_url for remote in source.remotes()):
        raise click.UsageError("--actions is for processes and sockets; a URL has a page with its own actions")
    app = RemoteApp(source, token=token, allowed_hosts=[host, *allow_host])
    with bind_tcp(host, port) as bound:
        click.echo(f"pools at {_url(bound)} (Ctrl-C ends it)", err=True)
        if token is not None and token_file is None:
            click.echo(f"token for actions: {token}", err=True)
        config = uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False, access_log=False,
                                timeout_graceful_shutdown=1)  # fmt: skip
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:  # which is how it ends
            pass
    return 0


def attached(targets: Sequence[str]) -> Everybody:
    """The services to be shown, each of which has answered. Raises ConfigError or PoolError if there is none."""
    source = attach(targets)
    if not targets and not source.remotes():
        raise ConfigError(
            "no process of this user shows its pools: call poolkit.dashboard.start() in a service, or name a URL",
            "target",
        )
    for remote in source.remotes() if targets else ():
        remote.state()
    return source


def _token(file: str | None) -> str:
    if file is None:
        return secrets.token_urlsafe(18)
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--token-file {file}: cannot be read: {error.strerror}", "token_file") from error


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
