"""Train a grid of heads by seeds from one cache, and print their table.

A grid is a list of rows, each a head with its arguments. Runs that are complete are left as they are and an interrupted
one goes on, so the command may be stopped and started again at will.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

Row = tuple[str, dict[str, object]]

GRIDS: dict[str, list[Row]] = {
    "demo": [
        ("audio_only", {}),
        ("visual_only", {}),
        ("concat", {}),
        ("recursive_joint_attention", {}),
    ],
    # Table 1 of the paper, from top to bottom.
    "ablation": [
        ("recursive_joint_attention", {"recursions": t, "unimodal_blstm": unimodal, "joint_blstm": joint})
        for t, unimodal, joint in (
            (1, False, False),
            (1, True, False),
            (1, True, True),
            (2, False, False),
            (2, True, True),
            (3, True, True),
            (4, True, True),
        )
    ],
}
AVFUSE = (sys.executable, "-m", "avfuse")


def main() -> int:
    """Train what is missing, then report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--cache", required=True, help="a feature store, or the folder that holds it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--amp", choices=("off", "bf16"), default="bf16")
    arguments, training_options = parser.parse_known_args()
    runs: list[str] = []
    for number, (head, head_options) in enumerate(GRIDS[arguments.grid], start=1):
        values = [f"{key}={str(value).lower()}" for key, value in head_options.items()]
        print(f"[{number}/{len(GRIDS[arguments.grid])}] {head} {' '.join(values)}", file=sys.stderr, flush=True)
        command = [*AVFUSE, "fuse-train", "--cache", arguments.cache, "--head", head, "--amp", arguments.amp, "--json"]
        command += [f"--head-option={value}" for value in values] + [f"--seed={seed}" for seed in arguments.seeds]
        done = subprocess.run([*command, *training_options], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return done.returncode
        runs += [str(Path(run["run"])) for run in json.loads(done.stdout)["runs"]]
    return subprocess.run([*AVFUSE, "report", *runs], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
