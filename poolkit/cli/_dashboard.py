"""``poolkit dashboard``: a page, served by uvicorn, with the services of other processes."""

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
    """Serve until Ctrl-C; return 0.

    Raises ConfigError for an unusable target, token or address, PoolError if a target does not answer, MissingExtra
    without uvicorn.
    """
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra("poolkit dashboard needs uvicorn: pip install 'poolkit[dashboard]'") from None
    if token_file is not None and not actions:
        raise click.UsageError("--token-file needs --actions")
    token = _token(token_file) if actions else None
    source = attached(targets)
    if actions and any(remote.is_url for remote in source.remotes()):
        raise click.UsageError("--actions is for processes and sockets; for a URL use the actions of its own page")
    app = RemoteApp(source, token=token, allowed_hosts=[host, *allow_host])
    with bind_tcp(host, port) as bound:
        click.echo(f"serving the pools at {_url(bound)} (Ctrl-C stops it)", err=True)
        if token is not None and token_file is None:
            click.echo(f"token for actions: {token}", err=True)
        config = uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False, access_log=False,
                                timeout_graceful_shutdown=1)  # fmt: skip
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:  # the normal way to stop it
            pass
    return 0


def attached(targets: Sequence[str]) -> Everybody:
    """The services to show. Each named target has answered once; raises ConfigError or PoolError otherwise."""
    source = attach(targets)
    if not targets and not source.remotes():
        raise ConfigError(
            "no process of this user publishes its pools: call poolkit.dashboard.start() in a service, or give a URL",
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
