"""The demo as a user runs it, learning for minutes."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_demo_learns_to_act_and_to_see(tmp_path):
    run = tmp_path / "demo"
    demo = subprocess.run(["make", "demo", f"RUN={run}"], cwd=ROOT, check=True, capture_output=True, text=True)
    record = json.loads((run / "evaluation.json").read_text())
    assert len(record["returns"]) == 10
    assert record["random_mean_return"] < -900
    assert record["mean_return"] >= -300
    assert record["psnr"] >= 25
    assert record["psnr"] >= record["mean_frame_psnr"] + 5
    assert f"trained policy {record['mean_return']:.1f}" in demo.stdout
    for name in ("curve.csv", "curve.png", "reconstructions.png", "checkpoint/state.json", "evaluation.mp4"):
        assert (run / name).exists() or (run / name).with_suffix(".gif").exists(), name

    again = subprocess.run(["make", "demo", f"RUN={run}"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads((run / "evaluation.json").read_text()) == record
    assert "trained policy" in again.stdout
