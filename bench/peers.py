"""Other people's routers from the package index, each in a throwaway environment of its own, beside the gateway.

    python -m bench.peers vllm-router sglang-router litellm     # set up; `make bench-peers` does this and runs them

Environments live under `~/.cache/model-gateway-bench` (or BENCH_CACHE), one folder per exact version; delete
the folder to be rid of them. Each peer runs in its plainest form: one worker, no database; LiteLLM with its
master key, because it has no lighter way of serving strangers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.systems import Place, Recipe, SystemFailed
from tests.gateway_process import free_port

INSTALL_LIMIT_S = 900.0
LITELLM_KEY = "sk-bench-master-key"
LITELLM_CONFIG = """\
model_list:
  - model_name: bench
    litellm_params: {{model: openai/bench, api_base: "http://{upstream}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false}}
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A package at one version and how to run it."""

    requirement: str
    recipe: Callable[[Place, Path], Recipe]


def environment(name: str) -> Path:
    """The virtual environment of a peer, whether it is there or not."""
    cache = Path(os.environ.get("BENCH_CACHE") or Path.home() / ".cache" / "model-gateway-bench")
    return cache / f"{name}-{PEERS[name].requirement.rpartition('=')[2]}"


def install(name: str) -> Path:
    """Make the environment of a peer unless it is complete; returns it.

    Raises SystemFailed with the end of pip's output.
    """
    folder = environment(name)
    complete = folder / "complete"
    if complete.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {PEERS[name].requirement} into {folder}", file=sys.stderr)
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    _run(str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", PEERS[name].requirement)
    complete.touch()
    return folder


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SystemFailed(f"{' '.join(command[:3])} took longer than {INSTALL_LIMIT_S:.0f} s") from error
    if done.returncode:
        raise SystemFailed(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")


def peer_recipe(place: Place) -> Recipe:
    """The recipe of the peer that `place` is named after; it must have been installed.

    Raises SystemFailed if it was not.
    """
    folder = environment(place.name)
    if not (folder / "complete").exists():
        raise SystemFailed(f"{place.name} is not set up: run python -m bench.peers {place.name}")
    return PEERS[place.name].recipe(place, folder / "bin")


def _vllm_router(place: Place, binaries: Path) -> Recipe:
    return _rust_router(place, str(binaries / "vllm-router"))


def _sglang_router(place: Place, binaries: Path) -> Recipe:
    return _rust_router(place, str(binaries / "python"), "-m", "sglang_router.launch_router")


def _rust_router(place: Place, *command: str) -> Recipe:
    """Both routers share their command line. They parse the body, so bytes may change; the upstream's answer does not.

    As they come, but for room for this load's connections, a port of one's own for metrics, and the policy: vllm-router's default
    (cache_aware) sends every request upstream twice here, which voids the round.
    """
    options = ("--host", "127.0.0.1", "--port", str(place.port), "--worker-urls", f"http://{place.upstream}")
    needs = ("--max-concurrent-requests", "100000", "--policy", "round_robin", "--prometheus-port", str(free_port()))
    return Recipe(place.name, (*command, *options, *needs), place.port, ready_path="/readiness")


def _litellm(place: Place, binaries: Path) -> Recipe:
    config = place.folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(upstream=place.upstream, key=LITELLM_KEY))
    options = ("--config", str(config), "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1")
    return Recipe(
        place.name,
        (str(binaries / "litellm"), *options),
        place.port,
        key=LITELLM_KEY,
        ready_path="/health/readiness",
        strict=False,
        load_share=0.1,
        env={"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"},
    )


PEERS = {
    "vllm-router": Peer("vllm-router==0.1.17", _vllm_router),
    "sglang-router": Peer("sglang-router==0.3.2", _sglang_router),
    "litellm": Peer("litellm[proxy]==1.106.2", _litellm),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.peers", description="Install peers from the package index for comparison.")
    parser.add_argument("names", nargs="+", choices=sorted(PEERS))
    failed = False
    for name in parser.parse_args().names:
        try:
            print(install(name))
        except SystemFailed as error:  # the others can still be compared; the run then says that this one is missing
            failed = True
            print(f"{name} could not be installed: {error}", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
