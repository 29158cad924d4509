"""`python -m raypipe.checkpoint import|export`: checkpoint files of the reference code to model folders and back."""

from __future__ import annotations

import argparse
import sys

from raypipe import cli, config
from raypipe.checkpoint.folder import Meta
from raypipe.checkpoint.reference import export_file, import_file
from raypipe.common import terminal
from raypipe.common.errors import UserError


def parser() -> argparse.ArgumentParser:
    root = cli.Parser(prog="raypipe.checkpoint", description="Published checkpoint files to model folders and back.")
    commands = root.add_subparsers(dest="command", required=True)
    to_folder = commands.add_parser("import", help="a published file to a model folder", prog=f"{root.prog} import")
    to_folder.add_argument(
        "file", help="a component's or an autoencoder's file (.pth, .ckpt), or a folder of diffusers'"
    )
    to_folder.add_argument("--out", required=True, help="folder to make; embedded networks go to folders inside, "
                           "unless a folder beside it holds them already")  # fmt: skip
    to_folder.add_argument("--num-heads", type=int, default=8, help="attention heads, which no tensor tells (8)")
    to_folder.add_argument(
        "--component", choices=config.COMPONENTS, help="what the file holds, where sizes do not tell"
    )
    to_file = commands.add_parser("export", help="a model folder to a published file", prog=f"{root.prog} export")
    to_file.add_argument("folder", help="a folder that training or `import` wrote")
    to_file.add_argument("--out", required=True, help="file to write; a folder, for an autoencoder of diffusers'")
    return root


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "export":
            export_file(arguments.folder, arguments.out)
            lines = [f"{arguments.folder} -> {arguments.out}"]
        else:
            done = import_file(
                arguments.file, arguments.out, component=arguments.component, num_heads=arguments.num_heads
            )
            lines = [f"{folder}: {_describe(meta)}" for folder, meta in done.parts.items()]
            lines.append(f"next: python -m raypipe.checkpoint export {done.folder} --out FILE.pth goes back")
    except (UserError, OSError) as error:
        sys.stderr.write(f"raypipe.checkpoint: error: {' '.join(str(error).split())}\n")
        return cli.BAD_INPUT
    terminal.say("\n".join(lines))
    return 0


def _describe(meta: Meta) -> str:
    if meta.model is None:
        return f"{meta.network} autoencoder, {meta.latent_channels} channels"
    model = meta.model
    return (
        f"{meta.component}, {model.num_input_frames} input frames of {meta.latent_channels} channels, "
        f"inner_dim {model.inner_dim}, {model.num_heads} heads"
    )


if __name__ == "__main__":
    sys.exit(main())
