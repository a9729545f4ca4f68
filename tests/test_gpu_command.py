"""The command that measures on a GPU, run on a CPU, and the section of the page that it fills."""

import json
import subprocess
import sys
import time
from pathlib import Path

from support.modules import module_at

ROOT = Path(__file__).parents[1]
COMMAND = ROOT / "benchmarks" / "gpu.py"
gpu = module_at(COMMAND)
gpu_page = module_at(ROOT / "benchmarks" / "gpu_page.py")


def test_every_part_runs_and_fills_its_table(tmp_path):
    options = ("--device", "cpu", "--tiny", "--until", "8", "--results", tmp_path)
    ended = subprocess.run([sys.executable, COMMAND, *options], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    files = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert files.keys() == gpu_page.TITLES.keys()
    for name, content in files.items():
        assert content["error"] is None, f"{name}: {content['error']}"
        assert content["rows"], name
        assert content["environment"]["device"] == "cpu"
    section = gpu_page.section(tmp_path)
    assert "Not measured" not in section
    assert all(f"| {row['variant']} |" in section for row in files["share"]["rows"])


def test_a_part_that_fails_or_takes_too_long_keeps_its_rows(tmp_path):
    class Setting:
        device, tiny = "cpu", True

    def failing(setting, record):
        record(what=1)
        raise ValueError("broken")

    def endless(setting, record):
        record(what=2)
        time.sleep(60)

    for part, limit in ((failing, 60), (endless, 1)):
        gpu.run(tmp_path / "share.json", part, Setting, limit)
        content = json.loads((tmp_path / "share.json").read_text())
        assert len(content["rows"]) == 1
        assert ("broken" if part is failing else "stopped after 1 s") in content["error"]
        assert "It did not end well" in gpu_page.section(tmp_path)


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs" / "performance.md").read_text()
    assert page.endswith(gpu_page.section(ROOT / "results" / "gpu"))
