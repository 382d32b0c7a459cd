"""Write a run's parameters as safetensors with the names of the official PyTorch code.

    python -m fewshot.convert --workdir=RUN --out=model.safetensors

The best checkpoint by validation accuracy is taken, or that of `--step`. In PyTorch
`model.load_state_dict(safetensors.torch.load_file("model.safetensors"))` reads it into the official system. The way
back is `--config.init_from=FILE` of fewshot.main, for safetensors as for the official checkpoints.
"""

import argparse
import sys
from pathlib import Path

from absl import logging

from common import tool
from common.checkpoint import Checkpoints
from common.errors import UserError
from common.pretrained import save_safetensors
from fewshot.weights import to_official


def export(folder: Path, out: Path, step: int = -1) -> int:
    """Write the checkpoint of `step` (-1: the best) to `out`; the step that was taken. Raises UserError."""
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"--workdir is {str(folder)!r}, but there is no run in it; give the work directory of a run.")
    if out.suffix != ".safetensors":
        raise UserError(f"--out is {str(out)!r}, but must end in .safetensors.")
    tool.new_file(out)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        steps = checkpoints.steps()
        if step < 0:
            step = next(iter(checkpoints.best_steps(1)), -1)
        if step not in steps:
            asked = "no checkpoint that has been evaluated" if step < 0 else f"no checkpoint of step {step}"
            raise UserError(f"{folder} holds {asked}; its steps: {', '.join(map(str, steps)) or 'none'} (--step).")
        state = checkpoints.restore_as_saved(step)
    finally:
        checkpoints.close()
    arrays = to_official(state["params"], state.get("model_state"))
    save_safetensors(out, arrays, {"format": "pt", "step": str(step)})
    return step


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fewshot.convert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="work directory of a run")
    parser.add_argument("--out", required=True, type=Path, help="file to write; an existing one is never overwritten")
    parser.add_argument("--step", type=int, default=-1, help="step of the checkpoint; default: the best by validation")
    given = parser.parse_args()
    logging.set_verbosity(logging.ERROR)  # Orbax warns when it only reads
    try:
        step = export(given.workdir, given.out, given.step)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"Step {step} of {given.workdir} written to {given.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
