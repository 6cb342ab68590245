"""The voting page in headless Chromium: keys are held back until both songs were heard."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time

import uvicorn
from fastapi.responses import HTMLResponse

from apex_reward.files.tables import read_jsonl
from apex_reward.listen.app import make_app
from apex_reward.listen.session import Session
from apex_reward.listen.sources import read_comparisons
from tests.listen.test_listen import songs

PROBE = """<script>(async () => {
  const until = async test => { while (!test()) await new Promise(go => setTimeout(go, 20)); };
  const key = name => document.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
  document.querySelector("#who button").click();
  await until(() => question);
  key("2");  // too early
  for (const player of players) { key(" "); await until(() => player.ended); }
  await until(ready);
  key("2");
})();</script>"""


def test_keys_vote_once_both_were_heard(tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "the page is tested in Chromium: install the package 'chromium'"
    output = tmp_path / "votes.jsonl"
    session = Session(read_comparisons(songs(tmp_path / "songs", 2)), output, min_seconds=0.5)
    app = make_app(session, "ann")
    page = next(route for route in app.routes if route.path == "/").endpoint().body.decode()
    app.get("/probed")(lambda: HTMLResponse(page.replace("</body>", PROBE + "</body>")))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-background-networking", "--enable-logging=stderr",
               "--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0",
               f"--user-data-dir={tmp_path / 'profile'}",
               f"http://127.0.0.1:{port}/probed"]  # fmt: skip
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log) as running:
        until = time.monotonic() + 40
        while not (output.exists() and output.read_text()) and time.monotonic() < until:
            time.sleep(0.1)
        running.terminate()
    server.should_exit = True
    thread.join()
    said = (tmp_path / "log").read_text()
    assert "CONSOLE" not in said
    (row,) = read_jsonl(output)
    assert (row["preference"], row["voter"]) == ("B", "ann")
    assert min(row["seconds_a"], row["seconds_b"]) >= 0.5
