"""MLflow: the server that ``MLFLOW_TRACKING_URI`` names, else files in ``mlruns/`` of the run folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densekit.engine.trackers.tracker import package
from densekit.errors import DensekitError


class Mlflow:
    """A run there."""

    def __init__(self, client: Any, run: str) -> None:
        self._client = client
        self.run = run

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add numbers at a step."""
        metric, now = package("mlflow.entities").Metric, int(1000 * time.time())
        metrics = [metric(name, value, now, step) for name, value in numbers.items()]
        with _explained():
            self._client.log_batch(self.run, metrics=metrics)

    def close(self) -> None:
        """Say that the run is over."""
        with _explained():
            self._client.set_terminated(self.run)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A server that does not answer is the user's to find: one line, and the run can go on from its last checkpoint."""
    try:
        yield
    except package("mlflow").MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        raise DensekitError(f"mlflow: {reason}; correct MLFLOW_TRACKING_URI, or go on without log.trackers") from None


def follow(folder: Path, run: str | None, config: dict[str, Any]) -> Mlflow:
    """Begin, or go on with ``run``; the experiment is ``MLFLOW_EXPERIMENT_NAME``, else ``densekit``."""
    mlflow = package("mlflow")
    own = (folder.resolve() / "mlruns").as_uri()
    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer ones want a data base, which needs a server
    client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
    with _explained():
        if run is not None:
            client.update_run(run, status="RUNNING")
            return Mlflow(client, run)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "densekit")
        known = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if known is None else known.experiment_id
        begun: str = client.create_run(experiment, run_name=folder.resolve().name).info.run_id
        client.log_dict(begun, config, "config.json")
    return Mlflow(client, begun)
