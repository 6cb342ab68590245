"""The tutorials run from top to bottom, offline, one after the other in one kernel."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
QUIET = "import os; os.chdir({folder!r}); import torch; torch.set_num_threads(1)"


@pytest.mark.slow
def test_every_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(FOLDER.parent.parent), *_path())))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # One kernel for all: importing torch and TRL takes longer than most of them.
    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel()
    try:
        for name in NOTEBOOKS:
            folder = tmp_path / name
            folder.mkdir()
            notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
            first = f"%reset -f\n{QUIET.format(folder=str(folder))}"
            notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
            client = NotebookClient(notebook, km=kernel, timeout=600)
            client.execute(reset_kc=True, cleanup_kc=False)
            shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
            if name in ("score_and_trust", "pairs_to_dpo", "train_your_own"):
                html = [o["data"]["text/html"] for o in shown if "text/html" in o.get("data", {})]
                assert any("<audio" in text for text in html), name
    finally:
        kernel.shutdown_kernel(now=True)


def test_tutorials_are_listed_and_hold_no_outputs() -> None:
    assert len(NOTEBOOKS) == 5
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    for name in NOTEBOOKS:
        assert f"({name}.ipynb)" in page
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells)


def _path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
