from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from apex_reward.cli import app
from apex_reward.cli.common import print_table, quick_imports, reports_errors
from apex_reward.errors import AudioError, UsageError

HEAVY = ("torch", "numpy", "transformers", "pyarrow", "matplotlib", "sklearn")


def test_the_command_line_starts_without_heavy_imports():
    code = f"import sys, apex_reward.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("raised", "code"), [(UsageError("bad option"), 2), (AudioError("bad song"), 1)]
)
def test_known_errors_become_one_message_and_an_exit_code(raised, code, capsys):
    def command() -> None:
        raise raised

    with pytest.raises(typer.Exit) as stop:
        reports_errors(command)()
    assert stop.value.exit_code == code
    assert capsys.readouterr().err == f"error: {raised}\n"


def test_an_interrupt_that_a_library_turned_into_an_error_is_an_interrupt(capsys):
    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise AudioError("cannot be read as a checkpoint") from None

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(typer.Exit) as stop:
            reports_errors(command)()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, usual)
    assert stop.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted; this run kept nothing new\n"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("arena score {} --audio-dir . --model apex-tiny --output {}", "battles.csv"),
        ("prepare {} --output .", "manifest.parquet"),
        ("pairs {} --axis musicality --output .", "pairs.jsonl"),
    ],
)
def test_an_output_never_replaces_an_input(command, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("as it was")
    result = CliRunner().invoke(app, command.format(name, name).split())
    assert result.exit_code == 2
    assert f"{name} is an input of this command" in result.stderr
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "as it was")]


@pytest.mark.parametrize("code", [0, 1, None])
def test_a_returned_code_is_the_exit_code(code):
    with pytest.raises(typer.Exit) as stop:
        reports_errors(lambda: code)()
    assert stop.value.exit_code == (code or 0)


def test_a_table_for_a_person(capsys):
    print_table("Title", ["name", "score"], [["a", 1.23456], ["b", None]])
    out = capsys.readouterr().out
    assert "Title" in out
    assert "1.235" in out
    assert "-" in out


def commands() -> list[list[str]]:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    arena = app.registered_groups[0].typer_instance.registered_commands
    return [[name] for name in names] + [["arena", part.callback.__name__] for part in arena]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_is_grouped_names_an_example_and_starts_with_one_sentence(words):
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines()]
    assert f"Example: apex-reward {' '.join(words)} " in result.output
    summary = lines[3]
    assert summary[0].isupper(), summary
    assert summary.endswith("."), summary
    assert "Options ─" in result.output


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_option_has_a_sentence(words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    lacking = [p.name for p in command.params if not getattr(p, "help", None)]
    assert lacking == []


def test_the_defaults_and_the_choices_of_shared_options_are_shown():
    output = CliRunner().invoke(app, ["score", "--help"], env={"COLUMNS": "120"}).output
    assert "What is rewarded ─" in output
    assert "How it runs ─" in output
    assert "<flag|penalty|veto>" in output
    assert "[default: float32]" in output
    assert "amaai-lab/apex" in output


def test_imports_are_not_collected_and_left_out_of_later_collections() -> None:
    before = gc.get_freeze_count()
    try:
        with quick_imports():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
