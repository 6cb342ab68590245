import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from apex_reward.arena.agreement import evaluate_battles
from apex_reward.arena.battles import battles_of
from apex_reward.arena.calibration import COMPARED, calibrate, learning_curve
from apex_reward.arena.leaderboard import leaderboards
from apex_reward.arena.report import (
    CALIBRATED,
    calibration_parts,
    calibration_report,
    evaluation_report,
    leaderboard_report,
)
from tests.arena.rows import words_of
from tests.arena.simulate import simulate_battles

SYSTEMS = {"one": -1.0, "two": 0.0, "three <b>": 1.0}


class Balanced(HTMLParser):
    """Raises where a tag closes that is not the open one."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "input", "br", "hr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(path):
    """Self-contained, balanced, every plot valid XML; returns the text."""
    text = path.read_text()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert "{{" not in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "<script src" not in text
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    return text


def opposed():
    rows = simulate_battles(
        500, slopes={"s": -0.8, "t": 0.8}, strengths=SYSTEMS, prompts=150, undecided=0.1, seed=1
    )
    return battles_of(rows)


def test_evaluation_report_says_the_direction_and_what_was_dropped(tmp_path):
    result = evaluate_battles(opposed(), bootstrap=50)
    metrics = result
    evaluation_report(result, tmp_path)
    page = check_page(tmp_path / "report.html")
    markdown = (tmp_path / "report.md").read_text()
    for text in (page, markdown):
        assert "s points the wrong way" in text
        assert "t agrees with people" in text
        assert "missing score" in text
        assert "Calibrate it before use" in text
    accuracy = metrics["scores"]["s"]["overall"]["accuracy"]
    assert f"{accuracy:.3f}" in markdown
    assert "three &lt;b&gt;" in page
    assert "three <b>" not in page
    assert page.count("<figure") == 1 + 2 + 2  # a forest; per score reliability and systems
    assert f"| TIE | {metrics['dropped']['TIE']} |" in markdown


def test_the_battles_that_differ_most_are_listed_with_players(tmp_path):
    rows = [
        {"battle_uuid": f"u{n}", "preference": vote, "s_a": a, "s_b": 0.0, "audio_a": f"{n}.wav",
         "audio_b": "gone.wav", "prompt": f"P{n}"}
        for n, (vote, a) in enumerate([("A", 1.0), ("B", 3.0), ("A", -2.0), ("B", 0.5), ("A", 0.0)])
    ]  # fmt: skip
    (tmp_path / "1.wav").write_bytes(b"RIFF song")
    result = evaluate_battles(battles_of(rows), bootstrap=20)
    metrics = result
    worst = metrics["scores"]["s"]["overall"]["disagreements"]
    assert [row["battle_uuid"] for row in worst] == ["u1", "u2", "u3"]
    assert worst[0] == {
        **{"battle_uuid": "u1", "preference": "B", "score_a": 3.0, "score_b": 0.0},
        **{"audio_a": "1.wav", "audio_b": "gone.wav", "system_a": None, "system_b": None},
        "prompt": "p1",
    }
    evaluation_report(result, tmp_path / "out", tmp_path / "battles.csv")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<audio") == 1
    assert "UklGRiBzb25n" in page  # the song itself, in base64
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| s | u1 | 1.wav | gone.wav | 3.000 | 0.000 | B | p1 |" in text


def test_a_stratum_that_turns_round_is_warned_of():
    rows = simulate_battles(800, slopes={"s": 1.0}, seed=2, instrumental=0.8)
    for row in rows:
        if not row["is_instrumental"]:
            row["s_a"], row["s_b"] = -row["s_a"], -row["s_b"]
    found = words_of(evaluate_battles(battles_of(rows), bootstrap=100))
    assert any(
        tone == "warning" and "wrong way on vocal battles" in text and "overall it agrees" in text
        for tone, text in found
    )


def test_calibration_report_holds_the_verdict_and_the_curve(tmp_path):
    result, _, design = calibrate(opposed(), ["s"], bootstrap=50)
    curve = learning_curve(design, anchors=[0, 20], test_size=50, repeats=2)
    result["calibration"]["learning_curve"] = curve
    calibration_report(result, tmp_path)
    page = check_page(tmp_path / "report.html")
    assert result["calibration"]["verdict"] in (tmp_path / "report.md").read_text()
    assert "systems alone, without the score" in page
    assert "How many anchor votes?" in page


def test_the_card_of_a_calibration_counts_its_votes():
    result, head, _ = calibrate(opposed(), ["s"], bootstrap=50)
    data, measured = calibration_parts(result)
    counts = f"{result['n_decided']:,} decided votes of {result['n_battles']:,} battles"
    assert data.startswith(f"## Data\n\nIts mix `preference` was fitted to {counts}")
    assert f"| s | {head.weights['s']:.3f} |" in data
    assert "in 10 folds that keep each" in measured
    assert result["calibration"]["verdict"] in measured
    rows = [line.split(" | ")[0] for line in measured.splitlines() if line.startswith("| ")]
    assert rows[1:] == [f"| {CALIBRATED[name]}" for name in COMPARED]


def test_leaderboard_report_holds_the_rank_correlation(tmp_path):
    result = leaderboards(opposed(), ["t"], bootstrap=50)
    metrics = result
    leaderboard_report(result, tmp_path)
    page = check_page(tmp_path / "report.html")
    assert f"{metrics['scores']['t']['rank_correlation']:.3f}" in page
    assert "Arena scores from t" in page
