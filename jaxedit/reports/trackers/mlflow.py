"""MLflow: a run on the tracking server, or in MLflow's own local store.

Its own settings hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the others.
"""

import os
import time
from collections.abc import Mapping

from jaxedit.files import flatten_keys
from jaxedit.reports.trackers._base import PROJECT, TrackedRun

PACKAGE = "mlflow"


class MlflowTracker:
    """A run of MLflow.

    Raises:
      ValueError: where the store cannot be used, or lacks the run that is to go on.
    """

    def __init__(self, run: TrackedRun):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            self.client = MlflowClient()
            self.run_id = run.run_id or self._begin(run)
            self.client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            raise ValueError(
                f"mlflow did not begin a run ({error}); MLFLOW_TRACKING_URI says where runs are"
            ) from error
        self.next_step = run.next_step

    def _begin(self, run: TrackedRun) -> str:
        """Make a run, in an experiment that is made where it is not there; return its id."""
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id if experiment else self.client.create_experiment(name)
        )
        run_id = self.client.create_run(experiment_id, run_name=run.name).info.run_id
        params = [Param(key, str(value)) for key, value in flatten_keys(run.config).items()]
        self.client.log_batch(run_id, params=params)
        return run_id

    def write_step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write one step's numbers.

        Raises:
          OSError: where the store does not take them.
        """
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, step) for name, value in numbers.items()]
        try:
            self.client.log_batch(self.run_id, metrics=metrics)
        except MlflowException as error:
            raise OSError(f"mlflow did not take the numbers of step {step} ({error})") from error

    def close(self, is_complete: bool) -> None:
        """End the run."""
        self.client.set_terminated(self.run_id, "FINISHED" if is_complete else "KILLED")


open_run = MlflowTracker
