"""Which paths a command line's inputs stand for, and in which order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from apex_reward.errors import DataError, UsageError
from apex_reward.files.songs_inside import NoSong
from apex_reward.files.tables import write_table
from apex_reward.scoring import find_audio
from apex_reward.scoring.inputs import Input, find_songs, prompts_for


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    for name in ("b.wav", "a.MP3", "cover.jpg", "deep/er/c.flac", "deep/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(paths: list[str], folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in paths]


def test_a_folder_is_searched_recursively_for_audio_endings_in_order(songs: Path) -> None:
    assert names(find_audio([songs]), songs) == ["a.MP3", "b.wav", "deep/er/c.flac"]


def test_a_named_file_counts_whatever_its_ending_and_even_if_missing(songs: Path) -> None:
    given = [str(songs / "cover.jpg"), str(songs / "gone.wav")]
    assert find_audio(given) == given


def test_inputs_keep_their_order(songs: Path) -> None:
    assert names(find_audio([songs / "deep", songs / "a.MP3"]), songs) == [
        "deep/er/c.flac",
        "a.MP3",
    ]


def test_globs(songs: Path) -> None:
    assert names(find_audio([f"{songs}/*.[wW]av"]), songs) == ["b.wav"]
    assert names(find_audio([f"{songs}/**/*.flac"]), songs) == ["deep/er/c.flac"]
    assert names(find_audio([f"{songs}/d*"]), songs) == ["deep/er/c.flac"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(songs: Path) -> None:
    odd = songs / "take [2].wav"
    odd.touch()
    assert find_audio([odd]) == [str(odd)]


def test_text_list_relative_to_the_working_directory_or_to_itself(
    songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = songs / "list.txt"
    listing.write_text(f"\ufeffb.wav\r\n\n  {songs}/a.MP3  \nnowhere.wav\n", encoding="utf-8")
    assert find_audio([listing]) == [str(songs / "b.wav"), str(songs / "a.MP3"), "nowhere.wav"]
    monkeypatch.chdir(songs)
    assert find_audio(["list.txt"])[0] == "b.wav"


def test_jsonl_list_and_what_is_wrong_with_it(songs: Path) -> None:
    listing = songs / "list.jsonl"
    listing.write_text('{"audio": "b.wav", "prompt": "x"}\n\n{"audio": "b.wav"}\n')
    assert find_audio([listing]) == [str(songs / "b.wav")] * 2
    for content in (b"b.wav\n", b"\xff\xfe\x00"):
        listing.write_bytes(content)
        with pytest.raises(DataError, match="line 1 is not JSON"):
            find_audio([listing])


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_cell_without_a_path_is_one_failed_song(songs: Path, ending: str) -> None:
    cells: list[Any] = ["b.wav", None, "", "  ", 7, "a.MP3"]
    if ending == ".jsonl":
        cells += [True, ["b.wav"], {"a": 1}]
    write_table(songs / f"list{ending}", [{"n": n, "audio": c} for n, c in enumerate(cells)])
    if ending == ".jsonl":
        lines = [{"n": n, "audio": cell} for n, cell in enumerate(cells)] + [{"n": 9}]
        (songs / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = find_songs([songs / f"list{ending}"])
    assert [source.columns["n"] for source in found] == list(range(len(found)))
    paths = [str(source.path) for source in found]
    assert (paths[0], paths[4], paths[5]) == (str(songs / "b.wav"), "7", str(songs / "a.MP3"))
    reasons = {n: source.path.reason for n, source in enumerate(found)
               if isinstance(source.path, NoSong)}  # fmt: skip
    assert list(reasons) == [1, 2, 3, *range(6, len(found))]
    assert reasons[1] == "'audio' holds nothing; expected the path of a song"
    assert paths[1] == f"{songs}/list{ending}: row 2"
    if ending == ".jsonl":
        assert reasons[7] == """'audio' holds ["b.wav"]; expected the path of a song"""


def test_a_file_name_that_is_not_utf8_is_found_through_a_list(songs: Path) -> None:
    name = os.fsencode(songs) + b"/caf\xe9.wav"
    Path(os.fsdecode(name)).touch()
    (songs / "list.txt").write_bytes(b"caf\xe9.wav\n")
    (songs / "list.jsonl").write_bytes(b'{"audio": "caf\xe9.wav"}\n')
    for ending in ("txt", "jsonl"):
        assert find_audio([songs / f"list.{ending}"]) == [os.fsdecode(name)]


def test_prompts_and_lyrics_of_lists_and_of_a_table(songs: Path) -> None:
    (songs / "list.jsonl").write_text(
        '{"audio": "b.wav", "prompt": "slow", "lyrics": "woke up"}\n'
        '{"audio": "a.MP3", "prompt": [{"role": "user", "content": "fast"}]}\n'
        '{"audio": "gone.wav", "prompt": null}\n'
    )
    sources = find_songs([songs / "list.jsonl"])
    found = prompts_for(sources)
    assert [(str(p), p.lyrics) for p in found] == [("slow", "woke up"), ("fast", None), ("", None)]
    (songs / "prompts.csv").write_text("path,prompt,lyrics\nx/b.wav,new,\ngone.wav,,words\n")
    found = prompts_for(sources, songs / "prompts.csv")
    assert [(str(p), p.lyrics) for p in found] == [("new", None), ("fast", None), ("", "words")]
    # A file name that rows of two prompts share says nothing; a path does.
    rows = "path,prompt\nx/b.wav,new\ny/b.wav,other\nz/b.wav,\nx/gone.wav,one\ny/gone.wav,one\n"
    (songs / "prompts.csv").write_text(rows)
    assert prompts_for(sources, songs / "prompts.csv") == ["slow", "fast", "one"]
    covers = [Input("y/b.wav"), Input("./y/b.wav"), Input("z/b.wav")]
    assert prompts_for(covers, songs / "prompts.csv") == ["other", "", ""]
    with pytest.raises(DataError, match="no song has a prompt"):
        prompts_for(sources[2:])
    (songs / "prompts.csv").write_text("path,text\nb.wav,new\n")
    with pytest.raises(DataError, match="needs the columns 'audio' .* and 'prompt'"):
        prompts_for(sources, songs / "prompts.csv")


def test_nothing_found_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for given in ([], [tmp_path], [tmp_path / "notes.txt"]):
        with pytest.raises(UsageError, match="no audio found"):
            find_audio(given)


def test_an_unmatched_glob_fails_as_a_row_beside_others_and_as_usage_alone(songs: Path) -> None:
    pattern = f"{songs}/*.ogg"
    assert find_audio([songs / "b.wav", pattern]) == [str(songs / "b.wav"), pattern]
    with pytest.raises(UsageError, match="no audio found"):
        find_audio([pattern])


def test_links_to_folders_are_followed_once(songs: Path) -> None:
    (songs / "deep" / "back").symlink_to(songs)
    (songs / "again").symlink_to(songs / "deep" / "er")
    other = songs.parent / "other"
    other.mkdir()
    (other / "d.caf").touch()
    (other / "to songs").symlink_to(songs)
    (songs / "elsewhere").symlink_to(other)
    assert names(find_audio([songs]), songs) == [
        "a.MP3",
        "b.wav",
        "deep/er/c.flac",
        "elsewhere/d.caf",
    ]


def test_a_folder_named_like_a_song_counts_only_if_no_song_is_in_it(songs: Path) -> None:
    (songs / "empty.wav").mkdir()
    (songs / "best.of.mp3").mkdir()
    (songs / "best.of.mp3" / "z.wav").touch()
    assert names(find_audio([songs]), songs) == [
        "a.MP3",
        "b.wav",
        "best.of.mp3/z.wav",
        "deep/er/c.flac",
        "empty.wav",
    ]


def test_a_folder_that_cannot_be_listed_gets_its_row(
    songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(folder: str) -> object:
        if folder.endswith("deep"):
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(find_audio([songs]), songs) == ["a.MP3", "b.wav", "deep"]


def test_every_ending_that_can_be_read_and_no_side_files(tmp_path: Path) -> None:
    good = ["1.caf", "2.aifc", "3.rf64", "4.snd", "5.mp2", "6.W64", "7.opus"]
    for name in (*good, "._1.caf", "__MACOSX/1.wav", "__MACOSX/deep/._1.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(find_audio([tmp_path]), tmp_path) == good
    assert names(find_audio([f"{tmp_path}/**/*"]), tmp_path) == good
    named = str(tmp_path / "._1.caf")
    assert find_audio([named]) == [named]


def test_links_between_many_folders_list_each_song_once(tmp_path: Path) -> None:
    folders = [tmp_path / str(n) for n in range(6)]
    for folder in folders:
        folder.mkdir()
        (folder / "x.wav").touch()
        for other in folders:
            (folder / f"to {other.name}").symlink_to(other)
    assert names(find_audio([tmp_path]), tmp_path) == [f"{n}/x.wav" for n in range(6)]


def test_a_glob_lists_a_folder_only_where_it_does_not_list_its_songs(songs: Path) -> None:
    (songs / "deep2").mkdir()
    (songs / "deep2" / "z.wav").touch()
    assert names(find_audio([f"{songs}/**"]), songs) == [
        *("a.MP3", "b.wav", "cover.jpg", "deep/er/c.flac", "deep/notes.txt", "deep2/z.wav")
    ]


def test_what_a_shell_gives_for_a_star_beside_songs(songs: Path) -> None:
    (songs / "lyrics.txt").write_text("la la la\n" + "o" * 5000)
    (songs / "meta.jsonl").write_text('{"title": "x"}\n')
    (songs / "table.csv").write_text("title,year\nx,2001\n")
    (songs / "list.txt").write_text("deep/er/c.flac\n")
    given = sorted(songs.iterdir())
    with pytest.warns(UserWarning, match=r"left out: .*lyrics.txt, .*meta.jsonl, .*table.csv"):
        found = find_audio(given)
    assert names(found, songs) == [
        *("a.MP3", "b.wav", "cover.jpg", "deep/er/c.flac", "deep/er/c.flac")
    ]
    with pytest.raises(DataError, match="no column 'audio' or 'path'; it has title"):
        find_audio([songs / "meta.jsonl"])


def test_tables_keep_their_columns(songs: Path) -> None:
    rows = [{"path": "b.wav", "prompt": "x", "prompt_id": 1}, {"path": "gone.wav", "prompt": None}]
    for ending in (".jsonl", ".csv", ".parquet"):
        write_table(songs / f"list{ending}", rows)
        first, second = find_songs([songs / f"list{ending}"])
        assert (first.path, first.columns) == (
            str(songs / "b.wav"),
            {"prompt": "x", "prompt_id": 1},
        )
        assert (second.path, second.columns["prompt"]) == ("gone.wav", None)


def test_audio_goes_before_path_and_a_byte_order_mark_is_read(songs: Path) -> None:
    listing = songs / "list.jsonl"
    listing.write_text('\ufeff{"audio": "b.wav", "path": "y"}\n', encoding="utf-8")
    assert find_songs([listing]) == [Input(str(songs / "b.wav"), {"path": "y"})]
