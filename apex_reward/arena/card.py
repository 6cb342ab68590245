"""What the card of a model with a calibrated preference says of the votes and the figures."""

from __future__ import annotations

from apex_reward.arena.records import FIGURE_COLUMNS, figure_cells
from apex_reward.arena.report import CALIBRATED
from apex_reward.arena.results import CalibrationResult
from apex_reward.report.markdown import markdown_table


def calibration_parts(metrics: CalibrationResult) -> list[str]:
    """Parts of `model_card` from the metrics of `arena calibrate`."""
    part = metrics.calibration
    rows = [
        [CALIBRATED[name], *figure_cells(strata.overall)]
        for name, strata in part.compared().items()
    ]
    slopes = [[name, value] for name, value in part.slope.items()]
    data = (
        f"## Data\n\nIts mix `preference` was fitted to {metrics.n_decided:,} decided votes of "
        f"{metrics.n_battles:,} battles between songs.\n\n"
        + markdown_table(("head", "log-odds per point"), slopes)
    )
    measured = (
        f"## Measured\n\nOn held-out votes, in {part.folds} folds that keep each "
        f"{part.grouped_by} together. {part.verdict}\n\n"
        + markdown_table(("what", *FIGURE_COLUMNS), rows)
    )
    return [data, measured]
