"""The ``nvme-mdev`` command: finds the subcommand and turns expected errors into one line.

A subcommand's module is imported when it is asked for, so that ``serve`` does not pay for what
``bench`` and ``demo`` draw on the screen.

Exit status: 0 done, 1 a bug or a failed verification, 2 something the user can put right,
130 interrupted from the keyboard. Who has no reader any more ends by SIGPIPE.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nvme_mdev import __version__
from nvme_mdev.cli.loading import loading
from nvme_mdev.cli.standard_output import OutputError, end_without_reader, standard_output
from nvme_mdev.errors import UserError, describe_os_error

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "nvme-mdev"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

#: Each subcommand and where it is: in a module, under its name or the one after the colon.
COMMANDS = {
    "serve": "nvme_mdev.cli.serve",
    "types": "nvme_mdev.cli.types",
    "list": "nvme_mdev.cli.control:list_controllers",
    "show": "nvme_mdev.cli.control",
    "controller": "nvme_mdev.cli.controller",
    "namespace": "nvme_mdev.cli.namespace",
    "set": "nvme_mdev.cli.control:set_settings",
    "stats": "nvme_mdev.cli.control",
    "pause": "nvme_mdev.cli.control",
    "resume": "nvme_mdev.cli.control",
    "unplug": "nvme_mdev.cli.control",
    "restart": "nvme_mdev.cli.control",
    "host-attach": "nvme_mdev.cli.host_attach:host_attach",
    "host-detach": "nvme_mdev.cli.host_attach:host_detach",
    "bench": "nvme_mdev.cli.bench",
    "conformance": "nvme_mdev.cli.conformance",
    "demo": "nvme_mdev.cli.demo",
}


class ExpectedError(click.ClickException):
    """An error with its one line; what raised it is kept as the cause."""

    exit_code = EXIT_USER_ERROR


class Program(click.Group):
    """A command group that imports its commands when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's)
        """Names of the subcommands, in the order in which they are shown."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the subcommand ``cmd_name``."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        with loading():
            command: click.Command = getattr(import_module(module), name or cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; errors that a user can put right become an `ExpectedError`."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            message = _expected(error)
            if message is None or ctx.params["debug"]:
                raise
            raise ExpectedError(message) from error


def _expected(error: Exception) -> str | None:
    """The line that explains an error to the user; None: it is a bug and needs its traceback."""
    # Only when something went wrong already: starting must not wait for this import.
    from nvme_mdev.host.errors import HostError

    if isinstance(error, UserError | HostError):
        return str(error)
    if isinstance(error, OSError):
        return describe_os_error(error)
    return None


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where in the program an error comes from.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli(debug: bool) -> None:
    """Serve virtual NVMe controllers to virtual machines over vfio-user."""


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message = f"{message.rstrip('.')} (see {error.ctx.command_path} --help)"
    return message


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's); returns the exit status."""
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        # `serve` executes itself again, under its keeper.
        status = cli.main(words, prog_name=PROGRAM, standalone_mode=False, obj=tuple(words))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return EXIT_USER_ERROR
    except click.ClickException as error:
        click.echo(f"{PROGRAM}: {_one_line(error)}", err=True)
        return EXIT_USER_ERROR
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return status if isinstance(status, int) else 0


def main() -> NoReturn:
    """Entry point of the console script."""
    try:
        with standard_output():
            status = run()
    except OutputError as error:
        if error.reader_left:
            end_without_reader()
        click.echo(f"{PROGRAM}: {error}", err=True)
        status = EXIT_USER_ERROR
    sys.exit(status)


if __name__ == "__main__":
    main()
