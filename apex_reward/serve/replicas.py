"""The server on Ray Serve: replicas of one application behind one address.

Every replica loads the reward by its names and batches what reaches it. Serve spreads the requests,
restarts a replica that dies, and lets one that is stopped answer first what it took on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apex_reward.rewards.reward import Reward
from apex_reward.rewards.saved import reward_of_values, reward_values
from apex_reward.scoring.engines import shared_out, start_ray
from apex_reward.serve.app import make_app
from apex_reward.serve.batching import OnBatch
from apex_reward.serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

NAME = "apex-reward"
STOP_SECONDS = 120.0  # that a stopped replica has to answer in
HEALTH_SECONDS = 2.0


def replica_values(
    reward: Reward, loading: Mapping[str, Any], settings: ServeSettings, replicas: int
) -> dict[str, Any]:
    """Everything that replicas are made from, JSON- and YAML-ready; `application` takes it.

    Args:
        reward: its models have names to load them by.
        loading: options of `load_reward_model` on the replicas.
        settings: paths in them are the same on every machine.
        replicas: how many.

    Raises:
        UsageError: a model or a guard that has no name to load it by; a mix that needs groups.
    """
    reward.check_single()
    return {
        "reward": reward_values(reward),
        "loading": {name: value for name, value in loading.items() if value is not None},
        "batch_segments": reward.batch_segments,
        "settings": settings.plain(),
        "replicas": replicas,
    }


def serve_config(values: Mapping[str, Any], host: str, port: int) -> str:
    """A config file for `serve deploy` and `serve run`."""
    import yaml

    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": "apex_reward.serve.replicas:application",
                "args": dict(values),
            }
        ],
    }
    return yaml.safe_dump(config, sort_keys=False)


def application(args: dict[str, Any]) -> Any:
    """The Serve application of `replica_values`; config files name this function."""
    from ray import serve

    def build() -> FastAPI:
        return replica_app(args)

    deployment: Any = serve.deployment(
        serve.ingress(build)(),
        name="reward",
        num_replicas=args["replicas"],
        # The application's own queue refuses with a sentence; Serve's is behind it.
        max_ongoing_requests=args["settings"]["max_queue"] + 8,
        graceful_shutdown_timeout_s=STOP_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=HEALTH_SECONDS,
        ray_actor_options=shared_out(args["replicas"], args["loading"].get("device")),
    )
    return deployment.bind()


def replica_app(args: Mapping[str, Any]) -> FastAPI:
    """The application inside one replica; its counts go to Ray's metrics too."""
    reward = reward_of_values(Reward, args["reward"], **args["loading"])
    reward.batch_segments = args["batch_segments"]
    return make_app(reward, ServeSettings(**args["settings"]), _counted())


def run_replicas(values: Mapping[str, Any], host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted is answered first."""
    start_ray()
    from ray import serve

    stop = threading.Event()
    serve.start(http_options={"host": host, "port": port})
    serve.run(application(dict(values)), name=NAME, route_prefix="/")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    serve.delete(NAME)  # ends when its replicas have answered
    serve.shutdown()


def _counted() -> OnBatch:
    """Counts batches in Ray's metrics, a series per replica."""
    from ray.util.metrics import Counter, Histogram

    songs = Counter("apex_reward_songs", "Songs answered.")
    failures = Counter("apex_reward_songs_failed", "Songs that could not be scored.")
    waits = Counter("apex_reward_wait_seconds", "Seconds that songs waited, in all.")
    sizes = Histogram(
        "apex_reward_batch_size", "Songs of a batch.", boundaries=[1, 2, 4, 8, 16, 32, 64, 128]
    )

    def count(size: int, failed: int, waited: float) -> None:
        sizes.observe(size)
        songs.inc(size)
        waits.inc(max(waited, 1e-9))  # Ray refuses an increase by nothing
        if failed:
            failures.inc(failed)

    return count
