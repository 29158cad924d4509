"""`python -m raypipe.checkpoint import|export|push`: checkpoints of other programs, and the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from raypipe import cli, config
from raypipe.checkpoint.export import export_file
from raypipe.checkpoint.folder import Meta
from raypipe.checkpoint.hub import SCHEME, push
from raypipe.checkpoint.reconstruction import open_training_shards, show
from raypipe.checkpoint.reference import import_file
from raypipe.common import terminal
from raypipe.common.errors import UserError

PROG = "raypipe.checkpoint"


def make_parser() -> argparse.ArgumentParser:
    """The parser of the commands `import`, `export` and `push`."""
    root = cli.Parser(
        prog=PROG,
        description="Convert checkpoints of the reference code, latent diffusion and diffusers to model folders and "
        "back. Nothing in a file is run. Push predictors to the Hugging Face Hub.",
    )
    commands = root.add_subparsers(dest="command", required=True)
    to_folder = commands.add_parser(
        "import", help="convert a checkpoint file to a model folder", prog=f"{root.prog} import"
    )
    to_folder.add_argument(
        "file",
        help="checkpoint file of a component or autoencoder (.pth, .ckpt, .safetensors), or a diffusers folder of an "
        "autoencoder",
    )
    to_folder.add_argument(
        "--out",
        required=True,
        help="model folder to create; other networks in the file are stored in folders inside it, unless a folder "
        "next to it already contains them",
    )
    to_folder.add_argument(
        "--num-heads",
        type=int,
        default=8,
        help="number of attention heads, which cannot be inferred from the file (default: 8)",
    )
    to_folder.add_argument(
        "--component",
        choices=config.REFERENCE_COMPONENTS,
        help="component in the file (default: diffusion if the file also contains a flow; else inferred from the "
        "numbers of channels: denoiser or flow)",
    )
    to_folder.add_argument(
        "--prefix",
        help="prefix of the tensors to import, if the file contains several networks, such as `ema.` (default: the "
        "first network that is no moving average)",
    )
    to_folder.add_argument(
        "--dataset",
        metavar="SHARDS",
        help="folder that raypipe.convert_to_h5 wrote: the autoencoder reconstructs 64 of its training frames; the "
        "PSNR is printed and stored, and decides whether its input is in [-1, 1] or [0, 1]",
    )
    to_file = commands.add_parser(
        "export", help="convert a model folder to a checkpoint file", prog=f"{root.prog} export"
    )
    to_file.add_argument("folder", help="model folder that training or `import` wrote")
    to_file.add_argument(
        "--out", required=True, help="file to write; the diffusers folder to write, if the autoencoder has that format"
    )
    _add_push(commands, f"{root.prog} push")
    return root


def _add_push(commands: Any, prog: str) -> None:
    to_hub = commands.add_parser("push", help="upload a predictor to the Hugging Face Hub", prog=prog)
    to_hub.add_argument("folder", type=Path, help="best/ of an experiment, with its model card (README.md)")
    to_hub.add_argument(
        "repository",
        metavar="USER/NAME",
        help="model repository, which is created if there is none; the token is HF_TOKEN, or that of `hf auth login`",
    )
    to_hub.add_argument("--private", action="store_true", help="make the repository private, if it is a new one")


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns exit code 0, or 2 after a UserError or OSError, printed as one line on stderr."""
    arguments = make_parser().parse_args(argv)
    try:
        if arguments.command == "export":
            export_file(arguments.folder, arguments.out)
            lines = [f"{arguments.folder} -> {arguments.out}"]
        elif arguments.command == "push":
            url = push(arguments.folder, arguments.repository, private=arguments.private)
            address = f"{SCHEME}{arguments.repository}"
            lines = [
                f"{arguments.folder} -> {url}",
                f"next   raypipe generate --model {address} --input VIDEO",
            ]
        else:
            done = import_file(
                arguments.file,
                arguments.out,
                component=arguments.component,
                num_heads=arguments.num_heads,
                prefix=arguments.prefix,
                shards=None if arguments.dataset is None else open_training_shards(arguments.dataset),
            )
            lines = [f"{folder}: {_describe(meta)}" for folder, meta in done.parts.items()]
            lines += done.notes
            lines.append(f"to convert back: python -m raypipe.checkpoint export {done.folder} --out FILE.pth")
    except (UserError, OSError) as error:
        sys.stderr.write(f"{PROG}: error: {' '.join(str(error).split())}\n")
        return cli.BAD_INPUT
    terminal.say("\n".join(lines))
    return 0


def _describe(meta: Meta) -> str:
    if meta.model is None:
        where = "" if meta.input_range is None else f", input in {show(meta.input_range)}"
        return f"{meta.network} autoencoder, {meta.latent_channels} channels{where}"
    model = meta.model
    return (
        f"{meta.component}, {model.num_input_frames} input frames of {meta.latent_channels} channels, "
        f"inner_dim {model.inner_dim}, {model.num_heads} heads"
    )


if __name__ == "__main__":
    sys.exit(main())
