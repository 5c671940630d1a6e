"""The examples of docs/guides/sdks.md run as they stand there, against our own servers instead of the services."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sdks.servers import SDKServer
from tests.sdks.test_sdks import mcp_server

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "sdks.md"
TEXT = PAGE.read_text(encoding="utf-8")
RECIPES = {
    re.split(r"\n", part, maxsplit=1)[0]: block
    for part in TEXT.split("\n## ")[1:]
    for block in re.findall(r"```python\n(.*?)```", part, re.DOTALL)
}
PRINTS = {"openai": "hello", "anthropic": "hello", "huggingface_hub": "org/model", "mcp": "3"}

pytest.importorskip("httpx2", reason="httpx2 needs Python 3.11")


def test_each_sdk_has_one_recipe() -> None:
    assert list(RECIPES) == list(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_a_recipe_prints_the_answer(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(name)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    with SDKServer() as server:
        code = RECIPES[name]
        for kind in ("openai.OpenAI(", "anthropic.Anthropic("):
            path = "/v1" if kind.startswith("openai") else ""
            code = code.replace(kind, f'{kind}api_key="key", base_url="{server.url}{path}", ')
        code = code.replace("HfApi()", f'HfApi(endpoint="{server.url}", token=False)')
        if name == "mcp":
            with mcp_server() as url:
                exec(code.replace("http://localhost:8000/mcp", url), {"__name__": "example"})
        else:
            exec(code, {"__name__": "example"})
        if name == "huggingface_hub":
            import httpx2
            import huggingface_hub

            huggingface_hub.set_client_factory(httpx2.Client)
        assert name == "mcp" or server.requests == 1
    assert capsys.readouterr().out.split() == [PRINTS[name]]
